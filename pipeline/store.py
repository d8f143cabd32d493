"""A durable queue of batches in one SQLite file: what the local log and the outbox are made of.

A row holds a batch, not a record. The books of a checkpoint go in with the rows that they count, in one
transaction; so does what becomes of rows that leave. After a SIGKILL the file therefore says exactly what
happened. Everything here blocks: callers under trio use a thread, one call at a time.

A file can be damaged, or be taken away. Whatever is asked of it then raises BrokenError, and `renew` begins a
new one with what can be saved (salvage.py).

Books belong to an *attachment*: one life of the kernel's counters, from an attach to a detach or a reboot.
Rows outlive it, and are counted under the attachment that made them.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pipeline import salvage
from pipeline.event import Encoded, Ints
from pipeline.ledger import Books, Tally, zeros
from pipeline.store_books import (
    CORRUPT,
    DROPPED,
    book,
    inside,
    keep_books,
    lost,
    miss,
    reconcile,
    tell,
)
from pipeline.store_file import BlockedError, BrokenError, StoreError, connect, judged, transaction
from pipeline.store_reads import Reading
from pipeline.store_row import HIGHEST, SMALL, SUMMARY, Outcome, Row, insert, read, restore, small

__all__ = [
    "LOG",
    "OUTBOX",
    "BlockedError",
    "BrokenError",
    "Outcome",
    "Row",
    "Store",
    "StoreError",
    "no_warning",
]

LOG: Final = "log.db"
OUTBOX: Final = "outbox.db"
"""Names in a state folder."""


def no_warning(text: str) -> None:
    """For who has nobody to warn."""


class Store(Reading):
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
        """Open the file. `make`: begin one where there is none, renew a corrupt one with a warning.

        Raises StoreError.
        """
        self.path, self.attachment, self.limit, self._warn = path, attachment, limit, warn
        if not make and not path.exists():
            raise StoreError(f"{path.parent} holds no {path.name}; name the state folder of a `run`")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if make and salvage.is_finished(path):  # who made it was killed
                salvage.put_in_place(path)
            try:
                self._open()
            except BrokenError as error:
                if not make:
                    raise
                self._db = connect(path, setup=False)
                self.renew(f"{path} {error}")
        except (OSError, sqlite3.Error, BlockedError, BrokenError) as error:
            raise StoreError(
                f"{path} cannot be used ({error}); make its folder writable, or name another"
            ) from None

    def _open(self) -> None:
        db = connect(self.path)
        try:
            with judged():
                # Reads every row's first page: enough to see a file that is not ours, or torn.
                self.number, self.size = _extent(db)
                for table in SMALL:
                    deque(small(db, table), maxlen=0)
                if db.execute("SELECT 1 FROM sqlite_sequence WHERE seq > ?", (HIGHEST,)).fetchone():
                    raise BrokenError("is corrupt (in its rows' ids)")
        except BaseException:
            db.close()
            raise
        self._db, self._watch = db, salvage.Watch(self.path)

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._asking() as db, transaction(db):
            yield db

    @property
    def is_empty(self) -> bool:
        """Whether no row is left."""
        return self.number == 0

    # -- writing: each raises BlockedError and BrokenError, and has changed nothing then

    def append(self, batches: Sequence[Encoded], books: Mapping[str, Any] | None = None) -> list[int]:
        """Add batches, and the books that count them, in one transaction; return the rows' ids."""
        with self._changing() as db:
            added = [insert(db, self.attachment, batch) for batch in batches]
            if books is not None:
                keep_books(db, self.attachment, books)
        self.size += sum(size for _, size in added)
        self.number += len(added)
        return [id for id, _ in added]

    def settle(self, outcomes: Mapping[int, Outcome]) -> Outcome:
        """Take rows out and book what became of their events, in one transaction. Returns that, of this
        attachment. A row that is not there any more was booked as lost before.
        """
        ask = f"SELECT {SUMMARY} FROM batch WHERE id = ?"
        with self._changing() as db:
            found = [values for id in outcomes if (values := db.execute(ask, (id,)).fetchone())]
            rows = [read(values) for values in found]
            own = self._leave(db, ((row, outcomes[row.id]) for row in rows))
        self._left(rows)
        return own

    def drop(self, after: int) -> Outcome:
        """Drop the oldest rows behind the id `after` until there is room again: lost, and to be told. What
        they tell of other losses stays, in their place.
        """
        rows: list[Row] = []
        with self._changing() as db:
            over, ask = self.size - self.limit, f"SELECT {SUMMARY}, body FROM batch WHERE id > ? ORDER BY id"
            for *values, body in db.execute(ask, (after,)):
                if over < 0:
                    break
                row = read(values, body)
                if not row.is_told:
                    rows.append(row)
                    over -= row.size
            own = self._lose(db, rows, DROPPED)
            kept = [(row, told) for row in rows if (told := row.told())]
            sizes = [insert(db, row.attachment, told, row.id)[1] for row, told in kept]
        self._left(rows)
        self.size += sum(sizes)
        self.number += len(sizes)
        return own

    def discard(self, row: Row) -> Outcome:
        """Take out a row that is not whole: kept apart in the same file, lost, and to be told. If it is not
        there any more, it was booked before.
        """
        keep = "INSERT INTO damaged SELECT id, attachment, body FROM batch WHERE id = ?"
        with self._changing() as db:
            if not db.execute(keep, (row.id,)).rowcount:
                return Outcome(zeros())
            own = self._lose(db, [row], CORRUPT)
        self._left([row])
        self._warn(f"{self.path}: a batch is corrupt and kept apart; its {row.records} events are lost")
        return own

    @property
    def is_over(self) -> bool:
        """Whether there is more than the limit allows."""
        return self.size > self.limit

    def trim(self) -> None:
        """Drop the oldest rows until what is left is within the limit; their pages are used again."""
        if not self.is_over:
            return
        size, number = self.size, self.number
        with self._changing() as db:
            first = "SELECT id, size FROM batch ORDER BY id LIMIT 1"
            while size > self.limit and (oldest := db.execute(first).fetchone()):
                db.execute("DELETE FROM batch WHERE id = ?", oldest[:1])
                size, number = size - oldest[1], number - 1
        self.size, self.number = size, number

    def forget(self, told: Iterable[int]) -> None:
        """These losses were told."""
        with self._changing() as db:
            db.executemany("DELETE FROM told WHERE id = ?", ((id,) for id in told))

    def _lose(self, db: sqlite3.Connection, rows: Sequence[Row], reason: str) -> Outcome:
        tell(db, [row for row in rows if row.counts.any()], reason)
        return self._leave(db, ((row, Outcome(zeros(), lost(reason, row.counts))) for row in rows))

    def _leave(self, db: sqlite3.Connection, outcomes: Iterable[tuple[Row, Outcome]]) -> Outcome:
        own = Outcome(zeros())
        for row, outcome in outcomes:
            book(db, row.attachment, outcome.tally)
            db.execute("DELETE FROM batch WHERE id = ?", (row.id,))
            if row.attachment == self.attachment:
                own.add(outcome)
        return own

    def _left(self, rows: Sequence[Row]) -> None:
        self.size -= sum(row.size for row in rows)
        self.number -= len(rows)

    # -- when it is damaged

    def renew(
        self,
        why: str,
        known: tuple[Ints, Outcome] | None = None,
        memory: Mapping[int, Encoded | Row] | None = None,
    ) -> Outcome:
        """Begin a new file with what can be saved of this one, and of its rows that are in `memory` still;
        the old one is kept beside it.

        `known` is what its user knows of this attachment: the events inside, and what became of others. What
        cannot be saved of those inside is lost, to be told, and returned. Raises BlockedError.
        """

        def amend(new: sqlite3.Connection) -> Tally:
            for id, what in (memory or {}).items():
                restore(new, self.attachment, id, what)
            return self._missing(new, known)

        old = self._db
        said, missing = salvage.renew(self.path, old, amend)
        self._open()
        old.close()
        gone = Outcome(zeros(), missing)
        self._warn(f"{why}: {said}" + (f", with {gone.events.sum()} events" if known else ""))
        return gone

    def _missing(self, new: sqlite3.Connection, known: tuple[Ints, Outcome] | None) -> Tally:
        if not known:
            return {}
        new.execute("DELETE FROM settled WHERE attachment = ?", (self.attachment,))
        book(new, self.attachment, known[1].tally)
        return miss(new, self.attachment, known[0] - inside(new, self.attachment))

    def reconcile(self, books: Books) -> None:
        """Compare an outbox with the books with which a run begins; what is missing is lost, and to be told.

        Raises StoreError.
        """
        try:
            try:
                missing = self._reconciled(books)
            except BrokenError as error:
                self.renew(str(error))
                missing = self._reconciled(books)
        except (BlockedError, BrokenError) as error:
            raise StoreError(f"{self.path} cannot be used ({error}); free some space") from None
        if missing.any():
            self._warn(f"{missing.sum()} events that were in {self.path} are not there any more: lost")

    def _reconciled(self, books: Books) -> Ints:
        with self._changing() as db:
            missing = reconcile(db, self.attachment, books)
            number, size = _extent(db)
        self.number, self.size = number, size
        return missing


def _extent(db: sqlite3.Connection) -> tuple[int, int]:
    """Rows, and the bytes of their bodies."""
    number, size = db.execute("SELECT count(*), coalesce(sum(size), 0) FROM batch").fetchone()
    return int(number), int(size)
