"""What is saved of a file that is corrupt or was taken away, and that a kill at any point loses neither file.

tests/sinks/test_damage.py has the whole: outbox, books, random damage.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pipeline import salvage
from pipeline.salvage import Watch, is_finished, put_in_place, renew
from pipeline.store_file import BlockedError, connect, transaction
from pipeline.store_row import SUMMARY, insert, read
from tests.encoded import stream


def begin(path: Path, batches: int) -> None:
    """A file with rows 1 … `batches` of five events each, closed."""
    with closing(connect(path)) as db, transaction(db):
        for batch in stream(batches, 5, padding=200):
            insert(db, "a", batch)


def ids(path: Path) -> list[int]:
    """Those of its rows, each read whole."""
    with closing(sqlite3.connect(path)) as db:
        rows = [
            read(row[:-1], row[-1]) for row in db.execute(f"SELECT {SUMMARY}, body FROM batch ORDER BY id")
        ]
    assert all(row.whole for row in rows)
    return [row.id for row in rows]


def spoil(path: Path, *rows: int) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.executemany("UPDATE batch SET mark = mark + 1 WHERE id = ?", [(id,) for id in rows])


def renewed(path: Path) -> str:
    with closing(connect(path, setup=False)) as old:
        said, amended = renew(path, old, lambda _: "amended")
    assert amended == "amended"
    return said


def test_whole_rows_are_saved_under_their_ids_and_the_old_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    begin(path, 200)
    spoil(path, 1, 77, 200)
    assert renewed(path) == (
        "it is kept as outbox.db.corrupt-1, and a new one is begun with 197 batches, 3 are lost"
    )
    assert ids(path) == [n for n in range(1, 200) if n not in (1, 77)]
    with closing(connect(path)) as db:
        # The number of the last row is not given again, though that row is gone.
        assert insert(db, "a", next(stream(1, 1)))[0] == 201
        db.execute("DELETE FROM batch WHERE id = 201")
    spoil(path, 2)
    assert "outbox.db.corrupt-2" in renewed(path)
    assert ids(path) == [n for n in range(3, 200) if n != 77]
    assert (tmp_path / "outbox.db.corrupt-1").exists()


def test_a_file_that_was_removed_is_made_again_from_what_is_still_open(tmp_path: Path) -> None:
    path = tmp_path / "state" / "outbox.db"
    path.parent.mkdir()
    begin(path, 3)
    with closing(connect(path)) as old:
        old.execute("SELECT * FROM batch").fetchall()
        for each in path.parent.iterdir():
            each.unlink()
        path.parent.rmdir()
        said, _ = renew(path, old, lambda _: None)
    assert said == "and a new one is begun with 3 batches"
    assert ids(path) == [1, 2, 3]


@pytest.mark.parametrize("step", ["transaction", "_save", "os.replace", "put_in_place"])
def test_killed_at_any_point_leaves_the_old_file_or_a_finished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    path = tmp_path / "outbox.db"
    begin(path, 30)
    spoil(path, 7)
    with monkeypatch.context() as patched:
        patched.setattr(os if "." in step else salvage, step.removeprefix("os."), kill)
        with pytest.raises(Killed):
            renewed(path)
    saved = [n for n in range(1, 31) if n != 7]
    assert is_finished(path) == (step == "put_in_place")
    if is_finished(path):
        put_in_place(path)
    else:
        renewed(path)
    assert ids(path) == saved
    assert not is_finished(path)


def test_no_space_for_a_new_file_leaves_all_as_it_was(tiny_disk: Path) -> None:
    path = tiny_disk / "outbox.db"
    begin(path, 200)
    spoil(path, 7)
    before = path.read_bytes()
    (tiny_disk / "rest").write_bytes(bytes(os.statvfs(tiny_disk).f_bavail * os.statvfs(tiny_disk).f_bsize))
    with closing(connect(path, setup=False)) as old, pytest.raises(BlockedError):
        renew(path, old, lambda _: None)
    assert path.read_bytes() == before
    (tiny_disk / "rest").unlink()
    assert "199 batches, 1 are lost" in renewed(path)


def test_it_sees_what_sqlite_does_not(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    begin(path, 30)
    watch = Watch(path)
    assert watch.trouble() == ""
    with path.open("ab") as file:
        file.write(bytes(4096))
    assert watch.trouble() == "", "it only grew"
    os.truncate(path, path.stat().st_size - 4096)
    assert watch.trouble() == "was cut"
    assert watch.trouble() == "", "said once"
    path.rename(tmp_path / "elsewhere")
    begin(path, 30)
    assert watch.trouble() == "was taken away"
    path.unlink()
    assert watch.trouble() == "was taken away"
