"""The local log as a sink."""

from __future__ import annotations

from pathlib import Path

import trio

from pipeline.event import Encoded
from pipeline.sinks.checkpoint import BookKeeper, restore
from pipeline.sinks.log import LogSink
from pipeline.stages.stage import Link
from pipeline.store import Store
from tests.encoded import Rings, encoded, stream, total


async def run(path: Path, batches: list[Encoded], limit: int = 4 << 30) -> tuple[Store, BookKeeper, Rings]:
    store, rings, area = Store(path, "a", limit=limit), Rings(), bytearray(8192)
    keeper = BookKeeper(restore(area), area, move=rings.move, pressure=rings.pressure)
    sink = LogSink(store, keeper, warn=print)
    link: Link[Encoded] = Link("encoded")
    held = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.run, link)
        for batch in batches:
            await link.send([batch])
            held.append(keeper.books.acknowledged + sink.held() + link.held())
        link.close()
    for number, sum_of_terms in enumerate(held, 1):
        assert sum_of_terms.tolist() == total(batches[:number]).tolist()
    assert sink.held().sum() == 0
    return store, keeper, rings


async def test_every_batch_is_a_row_and_the_books_say_so(tmp_path: Path) -> None:
    batches = list(stream(40, 25))
    store, keeper, rings = await run(tmp_path / "log.db", batches)
    assert [row.unpack() for row in store.rows(size=1 << 30)] == [batch.records for batch in batches]
    assert keeper.books.acknowledged.tolist() == total(batches).tolist()
    assert restore(bytearray(64), [store.books()]).to_plain() == keeper.books.to_plain()
    assert rings.positions == {0: 40 * 25 * 256}


async def test_an_empty_batch_moves_the_positions(tmp_path: Path) -> None:
    store, keeper, rings = await run(tmp_path / "log.db", [encoded(1, [], {0: (512, 2)})])
    assert store.is_empty
    assert rings.positions == {0: 512}
    assert keeper.books.number == 1


async def test_the_oldest_leave_and_stay_acknowledged(tmp_path: Path) -> None:
    batches = list(stream(40, 25, padding=400))
    store, keeper, _ = await run(tmp_path / "log.db", batches, limit=100_000)
    rows = store.rows(size=1 << 30)
    assert 1 < len(rows) < 12
    assert rows[-1].unpack() == batches[-1].records
    assert keeper.books.acknowledged.tolist() == total(batches).tolist()
