"""What a store's file says of events that left it, and of those that it lost. Below store.py.

Each function works inside a transaction of its caller's.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgpack
import numpy as np

from pipeline.chunk import ring_of
from pipeline.event import Ints, Loss
from pipeline.ledger import Books, Tally, zeros
from pipeline.store_file import SUMMARY, Row, blob, counts_of, read

__all__ = [
    "CORRUPT",
    "DROPPED",
    "book",
    "inside",
    "keep_books",
    "losses",
    "lost",
    "miss",
    "read_books",
    "reconcile",
    "settled",
    "tell",
]

CORRUPT: Final = "corrupt"
DROPPED: Final = "dropped"
"""Reasons for which the outbox loses events."""


def keep_books(db: sqlite3.Connection, attachment: str, books: Mapping[str, Any]) -> None:
    """Store the books of a checkpoint in the place of the last ones."""
    plain = msgpack.packb(books)
    db.execute("REPLACE INTO books VALUES (?, ?, ?)", (attachment, plain, zlib.crc32(plain)))


def read_books(db: sqlite3.Connection, attachment: str) -> dict[str, Any] | None:
    """The books that an attachment stored last; None: there are none that are whole."""
    found = db.execute("SELECT plain, crc FROM books WHERE attachment = ?", (attachment,)).fetchone()
    if not found or found[1] not in (None, zlib.crc32(found[0])):
        return None
    books: dict[str, Any] = msgpack.unpackb(found[0])
    return books


def lost(reason: str, counts: Ints) -> Tally:
    """Events that the outbox lost."""
    return {("lost", "outbox", reason): counts}


def book(db: sqlite3.Connection, attachment: str, tally: Tally) -> None:
    """Events left: add them to what is known of such."""
    for key, counts in tally.items():
        where = (attachment, *key)
        known = db.execute(
            "SELECT counts FROM settled WHERE attachment = ? AND term = ? AND stage = ? AND reason = ?", where
        ).fetchone()
        total = counts + counts_of(known[0]) if known else counts
        db.execute("REPLACE INTO settled VALUES (?, ?, ?, ?, ?)", (*where, blob(total)))


def settled(db: sqlite3.Connection, attachment: str) -> Tally:
    """What became of the events of an attachment that left."""
    rows = db.execute("SELECT term, stage, reason, counts FROM settled WHERE attachment = ?", (attachment,))
    return {(term, stage, reason): counts_of(counts) for term, stage, reason, counts in rows}


def inside(db: sqlite3.Connection, attachment: str) -> Ints:
    """Events per kind of an attachment, counted from its rows. Raises BrokenError."""
    rows = db.execute(f"SELECT {SUMMARY} FROM batch WHERE attachment = ?", (attachment,))
    return sum((read(values).counts for values in rows), zeros())


def tell(db: sqlite3.Connection, rows: Sequence[Row], reason: str) -> None:
    """Rows are lost: keep that, one loss for each attachment, until it is told in the stream."""
    for attachment in {row.attachment for row in rows}:
        some = [row for row in rows if row.attachment == attachment]
        ends: dict[int, tuple[int, int]] = {}
        for first, last in (span for row in some for span in row.spans):
            known = ends.get(ring_of(first), (first, last))
            ends[ring_of(first)] = (min(first, known[0]), max(last, known[1]))
        since, until = min(row.first for row in some), max(row.last for row in some)
        kinds = sum((row.counts for row in some), zeros())
        _keep(db, attachment, Loss(kinds, since, until, "outbox", reason, tuple(ends.values())))


def losses(db: sqlite3.Connection) -> dict[int, tuple[str, Loss]]:
    """Losses that are to be told: id → attachment and loss."""
    found = {}
    for id, attachment, plain in db.execute("SELECT id, attachment, plain FROM told ORDER BY id"):
        kinds, since, until, stage, reason, spans = msgpack.unpackb(plain)
        ends = tuple((first, last) for first, last in spans)
        found[id] = (attachment, Loss(np.array(kinds, np.int64), since, until, stage, reason, ends))
    return found


def _keep(db: sqlite3.Connection, attachment: str, loss: Loss) -> None:
    plain = (loss.kinds.tolist(), loss.since, loss.until, loss.stage, loss.reason, loss.spans)
    db.execute("INSERT INTO told (attachment, plain) VALUES (?, ?)", (attachment, msgpack.packb(plain)))


def miss(db: sqlite3.Connection, attachment: str, missing: Ints) -> Tally:
    """Events are not there, and nobody can say more of them: book that, and keep it to be told."""
    if not missing.any():
        return {}
    booked = lost(CORRUPT, missing)
    book(db, attachment, booked)
    _keep(db, attachment, Loss(missing, 0, time.time_ns(), "outbox", CORRUPT))
    return booked


def reconcile(db: sqlite3.Connection, attachment: str, books: Books) -> Ints:
    """Compare an outbox with the books with which a run begins: what went in, and neither left nor is there,
    is lost. Returns that. Raises BrokenError.
    """
    # What came in after these books were written stands in its ring still, and will come again.
    db.execute("DELETE FROM batch WHERE attachment = ? AND passage > ?", (attachment, books.number))
    left, known, there = settled(db, attachment), books.left, inside(db, attachment)
    for key in left.keys() | known.keys():
        left[key] = np.maximum(left.get(key, 0), known.get(key, 0))
    if (sum(left.values(), there) > books.spilled).any():  # the file says what cannot be
        left = dict(known)
    db.execute("DELETE FROM settled WHERE attachment = ?", (attachment,))
    book(db, attachment, left)
    missing: Ints = np.maximum(books.spilled - sum(left.values(), there), 0)
    miss(db, attachment, missing)
    return missing
