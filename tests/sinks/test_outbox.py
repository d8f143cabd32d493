"""The outbox: exact whenever its process dies."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.ledger import zeros
from pipeline.sinks.checkpoint import BookKeeper, restore
from pipeline.sinks.outbox import Outbox
from pipeline.store import Outcome, Store
from tests.encoded import Rings, encoded, stream, total
from tests.sinks.outbox_writer import SIZE, shared

ROOT = Path(__file__).resolve().parent.parent.parent


def make(path: Path, warnings: list[str], limit: int = 4 << 30) -> tuple[Outbox, BookKeeper, Rings]:
    rings, area = Rings(), bytearray(8192)
    keeper = BookKeeper(restore(area), area, move=rings.move, pressure=rings.pressure)
    return Outbox(Store(path, "a", limit=limit), keeper, warnings.append), keeper, rings


async def test_what_goes_in_and_out_is_counted(tmp_path: Path) -> None:
    outbox, keeper, rings = make(tmp_path / "outbox.db", [])
    batches = [*stream(3, 10), encoded(4, [], {0: (99 * 256, 99)})]
    ids = await outbox.put(batches)
    assert ids[3] == 0
    assert [row.unpack() for row in await outbox.rows(0, 1 << 20)] == [b.records for b in batches[:3]]
    assert rings.positions == {0: 99 * 256}
    assert keeper.books.number == 4
    assert keeper.books.acknowledged.sum() == 0
    assert outbox.counts.tolist() == total(batches).tolist()
    one = zeros()
    one[3] = 1
    lost = {("lost", "kafka", "too large"): one}
    await outbox.settle({ids[0]: Outcome(batches[0].counts), ids[1]: Outcome(batches[1].counts - one, lost)})
    assert outbox.counts.tolist() == batches[2].counts.tolist()
    assert outbox.settled.acknowledged.sum() == 19
    again, _, _ = make(tmp_path / "outbox.db", [])
    assert not again.is_empty
    assert again.counts.tolist() == outbox.counts.tolist()
    assert again.settled.acknowledged.tolist() == outbox.settled.acknowledged.tolist()
    assert {key: n.tolist() for key, n in again.settled.lost.items()} == {
        key: n.tolist() for key, n in lost.items()
    }
    await outbox.settle({ids[2]: Outcome(batches[2].counts)})
    assert outbox.is_empty


async def test_a_full_outbox_warns_once(tmp_path: Path) -> None:
    warnings: list[str] = []
    outbox, _, _ = make(tmp_path / "outbox.db", warnings, limit=10_000)
    assert await outbox.make_room(0)
    (batch,) = stream(1, 100)
    (id,) = await outbox.put([batch])
    assert not await outbox.make_room(0)
    assert not await outbox.make_room(0)
    assert len(warnings) == 1
    assert "outbox.limit" in warnings[0]
    await outbox.settle({id: Outcome(batch.counts)})
    assert await outbox.make_room(0)


@pytest.mark.slow
def test_a_sigkill_at_any_instant_leaves_exact_books(tmp_path: Path) -> None:
    """in_outbox (from rows) + acknowledged + lost = what the ring's position has passed, each time."""
    dice = random.Random(7)
    passed = []
    for _ in range(15):
        command = [sys.executable, "-m", "tests.sinks.outbox_writer", str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
            assert child.stdout
            assert child.stdout.readline() == b"ready\n"
            time.sleep(dice.uniform(0, 0.15))
            child.kill()
        area, ring = shared(tmp_path / "area", 8192), shared(tmp_path / "ring", 8)
        store = Store(tmp_path / "outbox.db", "a")
        books = restore(area, [store.books()])
        settled = store.settled()
        accounted = store.counts() + settled.acknowledged + sum(settled.lost.values(), zeros())
        assert accounted.sum() == books.number * SIZE
        assert accounted.tolist() == (total(stream(1, SIZE)) * books.number).tolist()
        # The ring may lag behind the books by what one release moves; it may never be ahead of them.
        position = struct.unpack("<q", ring[:8])[0]
        at_books = books.rings[0].position if books.rings else 0
        assert at_books - 3 * SIZE * 256 <= position <= at_books
        passed.append(books.number)
        store.close()
    assert passed == sorted(passed)
    assert passed[-1] > 30


async def test_a_full_outbox_may_drop_its_oldest(tmp_path: Path) -> None:
    """Only what is not under way; with an entry in the ledger, and a loss to be told that covers it."""
    warnings: list[str] = []
    batches = list(stream(12, 50, padding=500))
    outbox, keeper, rings = make(tmp_path / "outbox.db", warnings, limit=200_000)
    outbox = Outbox(outbox.store, keeper, warnings.append, "drop-oldest")
    for batch in batches:
        await outbox.put([batch])
        assert await outbox.make_room(1)
        assert outbox.store.size < 200_000
    dropped = outbox.settled.lost["lost", "outbox", "dropped"]
    left = [row.id for row in await outbox.rows(0, 1 << 30)]
    assert left == [1, *range(left[1], 13)]
    gone = batches[1 : left[1] - 1]
    assert dropped.tolist() == total(gone).tolist()
    assert (outbox.counts + dropped).tolist() == total(batches).tolist()
    assert rings.positions == {0: 12 * 50 * 256}
    assert len(warnings) == 1
    assert "are dropped" in warnings[0]
    losses = [loss for _, loss in outbox.store.losses().values()]
    assert sum((loss.kinds for loss in losses), zeros()).tolist() == dropped.tolist()
    assert [span for loss in losses for span in loss.spans] == [batch.spans[0] for batch in gone]
    assert [(loss.since, loss.until) for loss in losses] == [batch.time for batch in gone]
    assert {(loss.stage, loss.reason) for loss in losses} == {("outbox", "dropped")}
    again, _, _ = make(tmp_path / "outbox.db", [])
    assert again.settled.lost["lost", "outbox", "dropped"].tolist() == dropped.tolist()
    outbox.store.forget(list(outbox.store.losses())[:2])
    assert len(again.store.losses()) == len(losses) - 2
