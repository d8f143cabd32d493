"""The SQLite file under the local log and the outbox."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from pipeline.store import BlockedError, Outcome, Store, StoreError
from tests.encoded import TIME, encoded, record, stream, total

MS = 1_000_000


def test_a_row_gives_back_its_batch(tmp_path: Path) -> None:
    store = Store(tmp_path / "log.db", "a")
    batch = encoded(1, [record(i) for i in range(5)])
    ids = store.append([batch], {"number": 1})
    (row,) = store.rows()
    assert [row.id] == ids
    assert row.unpack() == batch.records
    assert (row.first, row.last, row.records) == (TIME, TIME + 4 * MS, 5)
    assert row.counts.tolist() == batch.counts.tolist() == store.counts().tolist()
    assert store.books() == {"number": 1}
    assert Store(tmp_path / "log.db", "another").books() is None


def test_bodies_are_compressed(tmp_path: Path) -> None:
    store = Store(tmp_path / "log.db", "a")
    batch = encoded(1, [record(i) for i in range(200)])
    store.append([batch])
    (row,) = store.rows()
    assert row.unpack() == batch.records
    assert row.size < len(row.body) / 3


def test_rows_come_in_order_and_within_a_size(tmp_path: Path) -> None:
    store = Store(tmp_path / "log.db")
    ids = store.append(list(stream(10, 5)))
    size = len(store.rows(size=1)[0].body)
    assert [row.id for row in store.rows(ids[2], size=3 * size)] == ids[3:6]
    assert [row.id for row in store.rows(ids[-1])] == []


def test_looking_by_time_and_by_number(tmp_path: Path) -> None:
    store = Store(tmp_path / "log.db")
    ids = store.append(list(stream(10, 5)))
    assert store.before_time(TIME + 12 * MS) == ids[1]
    assert store.before_time(TIME + 1000 * MS) == ids[-1]
    assert store.before_last(5) == ids[-2]
    assert store.before_last(6) == ids[-3]
    assert store.before_last(1000) == 0


def test_what_leaves_is_booked_under_its_own_attachment(tmp_path: Path) -> None:
    old = Store(tmp_path / "outbox.db", "old")
    batches = list(stream(3, 4))
    first = old.append(batches[:1])
    old.close()
    store = Store(tmp_path / "outbox.db", "new")
    second = store.append(batches[1:])
    lost = {("lost", "kafka", "too large"): batches[1].counts}
    outcomes = {
        first[0]: Outcome(batches[0].counts),
        second[0]: Outcome(batches[1].counts * 0, lost),
        second[1]: Outcome(batches[2].counts),
    }
    own = store.settle(outcomes)
    assert own.events.tolist() == total(batches[1:]).tolist()
    assert own.acknowledged.tolist() == store.settled().acknowledged.tolist() == batches[2].counts.tolist()
    assert store.settled().lost.keys() == lost.keys()
    assert store.counts().sum() == 0
    assert store.is_empty
    assert store.size == 0
    assert Store(tmp_path / "outbox.db", "old").settled().acknowledged.tolist() == batches[0].counts.tolist()


def test_trimming_drops_the_oldest(tmp_path: Path) -> None:
    store = Store(tmp_path / "log.db")
    ids = store.append(list(stream(10, 5)))
    store.limit = store.size // 2
    store.trim()
    left = [row.id for row in store.rows()]
    assert left == ids[-len(left) :]
    assert 4 <= len(left) <= 5
    assert store.size <= store.limit
    assert Store(tmp_path / "log.db").size == store.size


def test_trimmed_space_is_used_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "log.db", limit=1 << 20)
    sizes = []
    for batch in stream(60, 100, padding=1000):
        store.append([batch])
        store.trim()
        sizes.append((tmp_path / "log.db").stat().st_size)
    assert max(sizes) < 4 << 20
    assert store.last() == 60


@pytest.mark.parametrize("damage", [b"not a database at all" * 1000, b""])
def test_a_corrupt_file_is_set_aside(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "outbox.db"
    store = Store(path)
    store.append(list(stream(50, 100, padding=500)))
    store.close()
    whole = path.read_bytes()
    path.write_bytes(damage or whole[:100] + b"\xff" * 70000 + whole[70100:])
    warnings: list[str] = []
    store = Store(path, warn=warnings.append)
    assert store.append(list(stream(1, 1))) == [1]
    assert (tmp_path / "outbox.db.corrupt-1").stat().st_size > 20_000
    assert len(warnings) == 1
    assert "outbox.db.corrupt-1" in warnings[0]


def test_a_reader_makes_and_moves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no log"):
        Store(tmp_path / "log.db", make=False)
    (tmp_path / "log.db").write_bytes(b"something else" * 1000)
    with pytest.raises(StoreError, match="cannot be used"):
        Store(tmp_path / "log.db", make=False)
    assert [path.name for path in tmp_path.iterdir()] == ["log.db"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="make its folder writable"):
        Store(tmp_path / "file" / "log.db")


def test_a_full_disk_takes_all_or_nothing(tiny_disk: Path) -> None:
    filler = tiny_disk / "filler"
    store = Store(tiny_disk / "outbox.db")
    store.append(list(stream(1, 10)))
    filler.write_bytes(b"x" * (6700 << 10))
    with pytest.raises(BlockedError, match="full"):
        store.append(list(stream(20, 100, first=2, padding=1000)), {"number": 21})
    assert store.books() is None
    assert len(store.rows()) == 1
    filler.unlink()
    store.append(list(stream(2, 100, first=2, padding=1000)), {"number": 3})
    assert store.books() == {"number": 3}
    assert len(store.rows()) == 3
    store.close()
    with sqlite3.connect(tiny_disk / "outbox.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
