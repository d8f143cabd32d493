"""What the file of a store looks like: its tables, its rows and their checks, and what SQLite's errors mean.

Below store.py and salvage.py. SQLite sees what damages its own structure, not a bit that turns over inside
a value: so every row carries a CRC-32 of what is in it (`mark`), and a batch another one of its body, which
is looked at later. A body is compressed: records of one batch are much alike, and an outbox costs what it
writes (three times as fast).
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import lz4.frame
import msgpack
import numpy as np

from pipeline.errors import UserError
from pipeline.event import Encoded, Ints, Passage, Records
from pipeline.ledger import Tally, add, zeros
from pipeline.notices import LOSS

__all__ = [
    "ACKNOWLEDGED",
    "HIGHEST",
    "SMALL",
    "SUMMARY",
    "WAL",
    "BlockedError",
    "BrokenError",
    "Outcome",
    "Row",
    "StoreError",
    "blob",
    "connect",
    "counts_of",
    "insert",
    "judged",
    "mark_of",
    "read",
    "restore",
    "small",
    "transaction",
]

# Pages of 16 KiB: a row takes two to a dozen; larger ones cost small batches a quarter of their rate, smaller
# ones large batches as much. A short WAL: a bit that turns over in it costs all that comes behind.
WAL: Final = 32 << 20
"""Bytes to which SQLite may cut a WAL that was longer."""
SETUP: Final = f"""
PRAGMA page_size = 16384;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA wal_autocheckpoint = 256;
PRAGMA journal_size_limit = {WAL};
CREATE TABLE IF NOT EXISTS batch (
    id INTEGER PRIMARY KEY AUTOINCREMENT, attachment TEXT, passage INTEGER, first INTEGER, last INTEGER,
    records INTEGER, size INTEGER, counts BLOB, spans BLOB, crc INTEGER, mark INTEGER, body BLOB);
CREATE INDEX IF NOT EXISTS batch_last ON batch (last);
CREATE TABLE IF NOT EXISTS books (attachment TEXT PRIMARY KEY, plain BLOB, mark INTEGER);
CREATE TABLE IF NOT EXISTS settled (
    attachment TEXT, term TEXT, stage TEXT, reason TEXT, counts BLOB, mark INTEGER,
    PRIMARY KEY (attachment, term, stage, reason));
CREATE TABLE IF NOT EXISTS told (
    id INTEGER PRIMARY KEY AUTOINCREMENT, attachment TEXT, plain BLOB, mark INTEGER);
CREATE TABLE IF NOT EXISTS damaged (id INTEGER, attachment TEXT, body BLOB);
"""
HIGHEST: Final = 1 << 48
"""No file ever counted its rows that far: an id above it is damage."""
SMALL: Final = {
    "books": "attachment, plain",
    "settled": "attachment, term, stage, reason, counts",
    "told": "attachment, plain",
}
"""Tables beside the batches, and the columns that a row's mark is of."""
MARKED: Final = ("attachment", "passage", "first", "last", "records", "size", "counts", "spans", "crc")
SUMMARY: Final = ", ".join(("id", *MARKED, "mark"))
"""The columns of a row, without its body."""
PASSING: Final = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_NOMEM,
)
BROKEN: Final = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_FORMAT,
    # What we ask is always right, and small: the tables are not ours any more.
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
)


ACKNOWLEDGED: Final = ("acknowledged", "", "")


class StoreError(UserError):
    """The file cannot be used at all (folder not writable, locked by another)."""


class BlockedError(Exception):
    """Nothing was stored, trying again later may succeed: the disk is full, or another process writes."""


class BrokenError(UserError):
    """The file is corrupt, or it is no longer where it was: nothing more can be trusted to it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a row that leaves the outbox."""

    acknowledged: Ints
    lost: Tally = field(default_factory=dict)

    def add(self, other: Outcome) -> None:
        """Take another one's events in."""
        np.add(self.acknowledged, other.acknowledged, out=self.acknowledged)
        add(self.lost, other.lost)

    @property
    def tally(self) -> Tally:
        """All of it, by term, stage and reason."""
        return {ACKNOWLEDGED: self.acknowledged, **self.lost}

    @property
    def events(self) -> Ints:
        """All its events, per kind."""
        return sum(self.lost.values(), self.acknowledged)


@dataclass(frozen=True, slots=True)
class Row:
    """One batch as it is stored."""

    id: int
    attachment: str
    passage: int
    first: int
    last: int
    """First and last time of an event, ns since the epoch."""
    records: int
    size: int
    """Bytes that its body takes in the file."""
    counts: Ints
    """Events per kind number."""
    spans: tuple[tuple[int, int], ...]
    """See Encoded."""
    body: bytes = b""
    whole: bool = True
    """False: the body is not what was stored."""

    def unpack(self) -> dict[str, Records]:
        """Family → records, as they were put in."""
        return {family: Records(*columns) for family, columns in msgpack.unpackb(self.body).items()}

    @property
    def is_told(self) -> bool:
        """Whether it holds nothing but loss records."""
        return self.whole and not self.counts.any() and self.unpack().keys() == {LOSS}

    def told(self) -> Encoded | None:
        """Its loss records alone; None: it has none."""
        found = self.unpack().get(LOSS) if self.whole else None
        passage = Passage(self.passage, {})
        return Encoded({LOSS: found}, zeros(), passage, (self.first, self.last)) if found else None


def connect(path: Path, *, setup: bool = True) -> sqlite3.Connection:
    """Open a file, or begin one. `setup`: make sure of its tables. Raises BlockedError, BrokenError."""
    with judged():
        db = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    try:
        with judged():
            if setup:
                db.executescript(SETUP)
    except BaseException:
        db.close()
        raise
    return db


def insert(db: sqlite3.Connection, attachment: str, batch: Encoded, id: int | None = None) -> tuple[int, int]:
    """Add a batch, under a new id unless it is given; id and size of its row."""
    plain = msgpack.packb({f: (r.keys, r.values, r.times) for f, r in batch.records.items()})
    body = lz4.frame.compress(plain)
    values = (
        attachment,
        batch.passage.number,
        *batch.time,
        int(batch.counts.sum()),  # notices are not what is asked for by number
        len(body),
        blob(batch.counts),
        msgpack.packb(batch.spans),
        zlib.crc32(body),
    )
    cursor = db.execute(
        f"INSERT INTO batch (id, {', '.join(MARKED)}, mark, body) VALUES ({'?, ' * len(MARKED)}?, ?, ?)",
        (id, *values, mark_of(*values), body),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid, len(body)


def read(values: Sequence[Any], body: Any = None) -> Row:
    """The row of a SUMMARY. Raises BrokenError when that is not what was stored; for a body see `whole`."""
    id, *marked, mark = values
    attachment, passage, first, last, records, size, counts, spans, crc = marked
    if mark != mark_of(*marked):
        raise BrokenError(f"row {id} is corrupt")
    whole = body is None or (isinstance(body, bytes) and zlib.crc32(body) == crc)
    return Row(
        id,
        attachment,
        passage,
        first,
        last,
        records,
        size,
        counts_of(counts),
        tuple((a, b) for a, b in msgpack.unpackb(spans)),
        lz4.frame.decompress(body) if body and whole else b"",
        whole,
    )


def restore(db: sqlite3.Connection, attachment: str, id: int, what: Encoded | Row) -> None:
    """Put a row in again, unless it is there. `attachment`: whose a batch is that is no row yet."""
    if db.execute("SELECT 1 FROM batch WHERE id = ?", (id,)).fetchone():
        return
    if isinstance(what, Row):
        attachment = what.attachment
        passage = Passage(what.passage, {})
        what = Encoded(what.unpack(), what.counts, passage, (what.first, what.last), what.spans)
    insert(db, attachment, what, id)


def mark_of(*values: Any) -> int:
    """The CRC-32 of a row's values."""
    return zlib.crc32(msgpack.packb(values))


def small(db: sqlite3.Connection, table: str, where: str = "", *given: Any) -> Iterator[list[Any]]:
    """Rows of one of SMALL: rowid, and its columns. Raises BrokenError at one that is not what was stored."""
    for id, *values, mark in db.execute(f"SELECT rowid, {SMALL[table]}, mark FROM {table} {where}", given):
        if mark != mark_of(*values):
            raise BrokenError(f"is corrupt (in {table})")
        yield [id, *values]


@contextmanager
def judged() -> Iterator[None]:
    """Turn SQLite's errors into BlockedError and BrokenError."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)  # without: text that is none
        if code & 0xFF in BROKEN or code == sqlite3.SQLITE_IOERR_SHORT_READ:
            raise BrokenError(f"is corrupt ({error})") from error
        if code & 0xFF in PASSING:
            raise BlockedError(str(error)) from error
        raise
    except UnicodeDecodeError as error:  # names that SQLite cites in an error, as the file has them now
        raise BrokenError("is corrupt (its tables' names are no text)") from error


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """BEGIN … COMMIT; whatever goes wrong rolls all of it back. Raises BlockedError, BrokenError."""
    try:
        with judged():
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
    finally:
        if db.in_transaction:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")


def blob(counts: Ints) -> bytes:
    """Events per kind, as they are stored."""
    return counts.astype("<i8").tobytes()


def counts_of(stored: bytes) -> Ints:
    """What `blob` stored."""
    return np.frombuffer(stored, "<i8").astype(np.int64)
