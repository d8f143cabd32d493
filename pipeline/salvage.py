"""What can be saved of a store's file that is corrupt, or that was taken away under the process that has it.

Below store.py. A new file is made beside the old one, the rows that are whole go into it one by one, and only
then do the files change places; the old one is kept. Killed at any point, the next call finds either the old
file as it was, or the new one complete under its own name.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from pipeline.store_file import WAL, BlockedError, BrokenError, connect, judged, transaction
from pipeline.store_row import HIGHEST, SMALL, SUMMARY, mark_of, read

__all__ = ["Watch", "is_finished", "put_in_place", "renew"]

PARTS: Final = ("", "-wal", "-shm")
"""What a database consists of. The WAL is kept with its file: the newest rows may be in it alone."""
DAMAGE: Final = (sqlite3.DatabaseError, UnicodeDecodeError, BrokenError)
"""What reading a file that is corrupt may raise."""
ROWS: Final = 64
"""Rows to a transaction."""
LEAST: Final = 256
"""Bytes that a row takes at least."""
T = TypeVar("T")


class Watch:
    """Sees what SQLite does not: that an open file has no name any more, or became shorter than it was."""

    def __init__(self, path: Path) -> None:
        """Begin with what is there now."""
        self._names = [f"{path}{part}" for part in PARTS]
        self._known = [_look(name) for name in self._names]

    def trouble(self) -> str:
        """What happened to the files since the last look, for people; empty: nothing."""
        now = [_look(name) for name in self._names]
        before, self._known = self._known, now
        if any(new.file != old.file for new, old in zip(now, before, strict=True)):
            return "was taken away"
        (file, wal, _), (old_file, old_wal, _) = now, before
        return "was cut" if file.size < old_file.size or wal.size < min(old_wal.size, WAL) else ""


class _File(NamedTuple):
    """What stands under a name: device and inode; and its bytes."""

    file: tuple[int, int] | None
    size: int


def _look(name: str) -> _File:
    try:
        found = os.stat(name)
    except OSError:
        return _File(None, 0)
    return _File((found.st_dev, found.st_ino), found.st_size)


def renew(path: Path, old: sqlite3.Connection, amend: Callable[[sqlite3.Connection], T]) -> tuple[str, T]:
    """Make a new file of what can be read by `old`, and put it in its place.

    `amend` does the rest in the new one. Returns, for people, what became of the file; and what `amend` said.
    Raises BlockedError: all is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(_draft(path))
        with closing(connect(_draft(path))) as new:
            claimed = _save(old, new, sum(_look(f"{path}{part}").size for part in PARTS) // LEAST)
            with transaction(new):
                amended = amend(new)
                saved = _number(new)
            with judged():
                new.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        os.replace(_draft(path), _finished(path))
        aside = put_in_place(path)
    except OSError as error:
        raise BlockedError(str(error)) from error
    kept = f"it is kept as {aside.name}, and" if aside.exists() else "and"
    lost = f", {claimed - saved} are lost" if claimed > saved else ""
    return f"{kept} a new one is begun with {saved} batches{lost}", amended


def _save(old: sqlite3.Connection, new: sqlite3.Connection, most: int) -> int:
    """Copy what can be read, rows with their ids; there are `most` at most. How many there were: 0 where that
    cannot be read either.
    """
    for table, columns in SMALL.items():
        with suppress(*DAMAGE):
            rows = old.execute(f"SELECT {columns}, mark FROM {table}").fetchall()
            whole = [row for row in rows if row[-1] == mark_of(*row[:-1])]
            _put(new, f"{table} ({columns}, mark)", whole)
    with suppress(*DAMAGE):
        _put(new, "damaged", old.execute("SELECT * FROM damaged").fetchall())
    ids = _bounds(old)
    found = _whole(old, ids, most)
    while some := [row for _, row in zip(range(ROWS), found, strict=False)]:
        columns = f"batch ({SUMMARY}, body)"
        _put(new, columns, some)
    # Numbers never repeat: who holds one of a row that is gone shall not find another.
    with transaction(new):
        new.execute("DELETE FROM sqlite_sequence WHERE name = 'batch'")
        new.execute("INSERT INTO sqlite_sequence VALUES ('batch', ?)", (max(ids.stop - 1, 0),))
    with suppress(*DAMAGE):
        return _number(old)
    return 0


def _put(new: sqlite3.Connection, where: str, rows: list[tuple[Any, ...]]) -> None:
    if rows:
        with transaction(new):
            new.executemany(f"INSERT INTO {where} VALUES ({', '.join('?' * len(rows[0]))})", rows)


def _bounds(old: sqlite3.Connection) -> range:
    """The ids that rows may have."""
    first, ends = 1, [0]
    for ask in ("SELECT seq FROM sqlite_sequence WHERE name = 'batch'", "SELECT max(id) FROM batch"):
        with suppress(*DAMAGE, TypeError, ValueError):
            ends.append(int(old.execute(ask).fetchone()[0]))
    with suppress(*DAMAGE, TypeError, ValueError):
        first = max(first, int(old.execute("SELECT min(id) FROM batch").fetchone()[0]))
    return range(first, max(end for end in ends if end < HIGHEST) + 1)


def _whole(old: sqlite3.Connection, ids: range, most: int) -> Iterator[tuple[Any, ...]]:
    """Rows that are what was stored, one look-up for each: over `most` that cannot be read it steps."""
    ask = f"SELECT {SUMMARY}, body FROM batch WHERE id >= ? ORDER BY id LIMIT 1"
    at, misses = ids.start, 0
    while at < ids.stop and misses <= most:
        try:
            found = old.execute(ask, (at,)).fetchone()
            if found is None:
                return
            at = max(at, found[0])
            if read(found[:-1], found[-1]).whole:
                yield found
        except (*DAMAGE, TypeError, ValueError):
            misses += 1
        at += 1


def _number(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT count(*) FROM batch").fetchone()[0])


def is_finished(path: Path) -> bool:
    """Whether a new file waits to be put in place."""
    return _finished(path).exists()


def put_in_place(path: Path) -> Path:
    """Set the old file aside and the new one in its place; where the old one went."""
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    for part in PARTS:
        with suppress(FileNotFoundError):
            os.replace(f"{path}{part}", f"{aside}{part}")
    os.replace(_finished(path), path)
    return aside


def _remove(path: Path) -> None:
    for part in PARTS:
        Path(f"{path}{part}").unlink(missing_ok=True)


def _draft(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _finished(path: Path) -> Path:
    return path.with_name(f"{path.name}.saved")
