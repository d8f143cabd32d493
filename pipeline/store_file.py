"""What the file of a store looks like: its tables, its transactions, and what SQLite's errors mean.

Below store_row.py, store.py and salvage.py.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pipeline.errors import UserError

__all__ = [
    "WAL",
    "BlockedError",
    "BrokenError",
    "StoreError",
    "connect",
    "judged",
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


class StoreError(UserError):
    """The file cannot be used at all (folder not writable, locked by another)."""


class BlockedError(Exception):
    """Nothing was stored, trying again later may succeed: the disk is full, or another process writes."""


class BrokenError(UserError):
    """The file is corrupt, or it is no longer where it was: nothing more can be trusted to it."""


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
