"""What a store's file says of events that left it, and of those that it lost. Below store.py.

Each function works inside a transaction of its caller's.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgpack
import numpy as np

from pipeline.chunk import ring_of
from pipeline.event import Ints, Loss
from pipeline.ledger import Books, Tally, add, zeros
from pipeline.store_file import BrokenError
from pipeline.store_row import SUMMARY, Row, blob, counts_of, mark_of, read, small

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
    db.execute("REPLACE INTO books VALUES (?, ?, ?)", (attachment, plain, mark_of(attachment, plain)))


def read_books(db: sqlite3.Connection, attachment: str) -> dict[str, Any] | None:
    """The books that an attachment stored last; None: there are none that are whole."""
    try:
        found = next(small(db, "books", "WHERE attachment = ?", attachment), None)
    except BrokenError:
        return None
    if not found:
        return None
    books: dict[str, Any] = msgpack.unpackb(found[-1])
    return books


def lost(reason: str, counts: Ints) -> Tally:
    """Events that the outbox lost."""
    return {("lost", "outbox", reason): counts}


def book(db: sqlite3.Connection, attachment: str, tally: Tally) -> None:
    """Events left: add them to what is known of such. Raises BrokenError."""
    known = settled(db, attachment)
    for key, counts in tally.items():
        row = (attachment, *key, blob(known.get(key, zeros()) + counts))
        db.execute("REPLACE INTO settled VALUES (?, ?, ?, ?, ?, ?)", (*row, mark_of(*row)))


def settled(db: sqlite3.Connection, attachment: str) -> Tally:
    """What became of the events of an attachment that left. Raises BrokenError."""
    rows = small(db, "settled", "WHERE attachment = ?", attachment)
    return {(term, stage, reason): counts_of(counts) for _, _, term, stage, reason, counts in rows}


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
    """Losses that are to be told: id → attachment and loss. Raises BrokenError."""
    found = {}
    for id, attachment, plain in small(db, "told", "ORDER BY id"):
        kinds, since, until, stage, reason, spans = msgpack.unpackb(plain)
        ends = tuple((first, last) for first, last in spans)
        found[id] = (attachment, Loss(np.array(kinds, np.int64), since, until, stage, reason, ends))
    return found


def _keep(db: sqlite3.Connection, attachment: str, loss: Loss) -> None:
    values = (loss.kinds.tolist(), loss.since, loss.until, loss.stage, loss.reason, loss.spans)
    row = (attachment, msgpack.packb(values))
    db.execute("INSERT INTO told (attachment, plain, mark) VALUES (?, ?, ?)", (*row, mark_of(*row)))


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
    is lost. What left by these books and is there again (what took it out was cut off) leaves once more.
    Returns what is lost; the books then say what the file does. Raises BrokenError.
    """
    # What came in after these books were written stands in its ring still, and will come again.
    db.execute("DELETE FROM batch WHERE attachment = ? AND passage > ?", (attachment, books.number))
    left, known, there = settled(db, attachment), books.left, inside(db, attachment)
    for key in left.keys() | known.keys():
        left[key] = np.maximum(left.get(key, 0), known.get(key, 0))
    if (sum(left.values(), there) > books.spilled).any():  # the file says what cannot be
        left = dict(known)
    again = np.maximum(sum(left.values(), there) - books.spilled, 0)
    for key in sorted(left):  # what was acknowledged before what was lost
        returns = np.minimum(left[key], again)
        left[key], again = left[key] - returns, again - returns
    db.execute("DELETE FROM settled WHERE attachment = ?", (attachment,))
    book(db, attachment, left)
    missing: Ints = np.maximum(books.spilled - sum(left.values(), there), 0)
    add(left, miss(db, attachment, missing))
    books.left = left
    return missing
