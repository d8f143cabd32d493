"""A durable queue of batches in one SQLite file: what the local log and the outbox are made of.

A row holds a batch, not a record. The books of a checkpoint go in with the rows that they count, in one
transaction; so does what becomes of rows that leave. After a SIGKILL the file therefore says exactly what
happened. Everything here blocks: callers under trio use a thread, one call at a time.

Books belong to an *attachment*: one life of the kernel's counters, from an attach to a detach or a reboot.
Rows outlive it, and are counted under the attachment that made them.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgpack
import numpy as np

from pipeline.errors import UserError
from pipeline.event import Encoded, Ints, Records
from pipeline.ledger import Tally, add, zeros

__all__ = ["LOG", "OUTBOX", "BlockedError", "Outcome", "Row", "Store", "StoreError", "no_warning"]

LOG: Final = "log.db"
OUTBOX: Final = "outbox.db"
"""Names in a state folder."""

# Large pages: rows are hundreds of kilobytes. A short WAL: a long one takes disk, and its checkpoint time.
SETUP: Final = """
PRAGMA page_size = 65536;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA wal_autocheckpoint = 256;
PRAGMA journal_size_limit = 33554432;
CREATE TABLE IF NOT EXISTS batch (
    id INTEGER PRIMARY KEY AUTOINCREMENT, attachment TEXT, passage INTEGER, first INTEGER, last INTEGER,
    records INTEGER, size INTEGER, counts BLOB, body BLOB);
CREATE INDEX IF NOT EXISTS batch_last ON batch (last);
CREATE TABLE IF NOT EXISTS books (attachment TEXT PRIMARY KEY, plain BLOB);
CREATE TABLE IF NOT EXISTS settled (
    attachment TEXT, term TEXT, stage TEXT, reason TEXT, counts BLOB,
    PRIMARY KEY (attachment, term, stage, reason));
"""
PASSING: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY)
CORRUPT: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR_SHORT_READ)
SUMMARY: Final = "id, first, last, records, size, counts"


class StoreError(UserError):
    """The file cannot be used at all (folder not writable, locked by another)."""


class BlockedError(Exception):
    """Nothing was stored, trying again later may succeed: the disk is full, or another process writes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a row that leaves the outbox."""

    acknowledged: Ints
    lost: Tally = field(default_factory=dict)

    def add(self, other: Outcome) -> None:
        """Take another one's events in."""
        np.add(self.acknowledged, other.acknowledged, out=self.acknowledged)
        add(self.lost, other.lost)


@dataclass(frozen=True, slots=True)
class Row:
    """One batch as it is stored."""

    id: int
    first: int
    last: int
    """First and last time of an event, ns since the epoch."""
    records: int
    size: int
    """Bytes of its body."""
    counts: Ints
    """Events per kind number."""
    body: bytes = b""

    def unpack(self) -> dict[str, Records]:
        """Family → records, as they were put in."""
        return {family: Records(*columns) for family, columns in msgpack.unpackb(self.body).items()}


def no_warning(text: str) -> None:
    """For who has nobody to warn."""


class Store:
    """One SQLite file. `limit` bounds the bytes of the batches in it."""

    def __init__(
        self,
        path: Path,
        attachment: str = "",
        *,
        limit: int = 4 << 30,
        make: bool = True,
        warn: Callable[[str], None] = no_warning,
    ) -> None:
        """Open the file. `make`: begin one where there is none, set a corrupt one aside with a warning.

        Raises StoreError.
        """
        self.path, self.attachment, self.limit = path, attachment, limit
        if not make and not path.exists():
            raise StoreError(f"{path.parent} holds no {path.name}; name the state folder of a `run`")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._open()
            except sqlite3.Error as error:
                if error.sqlite_errorcode not in CORRUPT or not make:
                    raise
                self._set_aside(warn, error)
                self._open()
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"{path} cannot be used ({error}); make its folder writable, or name another"
            ) from None

    def _open(self) -> None:
        self._db = sqlite3.connect(self.path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            self._db.executescript(SETUP)
            # Reads every row's first page: enough to see a file that is not ours, or torn.
            self.size: int = self._db.execute("SELECT coalesce(sum(size), 0) FROM batch").fetchone()[0]
        except sqlite3.Error:
            self._db.close()
            raise

    def _set_aside(self, warn: Callable[[str], None], error: Exception) -> None:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.corrupt-{number}")).exists():
            number += 1
        for suffix in ("-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        os.replace(self.path, aside)
        warn(f"{self.path} is corrupt ({error}): kept as {aside.name}, a new one is begun")

    def close(self) -> None:
        """Give the file back."""
        self._db.close()

    # -- writing

    def append(self, batches: Sequence[Encoded], books: Mapping[str, Any] | None = None) -> list[int]:
        """Add batches, and the books that count them, in one transaction; return the rows' ids.

        Raises BlockedError.
        """
        with transaction(self._db) as db:
            added = [self._insert(db, batch) for batch in batches]
            if books is not None:
                db.execute("REPLACE INTO books VALUES (?, ?)", (self.attachment, msgpack.packb(books)))
        self.size += sum(size for _, size in added)
        return [id for id, _ in added]

    def _insert(self, db: sqlite3.Connection, batch: Encoded) -> tuple[int, int]:
        body = msgpack.packb({f: (r.keys, r.values, r.times) for f, r in batch.records.items()})
        counts = _blob(batch.counts)
        cursor = db.execute(
            "INSERT INTO batch (attachment, passage, first, last, records, size, counts, body)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (self.attachment, batch.passage.number, *batch.time, len(batch), len(body), counts, body),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid, len(body)

    def settle(self, outcomes: Mapping[int, Outcome]) -> tuple[Ints, Outcome]:
        """Take rows out and book what became of their events, in one transaction. Raises BlockedError.

        Returns the events of this attachment that left, and what became of them.
        """
        gone, own, size = zeros(), Outcome(zeros()), 0
        with transaction(self._db) as db:
            for id, outcome in outcomes.items():
                attachment, row_size, counts = db.execute(
                    "SELECT attachment, size, counts FROM batch WHERE id = ?", (id,)
                ).fetchone()
                self._book(db, attachment, ("acknowledged", "", ""), outcome.acknowledged)
                for key, lost in outcome.lost.items():
                    self._book(db, attachment, key, lost)
                db.execute("DELETE FROM batch WHERE id = ?", (id,))
                size += row_size
                if attachment == self.attachment:
                    gone += _counts(counts)
                    own.add(outcome)
        self.size -= size
        return gone, own

    def _book(self, db: sqlite3.Connection, attachment: str, key: tuple[str, str, str], counts: Ints) -> None:
        where = (attachment, *key)
        known = db.execute(
            "SELECT counts FROM settled WHERE attachment = ? AND term = ? AND stage = ? AND reason = ?", where
        ).fetchone()
        total = counts + _counts(known[0]) if known else counts
        db.execute("REPLACE INTO settled VALUES (?, ?, ?, ?, ?)", (*where, _blob(total)))

    def trim(self) -> None:
        """Drop the oldest rows until what is left is within the limit; their pages are used again."""
        if self.size <= self.limit:
            return
        with transaction(self._db) as db:
            size = self.size
            for id, row_size in db.execute("SELECT id, size FROM batch ORDER BY id").fetchall():
                if size <= self.limit:
                    break
                db.execute("DELETE FROM batch WHERE id = ?", (id,))
                size -= row_size
        self.size = size

    # -- reading

    def books(self) -> dict[str, Any] | None:
        """The books that this attachment stored last."""
        found = self._db.execute(
            "SELECT plain FROM books WHERE attachment = ?", (self.attachment,)
        ).fetchone()
        return msgpack.unpackb(found[0]) if found else None

    def counts(self) -> Ints:
        """Events per kind of this attachment, counted from its rows."""
        rows = self._db.execute("SELECT counts FROM batch WHERE attachment = ?", (self.attachment,))
        return sum((_counts(blob) for (blob,) in rows), zeros())

    def in_outbox(self) -> Ints:
        """For an outbox that no sink works over: what waits in it."""
        return self.counts()

    def settled(self) -> Outcome:
        """What became of the events of this attachment that left."""
        found = Outcome(zeros())
        rows = self._db.execute(
            "SELECT term, stage, reason, counts FROM settled WHERE attachment = ?", (self.attachment,)
        )
        for term, stage, reason, blob in rows:
            counts = _counts(blob)
            found.add(
                Outcome(counts)
                if term == "acknowledged"
                else Outcome(zeros(), {(term, stage, reason): counts})
            )
        return found

    def last(self) -> int:
        """The id of the newest row; 0: there is none."""
        return int(self._db.execute("SELECT coalesce(max(id), 0) FROM batch").fetchone()[0])

    def is_empty(self) -> bool:
        """Whether no row is left."""
        return self.last() == 0

    def rows(self, after: int = 0, *, size: int = 8 << 20) -> list[Row]:
        """The next rows after an id, with their bodies: one if there is one, then more up to `size` bytes."""
        found: list[Row] = []
        cursor = self._db.execute(f"SELECT {SUMMARY}, body FROM batch WHERE id > ? ORDER BY id", (after,))
        for id, first, last, records, row_size, counts, body in cursor:
            found.append(Row(id, first, last, records, row_size, _counts(counts), body))
            size -= row_size
            if size <= 0:
                break
        cursor.close()
        return found

    def before_last(self, records: int) -> int:
        """The id after which at least the newest `records` records stand (all, if there are fewer)."""
        for id, count in self._db.execute("SELECT id, records FROM batch ORDER BY id DESC"):
            if records <= 0:
                return int(id)
            records -= count
        return 0

    def before_time(self, since: int) -> int:
        """The id after which every event of time `since` (ns) or later stands."""
        found = self._db.execute("SELECT min(id) FROM batch WHERE last >= ?", (since,)).fetchone()[0]
        return self.last() if found is None else int(found) - 1


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """BEGIN … COMMIT; whatever goes wrong rolls all of it back. What may pass by itself is a BlockedError."""
    try:
        db.execute("BEGIN IMMEDIATE")
        yield db
        db.execute("COMMIT")
    except sqlite3.Error as error:
        if db.in_transaction:
            db.execute("ROLLBACK")
        if error.sqlite_errorcode & 0xFF in PASSING:
            raise BlockedError(str(error)) from error
        raise


def _blob(counts: Ints) -> bytes:
    return counts.astype("<i8").tobytes()


def _counts(blob: bytes) -> Ints:
    return np.frombuffer(blob, "<i8").astype(np.int64)
