"""A full disk: one warning, nothing lost that was taken, and on it goes when there is room."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from pipeline.event import Encoded
from pipeline.sinks import persist
from pipeline.sinks.checkpoint import BookKeeper, restore
from pipeline.sinks.log import LogSink
from pipeline.stages.stage import Link
from pipeline.store import Store
from tests.encoded import Rings, stream, total


async def test_a_full_disk_holds_the_rings_back_until_there_is_room(
    tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persist, "RETRY", 0.05)
    store, rings, area = Store(tiny_disk / "log.db", "a"), Rings(), bytearray(8192)
    keeper = BookKeeper(restore(area), area, move=rings.move, pressure=rings.pressure)
    warnings: list[str] = []
    sink, link = LogSink(store, keeper, warnings.append), Link[Encoded]("encoded")
    filler = tiny_disk / "filler"
    filler.write_bytes(b"x" * (7000 << 10))
    batches = list(stream(12, 100, padding=700))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.run, link)
        nursery.start_soon(link.send, batches)
        await trio.sleep(1)
        stuck = keeper.books
        assert stuck.number < len(batches)
        assert rings.positions.get(0, 0) == stuck.number * 100 * 256
        assert (stuck.acknowledged + sink.held() + link.held()).tolist() == total(batches).tolist()
        assert len(warnings) == 1
        assert "log.db takes nothing" in warnings[0]
        assert "free some space" in warnings[0]
        filler.unlink()
        link.close()
    assert len(warnings) == 1
    assert [row.unpack() for row in store.rows(size=1 << 30)] == [batch.records for batch in batches]
    store.close()
