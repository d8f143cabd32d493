"""The audit source: the kernel's audit records, joined by serial, into ring 1022.

    netlink multicast (kernel/netlink.py) → Serials → OwnRing.put → rings.py

Records are kept as the kernel wrote them; only who did it is read out of them here. It listens beside a
running auditd: what finds no room in the socket is lost, and known by the serials that never come.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from pipeline.audit_text import plain
from pipeline.audit_types import SYSCALL
from pipeline.kernel import netlink
from pipeline.kernel.own_ring import OwnRing
from pipeline.schema import by_name
from pipeline.sources.serials import Joined, Serials

__all__ = ["Audit", "who_did"]

BUFFER: Final = 16 << 20
"""Bytes of records that may wait in the socket."""
LARGEST: Final = 16384
"""Bytes of a message; the kernel's longest are about 9,000."""
BATCH: Final = 2048
"""Messages that one look takes."""
LOOK: Final = 1_000_000_000
"""ns between two looks at what was lost."""
_WHO: Final = re.compile(rb" (pid|ppid|uid|gid)=(\d{1,10})(?!\S)")
_COMM: Final = re.compile(rb" comm=(\S+)")
_NAMES: Final = {b"pid": "pid", b"ppid": "parent_pid", b"uid": "uid", b"gid": "gid"}
MOST: Final = (1 << 32) - 1
_SAID: Final = b" msg='"
"""From here on a program of user space speaks."""

Who = Callable[[int, int], Mapping[str, int | bytes] | None]
"""(pid, time) → what else is known of a process: fields of the common block; None: it is one of ours."""


class Audit:
    """The feed (feeds.py) of audit events."""

    def __init__(self, ring: OwnRing, who: Who, now: int) -> None:
        """Listen from `now` on (ns since boot). OSError carries the kernel's answer."""
        self._listener = netlink.listen(BUFFER)
        self._ring, self._who = ring, who
        self._serials = Serials()
        self._schema = by_name()["audit"]
        self._more = False
        self._looked = now
        self._lost = _lost()
        ring.opened(now)
        ring.publish(now)

    @property
    def descriptors(self) -> Sequence[int]:
        """The socket's."""
        return (self._listener.fileno(),)

    @property
    def waits(self) -> bool:
        """An event is open, or a number missing that may still come."""
        return self._more or not self._serials.settled

    def listen(self, on: bool) -> None:
        """The socket wakes whoever waits on it, and nobody else."""

    def pump(self, now: int, *, last: bool = False) -> None:
        """Take what came, and put the events that are over; of the `last` call, all that are open."""
        self._take(now)
        self._put(self._serials.finish() if last else self._serials.expire(now))
        if last or now >= self._looked + LOOK:
            self._look(now)
        oldest = self._serials.oldest
        # Whoever comes after us knows nothing of events that are still open here.
        self._ring.publish(now if oldest is None else oldest)

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()

    def _take(self, now: int) -> None:
        """Receive at most BATCH records."""
        receive, serials = self._listener.recv, self._serials
        received = 0
        self._more = True
        while received < BATCH:
            try:
                message = receive(LARGEST)
            except BlockingIOError:
                self._more = False
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                serials.overran(now)
                continue
            received += 1
            number = netlink.HEADER.unpack_from(message)[1]
            self._put(serials.feed(number, message[netlink.HEADER.size :], now))
        self._ring.book("received", received)

    def _look(self, now: int) -> None:
        """Book events whose numbers never came, and records that the kernel gave up before they had any."""
        lost = _lost()
        self._ring.book("lost", self._serials.missing() + max(lost - self._lost, 0))
        self._lost, self._looked = lost, now

    def _put(self, events: Iterable[Joined]) -> None:
        for event in events:
            said = who_did(event)
            known = self._who(int(said["pid"]), event.time) if said else {}
            if known is None:
                self._ring.filter(self._schema, "self")
                continue
            values = {
                **known,
                **said,
                "audit_time": event.audit_time,
                "serial": event.serial,
                "records_count": len(event.records),
                "type": event.records[0][0],
            }
            beginnings = () if event.whole else ("records",)
            self._ring.put(self._schema, values, {"records": event.text}, event.time, beginnings=beginnings)


def who_did(event: Joined) -> dict[str, int | bytes]:
    """Fields of the common block as the records give them: that of the system call, else the first that names
    a process.
    """
    for _, text in sorted(event.records, key=lambda record: record[0] != SYSCALL):
        ours = text.partition(_SAID)[0]
        numbers = {_NAMES[key]: int(value) & MOST for key, value in _WHO.findall(ours)}
        if "pid" in numbers:
            comm = _COMM.search(ours)
            return {**numbers, "comm": plain(comm[1], encoded=True) or b""} if comm else dict(numbers)
    return {}


def _lost() -> int:
    """Records that the kernel gave up since the boot; 0 where it is not ours to ask."""
    try:
        return netlink.status().lost
    except PermissionError:
        return 0
