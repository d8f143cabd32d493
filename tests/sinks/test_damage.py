"""An outbox whose file is damaged or taken away, at rest and at work: nothing crashes, whole rows are saved,
and what is lost is booked, exactly.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgpack
import pytest
import trio

from pipeline.event import Encoded
from pipeline.ledger import zeros
from pipeline.sinks import persist
from pipeline.sinks.checkpoint import BookKeeper, restore
from pipeline.sinks.outbox import Outbox
from pipeline.store import Outcome, Row, Store
from tests.encoded import Rings, stream, total

SIZE = 40
"""Records in a batch."""


class Subject:
    """An outbox over what an earlier one left, and all that was ever put into it."""

    def __init__(self, path: Path) -> None:
        self.path, self.area = path, bytearray(1 << 16)
        self.warnings: list[str] = []
        self.put: list[Encoded] = []
        self.taken: dict[int, list[bytes]] = {}
        self.begin()

    def begin(self) -> None:
        """As a run begins: after a clean end, or after a SIGKILL."""
        self.rings = Rings()
        store = Store(self.path, "a", warn=self.warnings.append)
        books = restore(self.area, [store.books()])
        store.reconcile(books)
        self.keeper = BookKeeper(books, self.area, move=self.rings.move, pressure=self.rings.pressure)
        self.outbox = Outbox(store, self.keeper, self.warnings.append)

    async def fill(self, batches: int) -> None:
        """More batches, each a transaction."""
        for batch in stream(batches, SIZE, first=self.keeper.books.number + 1, padding=600):
            self.put.append(batch)
            await self.outbox.put([batch])
            self.check()

    async def empty(self, batches: int = 1 << 30) -> None:
        """Deliver the oldest rows."""
        while batches > 0 and (rows := await self.outbox.rows(0, 1)):
            for row in rows:
                self.taken[row.id] = row.unpack()["process"].values
            await self.outbox.settle({row.id: Outcome(row.counts) for row in rows})
            self.check()
            batches -= 1

    def check(self) -> None:
        """Acknowledged + lost + in the outbox = all that was put in; from memory and from the file."""
        inside, settled = self.outbox.counts, self.outbox.settled
        assert (inside + settled.events).tolist() == total(self.put).tolist()
        assert self.keeper.books.spilled.tolist() == total(self.put).tolist()

    def check_stored(self) -> None:
        """The file says the same."""
        assert self.outbox.store.counts().tolist() == self.outbox.counts.tolist()
        stored, known = self.outbox.store.settled(), self.outbox.settled
        assert {k: n.tolist() for k, n in stored.tally.items()} == {
            k: n.tolist() for k, n in known.tally.items() if n.any() or k in stored.tally
        }

    @property
    def lost(self) -> int:
        """Events that the outbox lost."""
        assert set(self.outbox.settled.lost) <= {("lost", "outbox", "corrupt")}
        return int(sum(self.outbox.settled.lost.values(), zeros()).sum())

    def told(self) -> int:
        """Events in losses that are to be told."""
        return sum(int(loss.kinds.sum()) for _, loss in self.outbox.store.losses().values())


def files(path: Path) -> list[Path]:
    return [each for suffix in ("", "-wal") if (each := Path(f"{path}{suffix}")).exists()]


def flip(path: Path, needle: bytes) -> None:
    """Turn a bit over in a file, where some bytes stand."""
    data = path.read_bytes()
    at = data.index(needle)
    with path.open("r+b") as opened:
        opened.seek(at)
        opened.write(bytes([data[at] ^ 1]))


async def test_a_bit_that_turned_over_in_a_batch_costs_that_batch_alone(tmp_path: Path) -> None:
    subject = Subject(tmp_path / "outbox.db")
    await subject.fill(5)
    subject.outbox.store.close()  # from its WAL into the file
    flip(subject.path, msgpack.unpackb(subject.put[2].records["process"].values[7])["padding"])
    subject.begin()
    await subject.empty()
    assert subject.lost == subject.told() == SIZE
    expected = [batch.records["process"].values for batch in subject.put]
    assert list(subject.taken.values()) == [*expected[:2], *expected[3:]]
    assert len(subject.warnings) == 1
    assert "its 40 events are lost" in subject.warnings[0]
    ((_, loss),) = subject.outbox.store.losses().values()
    assert (loss.since, loss.until) == subject.put[2].time
    subject.check_stored()


@pytest.mark.parametrize("last", [1 << 40, 1 << 62, "no number"])
async def test_a_last_id_that_cannot_be_holds_nobody_up(tmp_path: Path, last: int | str) -> None:
    """Looking up each id until then would take for ever."""
    subject = Subject(tmp_path / "outbox.db")
    await subject.fill(5)
    subject.outbox.store.close()
    with closing(sqlite3.connect(subject.path)) as db, db:
        db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'batch'", (last,))
        db.execute("UPDATE batch SET mark = 0 WHERE id = 3")
    subject.begin()
    await subject.fill(2)
    await subject.empty()
    assert subject.lost == subject.told() == SIZE
    assert len(subject.taken) == 6
    subject.check_stored()


def cut(path: Path) -> None:
    for file in files(path):
        with file.open("r+b") as opened:
            opened.truncate(file.stat().st_size // 2)


def empty(path: Path) -> None:
    for file in files(path):
        file.write_bytes(b"")


def overwrite(path: Path) -> None:
    for file in files(path):
        file.write_bytes(b"not a database" * (file.stat().st_size // 14))


def remove(path: Path) -> None:
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("damage", [cut, empty, overwrite, remove])
@pytest.mark.parametrize("when", ["at work", "at rest", "killed"])
async def test_whatever_happens_to_the_file_the_books_are_exact(
    tmp_path: Path, damage: Callable[[Path], None], when: str
) -> None:
    subject = Subject(tmp_path / "state" / "outbox.db")
    await subject.fill(12)
    await subject.empty(3)
    if when == "at rest":
        subject.outbox.store.close()
    if when == "killed":  # what it leaves, without the locks of a process that lives
        subject.path = tmp_path / "left" / "outbox.db"
        shutil.copytree(tmp_path / "state", tmp_path / "left")
    damage(subject.path)
    if when != "at work":
        subject.begin()
        subject.check()
    await subject.fill(3)
    await subject.empty()
    await subject.fill(2)
    subject.check()
    subject.check_stored()
    assert subject.told() == subject.lost
    if damage is remove and when == "at work":
        assert not subject.lost, "what a process has open it can still read"
    for values in subject.taken.values():
        assert values in [batch.records["process"].values for batch in subject.put]
    subject.begin()
    subject.check()
    assert subject.warnings
    if not (damage is overwrite and when == "at work"):  # a process may have in memory what it overwrote
        assert subject.outbox.counts.sum() == 2 * SIZE


async def test_a_disk_that_is_full_when_the_file_breaks(
    tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old file is kept as it is until there is room for a new one."""
    monkeypatch.setattr(persist, "RETRY", 0.05)
    subject = Subject(tiny_disk / "outbox.db")
    await subject.fill(4)
    await subject.empty(1)
    cut(subject.path)
    filler = tiny_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(b"x" * (8 << 20))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subject.fill, 2)
        await trio.sleep(0.5)
        assert any("free some space" in said for said in subject.warnings)
        filler.unlink()
    assert any("was cut" in said for said in subject.warnings)
    await subject.empty()
    subject.check_stored()
    assert subject.told() == subject.lost


@pytest.mark.parametrize("seed", range(12))
async def test_random_damage(tmp_path: Path, seed: int) -> None:
    """Some bytes of the file or its WAL, at any place, again and again, at work or between two runs."""
    dice = random.Random(seed)
    subject = Subject(tmp_path / "outbox.db")
    for _ in range(4):
        await subject.fill(dice.randint(1, 8))
        await subject.empty(dice.randint(0, 4))
        if at_rest := dice.random() < 0.3:
            subject.outbox.store.close()
        file = dice.choice(files(subject.path))
        with file.open("r+b") as opened:
            size = file.stat().st_size
            for _ in range(dice.choice((1, 1, 20))):
                opened.seek(dice.randrange(size + 1))
                opened.write(dice.randbytes(dice.choice((1, 8, 4096))))
            if dice.random() < 0.2:
                opened.truncate(dice.randrange(size + 1))
        if at_rest:
            subject.begin()
            subject.check()
    await subject.empty()
    subject.check()
    subject.check_stored()
    for values in subject.taken.values():
        assert values in [batch.records["process"].values for batch in subject.put]


async def test_rows_that_the_sink_has_in_memory_are_stored_again(tmp_path: Path) -> None:
    subject = Subject(tmp_path / "outbox.db")
    await subject.fill(120)  # more than SQLite remembers
    rows = await subject.outbox.rows(0, 1 << 30)
    memory: dict[int, Encoded | Row] = {2: rows[1], 3: subject.put[2]}
    subject.outbox.under_way = lambda: memory
    empty(subject.path)
    await subject.fill(1)
    assert 0 < subject.lost == subject.told()
    await subject.empty()
    assert [subject.taken[id] for id in memory] == [
        subject.put[id - 1].records["process"].values for id in memory
    ]
    assert subject.lost == (len(subject.put) - len(subject.taken)) * SIZE
    assert 1 not in subject.taken
    subject.check_stored()
