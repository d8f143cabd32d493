"""What can be asked of a store's file. Below store.py."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.event import Ints, Loss
from pipeline.ledger import zeros
from pipeline.salvage import Watch
from pipeline.store_books import inside, losses, read_books, settled
from pipeline.store_file import BrokenError, judged
from pipeline.store_row import ACKNOWLEDGED, SUMMARY, Outcome, Row, read

__all__ = ["Reading"]


class Reading:
    """The half of a store that changes nothing. Every question raises BrokenError."""

    path: Path
    attachment: str
    _db: sqlite3.Connection
    _watch: Watch

    def close(self) -> None:
        """Give the file back."""
        self._db.close()

    @contextmanager
    def _asking(self) -> Iterator[sqlite3.Connection]:
        try:
            if trouble := self._watch.trouble():
                raise BrokenError(trouble)
            with judged():
                yield self._db
        except BrokenError as error:
            raise BrokenError(f"{self.path} {error}") from error

    def books(self) -> dict[str, Any] | None:
        """The books that this attachment stored last; None: there are none that are whole."""
        with self._asking() as db:
            return read_books(db, self.attachment)

    def counts(self) -> Ints:
        """Events per kind of this attachment, counted from its rows."""
        with self._asking() as db:
            return inside(db, self.attachment)

    def in_outbox(self) -> Ints:
        """For an outbox that no sink works over: what waits in it."""
        return self.counts()

    def settled(self) -> Outcome:
        """What became of the events of this attachment that left."""
        with self._asking() as db:
            found = settled(db, self.attachment)
        return Outcome(found.pop(ACKNOWLEDGED, zeros()), found)

    def losses(self) -> dict[int, tuple[str, Loss]]:
        """What is to be told, until `forget`: id → attachment and loss."""
        with self._asking() as db:
            return losses(db)

    def last(self) -> int:
        """The id of the newest row; 0: there is none."""
        with self._asking() as db:
            return int(db.execute("SELECT coalesce(max(id), 0) FROM batch").fetchone()[0])

    def rows(self, after: int = 0, *, size: int = 8 << 20) -> list[Row]:
        """The next rows after an id, with their bodies: one if there is one, then more up to `size` bytes, as
        they are in memory.
        """
        found: list[Row] = []
        with self._asking() as db:
            cursor = db.execute(f"SELECT {SUMMARY}, body FROM batch WHERE id > ? ORDER BY id", (after,))
            for *values, body in cursor:
                found.append(read(values, body))
                size -= max(found[-1].size, len(found[-1].body))
                if size <= 0:
                    break
            cursor.close()
        return found

    def before_last(self, records: int) -> int:
        """The id after which at least the newest `records` records stand (all, if there are fewer)."""
        with self._asking() as db:
            for id, count in db.execute("SELECT id, records FROM batch ORDER BY id DESC"):
                if records <= 0:
                    return int(id)
                records -= count
        return 0

    def before_time(self, since: int) -> int:
        """The id after which every event of time `since` (ns) or later stands."""
        with self._asking() as db:
            found = db.execute("SELECT min(id) FROM batch WHERE last >= ?", (since,)).fetchone()[0]
        return self.last() if found is None else int(found) - 1
