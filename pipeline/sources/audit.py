"""The audit source: the kernel's audit records, joined by serial, into ring 1022.

    a wire (wires.py): records → Serials: events → OwnRing.put → rings.py

Records are kept as the kernel wrote them; only who did it is read out of them here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from pipeline.audit_text import plain
from pipeline.audit_types import EXECVE, SYSCALL
from pipeline.kernel.own_ring import OwnRing
from pipeline.schema import by_name
from pipeline.sources.feeds import unwanted
from pipeline.sources.serials import Joined, Serials
from pipeline.sources.wires import Wire

__all__ = ["Audit", "Who", "who_did"]

LOOK: Final = 1_000_000_000
"""ns between two looks at which numbers are missing: longer than records can overtake each other."""
LAST: Final = 64
"""Looks at the wire when nobody will ask again: all that a socket holds, and an end though more may come."""
COARSE: Final = 11_000_000
"""ns that an audit time can be too early: its clock ticks, and it is cut to 1 ms."""
_PARENT: Final = {"parent_start", "parent_exec_id"}
MOST: Final = (1 << 32) - 1
_WHO: Final = re.compile(rb" (pid|ppid|uid|gid)=(\d{1,10})(?!\S)")
_COMM: Final = re.compile(rb" comm=(\S+)")
_NAMES: Final = {b"pid": "pid", b"ppid": "parent_pid", b"uid": "uid", b"gid": "gid"}
_SAID: Final = b" msg='"
"""From here on a program of user space speaks."""

Values = Mapping[str, int | bytes]
Who = Callable[[int, int], Values | None]
"""(pid, time) → what else is known of a process: fields of the common block; None: it is one of ours."""


class Audit:
    """The feed (feeds.py) of audit events."""

    def __init__(
        self,
        ring: OwnRing,
        wire: Wire,
        who: Who,
        now: int,
        uids: Collection[int] = (),
        cgroups: Collection[int] = (),
    ) -> None:
        """Listen from `now` on (ns since boot). `uids`, `cgroups`: those asked for; empty: all."""
        self._ring, self._wire, self._who = ring, wire, who
        self._uids, self._cgroups = uids, cgroups
        self._serials = Serials()
        self._schema = by_name()["audit"]
        self._looked = now
        self._left: int | None = None
        """Nothing on the wire is earlier; None: nothing is there."""
        if not wire.keeps:
            ring.opened(now)
            ring.publish(now)

    @property
    def descriptors(self) -> Sequence[int]:
        """The wire's."""
        return (self._wire.descriptor,)

    @property
    def waits(self) -> bool:
        """An event is open, or a number missing that may still come."""
        return self._wire.more or not self._serials.settled

    @property
    def oldest(self) -> int | None:
        """Of an event that is open, or of what this look left on the wire."""
        first = self._serials.oldest
        return min((time for time in (first and first.time, self._left) if time is not None), default=None)

    def listen(self, on: bool) -> None:
        """The wire wakes whoever waits on it, and nobody else."""

    def pump(self, now: int, *, beat: bool = False, last: bool = False) -> None:
        """Take what came, and put the events that are over; of the `last` call, all that are open."""
        looks = LAST if last else 1
        received = 0
        while looks and (taken := self._take(now)):
            received += taken
            looks -= 1
        self._put(self._serials.finish() if last else self._serials.expire(now))
        self._ring.book("received", received)
        if last or now >= self._looked + LOOK:
            missing = self._serials.missing()
            self._ring.book("lost", 0 if self._wire.keeps else missing)
            self._looked = now
        if beat or last:
            self._ring.book("lost", self._wire.lost())
        oldest = self.oldest
        # Whoever comes after us knows nothing of what is held back here.
        self._ring.publish(now if oldest is None else oldest)
        self._wire.release(self._serials.place)

    def close(self) -> None:
        """Listen no more."""
        self._wire.close()

    def _take(self, now: int) -> int:
        """One look at the wire; how many records there were."""
        taken, time = 0, now
        for record in self._wire.take(now):
            if record is None:
                self._serials.overran(now)
            else:
                taken, time = taken + 1, record.time
                self._put(self._serials.feed(record))
        self._left = min(time, now) if self._wire.more else None
        return taken

    def _put(self, events: Iterable[Joined]) -> None:
        for event in events:
            first, said = event.records[0], who_did(event)
            known = self._who(int(said["pid"]), first.time) if said else {}
            process = None if known is None else self._merged(event, known, said)
            reason = unwanted(process, self._uids, self._cgroups)
            if process is None or reason:
                self._ring.filter(self._schema, reason or "self")
                continue
            values = {
                **process,
                "audit_time": event.audit_time,
                "serial": event.serial,
                "records_count": len(event.records),
                "type": first.type,
            }
            beginnings = () if event.whole else ("records",)
            self._ring.put(self._schema, values, {"records": event.text}, first.time, beginnings=beginnings)

    def _merged(self, event: Joined, known: Values, said: Values) -> Values:
        """What is known of a process, and what its records say: that counts."""
        merged = {**known, **said}
        if "parent_pid" in said and said["parent_pid"] != known.get("parent_pid"):  # it has another by now
            for name in _PARENT - said.keys():
                merged.pop(name, None)
        if "exec_id" in known.keys() - said.keys() and not self._is_same_program(event, known, said):
            del merged["exec_id"]
        return merged

    def _is_same_program(self, event: Joined, known: Values, said: Values) -> bool:
        """Whether the process ran the program that is known for when the records came, also before that, when
        they were written.
        """
        if any(record.type == EXECVE for record in event.records):
            return True
        if said.get("comm") == bytes(known.get("comm", b"")).rstrip(b"\0"):
            return True
        written = event.audit_time - time.time_ns() + time.clock_gettime_ns(time.CLOCK_BOOTTIME) - COARSE
        earlier = self._who(int(said["pid"]), max(written, int(known.get("start", 0)))) or {}
        return earlier.get("exec_id") == known.get("exec_id")


def who_did(event: Joined) -> dict[str, int | bytes]:
    """Fields of the common block: what the record of the system call says, else the first that names a
    process, and what the kernel side read when that process wrote it.
    """
    for record in sorted(event.records, key=lambda record: record.type != SYSCALL):
        ours = record.text.partition(_SAID)[0]
        numbers = {_NAMES[key]: int(value) & MOST for key, value in _WHO.findall(ours)}
        if "pid" in numbers:
            comm = _COMM.search(ours)
            name = {"comm": plain(comm[1], encoded=True) or b""} if comm else {}
            read = record.who if record.who.get("pid") == numbers["pid"] else {}
            return {**read, **numbers, **name}
    return {}
