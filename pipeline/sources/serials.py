"""Audit records into audit events: what has one time and one serial number belongs together. No I/O in here.

    records, as they come → feed … expire → Joined: complete, or said not to be

The records of a system call end with one of type EOE. Others come alone, only of some types is that known: so
an event that has no end yet waits for a while. Records of different serials come mixed. The kernel numbers
events without holes: a number that never comes is an event that was lost on the way.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

from pipeline.audit_types import EOE, SYSCALL

__all__ = ["EXPIRY", "TORN", "Joined", "Record", "Serials"]

EXPIRY: Final = 2_000_000_000
"""ns that an event may take; auditd's own patience."""
OPEN: Final = 4096
"""Events that may be open at once; beyond that the oldest goes."""
TORN: Final = 100_000_000
"""ns after an overrun until events that begin are whole again."""
_STAMP: Final = re.compile(rb"audit\((\d{1,12})\.(\d{3}):(\d{1,10})\): ?")
_SERIALS: Final = 1 << 32


class Record(NamedTuple):
    """One record, as the kernel wrote it."""

    type: int
    text: bytes
    """From `audit(TIME:SERIAL)` on."""
    time: int
    """When it came, ns since boot."""
    place: int = 0
    """Where it stands, in what it came from; of two records the later has the higher place."""
    who: Mapping[str, int | bytes] = MappingProxyType({})
    """Fields of the common block, where the kernel side read them as it was written."""


@dataclass(slots=True)
class Joined:
    """One event."""

    audit_time: int
    """ns since the epoch, to 1 ms, as the records say it; 0: they do not."""
    serial: int
    records: list[Record] = field(default_factory=list)
    """In order; the end (EOE) is not among them."""
    whole: bool = True
    """False: records can be missing. It did not end in time, or the socket overran meanwhile."""

    @property
    def text(self) -> bytes:
        """The promise `records`."""
        return b"".join(b"type=%d msg=%s\0" % record[:2] for record in self.records)


class Serials:
    """The events that are open, by serial."""

    def __init__(self, expiry: int = EXPIRY, limit: int = OPEN) -> None:
        self._expiry, self._limit = expiry, limit
        self._torn = 0
        self._open: OrderedDict[bytes, Joined] = OrderedDict()
        self._numbers = _Numbers(limit)

    @property
    def oldest(self) -> Record | None:
        """The first record of the oldest open event."""
        return next(iter(self._open.values())).records[0] if self._open else None

    @property
    def place(self) -> int | None:
        """Of all records of open events, the lowest."""
        return min((event.records[0].place for event in self._open.values()), default=None)

    @property
    def settled(self) -> bool:
        """No event is open, and of all numbers it is known whether they came."""
        return not self._open and self._numbers.certain

    def feed(self, record: Record) -> Iterator[Joined]:
        """Take a record; yields events that are over."""
        stamp = _STAMP.match(record.text)
        key = stamp[0] if stamp else b""
        event = self._open.get(key)
        if event is None:
            event = _begun(stamp)
            if stamp:
                self._numbers.take(event.serial)
            if record.type != EOE:
                self._open[key] = event
        event.whole &= record.time >= self._torn
        if record.type != EOE:
            event.records.append(record)
        if record.type == EOE or not stamp or _alone(record.type):
            self._open.pop(key, None)
            if event.records:
                yield event
        elif len(self._open) > self._limit:
            yield self._give_up()

    def overran(self, now: int) -> None:
        """Records were lost: some that would have come before now, or soon will not."""
        self._torn = now + TORN
        for event in self._open.values():
            event.whole = False

    def expire(self, now: int) -> Iterator[Joined]:
        """Events that took too long."""
        while (oldest := self.oldest) is not None and oldest.time + self._expiry <= now:
            yield self._give_up()

    def finish(self) -> Iterator[Joined]:
        """All that is open."""
        while self._open:
            yield self._give_up()

    def missing(self) -> int:
        """How many more events than at the last call are known to be lost. A number that is missing at two
        calls counts: let them lie as far apart as records can overtake each other.
        """
        return self._numbers.missing()

    def _give_up(self) -> Joined:
        _, event = self._open.popitem(last=False)
        # Outside of system calls each record is an event of its own, and no end is written.
        event.whole &= len(event.records) == 1 and event.records[0].type != SYSCALL
        return event


class _Numbers:
    """Which serials came. Those of the last `window` are remembered: an event can come in two pieces."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._recent: OrderedDict[int, None] = OrderedDict()
        self._first = self._highest = -1
        self._gaps = self._before = self._told = 0

    def take(self, serial: int) -> None:
        """This one came."""
        if serial in self._recent:
            return
        self._recent[serial] = None
        if len(self._recent) > self._window:
            self._recent.popitem(last=False)
        if self._first < 0:
            self._first = self._highest = serial
            return
        ahead = _distance(self._highest, serial)
        if ahead > 0:
            self._gaps += ahead - 1
            self._highest = serial
        elif -ahead < self._window and _distance(self._first, serial) > 0:
            self._gaps -= 1

    @property
    def certain(self) -> bool:
        """See Serials.settled."""
        return self._gaps == self._before

    def missing(self) -> int:
        """See Serials.missing."""
        known = min(self._before, self._gaps)
        self._before = self._gaps
        new = max(known - self._told, 0)
        self._told += new
        return new


def _begun(stamp: re.Match[bytes] | None) -> Joined:
    if stamp is None:
        return Joined(0, 0)
    return Joined(int(stamp[1]) * 10**9 + int(stamp[2]) * 10**6, int(stamp[3]) % _SERIALS)


def _alone(number: int) -> bool:
    """Messages of user space are one record each."""
    return 1100 <= number < 1300 or 2100 <= number < 3000


def _distance(start: int, end: int) -> int:
    """How far a serial is ahead of another: they start again after 2**32."""
    return (end - start + _SERIALS // 2) % _SERIALS - _SERIALS // 2
