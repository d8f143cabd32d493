"""The outbox: exact whenever its process dies."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.event import Records
from pipeline.ledger import zeros
from pipeline.notices import LOSS
from pipeline.sinks.checkpoint import BookKeeper, restore
from pipeline.sinks.outbox import Outbox
from pipeline.store import Outcome, Store
from tests.encoded import Rings, encoded, stream, total, with_beat
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
    outbox, _, _ = make(tmp_path / "outbox.db", warnings, limit=1_000)
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


async def test_what_is_dropped_leaves_what_it_told(tmp_path: Path) -> None:
    """A loss record is not lost with the events that it came with; a heartbeat may be."""
    outbox, keeper, _ = make(tmp_path / "outbox.db", [], limit=60_000)
    outbox = Outbox(outbox.store, keeper, print, "drop-oldest")
    batches = [with_beat(batch, 100 * n) for n, batch in enumerate(stream(6, 50, padding=500))]
    told = Records([b"k"], [b"what was lost"], [5])
    batches[1].records[LOSS] = told  # type: ignore[index]
    for batch in batches:
        await outbox.put([batch])
        assert await outbox.make_room(0)
    rows = await outbox.rows(0, 1 << 30)
    assert [row.unpack() for row in rows if row.id == 2] == [{LOSS: told}]
    assert sum((row.counts for row in rows), zeros()).tolist() == outbox.counts.tolist()
    assert outbox.store.size == sum(row.size for row in rows)
    assert outbox.store.number == len(rows)
    await outbox.settle({row.id: Outcome(row.counts) for row in rows})
    assert outbox.is_empty
    assert outbox.settled.events.tolist() == total(batches).tolist()


async def test_a_loss_is_told_until_that_is_acknowledged(tmp_path: Path) -> None:
    outbox, keeper, _ = make(tmp_path / "outbox.db", [], limit=60_000)
    outbox = Outbox(outbox.store, keeper, print, "drop-oldest")
    assert await outbox.is_told(1), "there is nothing to tell"
    for batch in stream(4, 50, padding=500):
        await outbox.put([batch])
        assert await outbox.make_room(0)
    losses = [loss for _, loss in outbox.store.losses().values()]
    assert losses
    assert not await outbox.is_told(9), "no heartbeat told it"
    assert [attachment for attachment, _ in outbox.tell(10)] == ["a"] * len(losses)
    assert outbox.tell(11) == [], "once"
    assert not await outbox.is_told(9), "an earlier heartbeat"
    again, _, _ = make(tmp_path / "outbox.db", [])
    assert len(again.tell(12)) == len(losses), "killed before it was acknowledged: told again"
    assert await outbox.is_told(10)
    assert outbox.store.losses() == {}


async def test_what_waits_is_not_complete(tmp_path: Path) -> None:
    """A heartbeat that went into the outbox vouches for nothing yet."""
    outbox, keeper, _ = make(tmp_path / "outbox.db", [])
    await outbox.put([with_beat(batch, 100) for batch in stream(1, 10)])
    assert (keeper.books.seen, keeper.books.complete) == (100, 0)
