"""What reads stored records: the contract between sources/topic.py, sources/log.py and those downstream."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol

import msgpack

from pipeline.notices import identity

__all__ = ["Picked", "Record", "Seen", "Source", "Window"]

GENERATION: Final = 1 << 17
"""Records that `Seen` remembers at least: more than pinned rings and outbox have under way."""


@dataclass(frozen=True)
class Record:
    """One stored record, as it is stored."""

    family: str
    key: bytes
    value: bytes
    stamp: int
    """ms since the epoch, as the place keeps it; what counts is `time`."""
    place: str
    """Where it was read, for eyes: "process/3@1207"."""

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The record decoded; empty where the value is no record."""
        try:
            fields = msgpack.unpackb(self.value, strict_map_key=False)
        except (ValueError, TypeError, msgpack.UnpackException):
            return {}
        return fields if isinstance(fields, dict) else {}

    @property
    def time(self) -> int:
        """ns since the epoch: the event's own time."""
        time = self.fields.get("time")
        return time if isinstance(time, int) else self.stamp * 1_000_000


@dataclass(frozen=True, slots=True)
class Window:
    """Which records to read."""

    since: int | None = None
    """ns since the epoch, included."""
    until: int | None = None
    """ns since the epoch, not included."""
    last: int | None = None
    """Only the newest so many (of those that stand there now)."""
    follow: bool = False
    """Go on with what comes later; else stop at the end seen at the start."""
    without: tuple[str, ...] = ()
    """Families that are left out."""

    def has(self, record: Record) -> bool:
        """Whether a record is wanted."""
        if record.family in self.without:
            return False
        if self.since is None and self.until is None:
            return True
        time = record.time
        return (self.since is None or time >= self.since) and (self.until is None or time < self.until)


class Source(Protocol):
    """A place that holds records."""

    def batches(self, window: Window) -> AbstractAsyncContextManager[AsyncIterable[list[Record]]]:
        """Records in order of time (each process's in its own order), each event once.

        An empty list says: what stood there when reading began has come by.
        """
        ...


class Picked:
    """Picks what a window asks for out of all records that come by, each event once."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._seen = Seen()
        self._newest: deque[Record] = deque(maxlen=window.last)
        self.is_whole = window.last is None
        """Whether records are handed on at once: the newest ones that were asked for have been."""

    def take(self, records: Iterable[Record]) -> list[Record]:
        """Those of the records that go on now."""
        picked = [r for r in records if self._window.has(r) and r not in self._seen]
        if self.is_whole:
            return picked
        self._newest.extend(picked)
        return []

    def newest(self) -> list[Record]:
        """All that stood there has come by: the newest ones that were asked for, the first time."""
        found = list(self._newest)
        self._newest.clear()
        self.is_whole = True
        return found


class Seen:
    """Knows records that came before: at a seam, they are stored at least once, under the same id.

    Bounded: it forgets what came more than GENERATION records ago.
    """

    def __init__(self) -> None:
        self._new: set[tuple[Any, ...]] = set()
        self._old: set[tuple[Any, ...]] = set()

    def __contains__(self, record: Record) -> bool:
        """Whether the same came before; from now on it has."""
        event = identity(record.fields)
        if event is None:
            return False
        if event in self._new or event in self._old:
            return True
        if len(self._new) >= GENERATION:
            self._old, self._new = self._new, set()
        self._new.add(event)
        return False
