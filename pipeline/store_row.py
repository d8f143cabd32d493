"""One row of a store: a batch with its check, and the small tables beside it. store_file.py has the file.

SQLite sees what damages its own structure, not a bit that turns over inside a value: so every row carries a
CRC-32 of what is in it (`mark`), and a batch another one of its body, which is looked at later. A body is
compressed: records of one batch are much alike, and an outbox costs what it writes (three times as fast).
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import lz4.frame
import msgpack
import numpy as np

from pipeline.event import Encoded, Ints, Passage, Records
from pipeline.ledger import Tally, add, zeros
from pipeline.notices import LOSS
from pipeline.store_file import BrokenError

__all__ = [
    "ACKNOWLEDGED",
    "HIGHEST",
    "SMALL",
    "SUMMARY",
    "Outcome",
    "Row",
    "blob",
    "counts_of",
    "insert",
    "mark_of",
    "read",
    "restore",
    "small",
]

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
ACKNOWLEDGED: Final = ("acknowledged", "", "")


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


def blob(counts: Ints) -> bytes:
    """Events per kind, as they are stored."""
    return counts.astype("<i8").tobytes()


def counts_of(stored: bytes) -> Ints:
    """What `blob` stored."""
    return np.frombuffer(stored, "<i8").astype(np.int64)
