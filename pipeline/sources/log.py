"""Reads the local log of a state folder, as sources/topic.py reads topics."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from heapq import merge
from pathlib import Path
from typing import Final

import trio

from pipeline.sources.source import Picked, Record, Window
from pipeline.store import LOG, Row, Store, StoreError

__all__ = ["LogSource"]

NAP: Final = 0.05
"""Seconds between two looks for new rows."""


class LogSource:
    """The log in a state folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOG

    @trio.as_safe_channel
    async def batches(self, window: Window) -> AsyncGenerator[list[Record], None]:
        """See Source. Raises StoreError where there is no log."""
        store = await trio.to_thread.run_sync(lambda: Store(self._path, make=False))
        try:
            end, after = store.last(), _start(store, window)
            picked, damaged = Picked(window), 0
            while True:
                rows = await trio.to_thread.run_sync(store.rows, after)
                for row in rows:
                    if row.id <= end or window.follow:
                        after = row.id
                        damaged += 0 if row.whole else row.records
                        if row.whole and (records := picked.take(_records(row))):
                            yield records
                if not rows or rows[-1].id >= end:
                    yield picked.newest()
                    if not window.follow:
                        if damaged:
                            raise StoreError(f"{self._path}: {damaged} damaged records were left out")
                        return
                if not rows:
                    await trio.sleep(NAP)
        finally:
            store.close()


def _start(store: Store, window: Window) -> int:
    """The id of the row after which to begin."""
    after = store.before_time(window.since) if window.since else 0
    if window.last is not None and window.until is None:
        after = max(after, store.before_last(window.last))
    return after


def _records(row: Row) -> Iterator[Record]:
    """A row's records, those of all families in order of time."""
    families = [
        [
            Record(family, key, value, stamp, f"{family}/{row.id}@{n}")
            for n, (key, value, stamp) in enumerate(zip(r.keys, r.values, r.times, strict=True))
        ]
        for family, r in row.unpack().items()
    ]
    return iter(families[0]) if len(families) == 1 else merge(*families, key=lambda record: record.time)
