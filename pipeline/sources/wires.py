"""The two ways by which audit records come, alike to audit.py.

Multicast   netlink (kernel/netlink.py): beside auditd; what finds no room in the socket is lost
Kept        a ring of BPF's (bpf/audit.c): records wait there until their event is in ring 1022
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final, Protocol

import numpy as np

from pipeline.chunk import AUDIT_RING, PAYLOAD, STRIDE
from pipeline.event import Array, Slice
from pipeline.kernel import netlink
from pipeline.kernel.ring import Ring, RingMemory
from pipeline.ledger import RingBooks
from pipeline.schema import COMMON, by_name
from pipeline.sources.serials import Record

__all__ = ["BATCH", "BUFFER", "Kept", "Multicast", "Wire"]

BUFFER: Final = 16 << 20
"""Bytes of records that may wait in the socket."""
LARGEST: Final = 16384
"""Bytes of a message; the kernel's longest are about 9,000."""
BATCH: Final = 2048
"""Messages, or chunks, that one look takes."""
PATIENCE: Final = 1_000_000_000
"""ns after which a record is not waited for whose parts did not all come."""
KIND: Final = by_name()["audit"]
NAMES: Final = tuple(field.name for field in COMMON)


def _boottime() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Wire(Protocol):
    """Where records come from."""

    keeps: bool
    """What comes while nobody listens waits; and missing numbers are among what is `lost`."""

    @property
    def descriptor(self) -> int:
        """It becomes readable when one comes."""
        ...

    @property
    def more(self) -> bool:
        """Something waits still."""
        ...

    def take(self, now: int) -> Iterator[Record | None]:
        """What came, in order; None: something was lost about here. `now`: ns since boot."""
        ...

    def lost(self) -> int:
        """How many records the kernel says it lost, more than at the last call. It may start a thread that
        answers, a fork and an exit in the stream: ask for heartbeats alone.
        """
        ...

    def release(self, place: int | None) -> None:
        """Records before this place are safe; None: all that were taken."""
        ...

    def close(self) -> None:
        """Listen no more."""
        ...


class Multicast:
    """By netlink. What the kernel says it lost are records that it gave up before they had a number."""

    keeps = False

    def __init__(self, given_up: Callable[[], int], clock: Callable[[], int] = _boottime) -> None:
        """Listen. `given_up`: records that the kernel gave up since the boot; `clock`: ns since boot. OSError
        carries the kernel's answer.
        """
        self._listener, self._given_up, self._clock = netlink.listen(BUFFER), given_up, clock
        self._lost = given_up()
        self.more = False

    @property
    def descriptor(self) -> int:
        """The socket's."""
        return self._listener.fileno()

    def take(self, now: int) -> Iterator[Record | None]:
        """At most BATCH messages."""
        receive, header, clock = self._listener.recv, netlink.HEADER, self._clock
        self.more = True
        for _ in range(BATCH):
            try:
                message = receive(LARGEST)
            except BlockingIOError:
                self.more = False
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                yield None
                continue
            yield Record(header.unpack_from(message)[1], message[header.size :], clock())

    def lost(self) -> int:
        """See Wire."""
        before, self._lost = self._lost, self._given_up()
        return max(self._lost - before, 0)

    def release(self, place: int | None) -> None:
        """What a socket gave is gone."""

    def close(self) -> None:
        """See Wire."""
        self._listener.close()


class Kept:
    """By BPF. Lost are records that found no space in the ring: the kernel side counts them."""

    keeps = True

    def __init__(self, fd: int, memory: RingMemory, row: Array, booked: int) -> None:
        """`row`: (1,) of layout.BOOKS, the ring's own; `booked`: how many losses are booked already."""
        self.descriptor = fd
        # Numbers come out of order where CPUs share a ring: drops are read from its row instead.
        self._ring = Ring(AUDIT_RING, memory, RingBooks(position=int(memory.consumer[0])))
        self._row, self._lost = row, booked
        self._missed = self._misses()
        self._begun: dict[int, _Parts] = {}

    @property
    def more(self) -> bool:
        """See Wire."""
        return self._ring.waits or bool(self._begun)

    def take(self, now: int) -> Iterator[Record | None]:
        """At most BATCH chunks; records in the order in which their last parts came."""
        before, self._missed = self._missed, self._misses()
        if before != self._missed:
            yield None
        found = self._ring.read(BATCH)
        if found is not None:
            yield from self._join(found)
        for id, parts in list(self._begun.items()):
            if parts.head.time + PATIENCE < now:
                yield None
                yield self._begun.pop(id).record()

    def lost(self) -> int:
        """See Wire."""
        before = self._lost
        self._lost = self._count("lost_full") + self._count("lost_slot")
        return self._lost - before

    def release(self, place: int | None) -> None:
        """See Wire. A record that was taken in part is not safe either."""
        begun = (parts.head.place for parts in self._begun.values())
        cursor = self._ring.cursor
        self._ring.release(min(cursor, cursor if place is None else place, *begun))

    def close(self) -> None:
        """The ring stays, for who comes next."""

    def _count(self, name: str) -> int:
        return int(self._row["kinds"][0][name][KIND.number])

    def _misses(self) -> int:
        """Chunks, or whole records, that are not there."""
        return int(self._row["drops"][0]) + self._count("lost_slot")

    def _join(self, found: Slice) -> Iterator[Record]:
        chunks = found.chunks
        heads = iter(_heads(found))
        columns = (chunks[name].tolist() for name in ("id", "part", "parts", "size"))
        for id, part, parts, size, payload in zip(*columns, chunks["payload"], strict=True):
            if part == 0:
                self._begun[id] = _Parts(next(heads), parts)
                data = payload[PAYLOAD - KIND.room :]
            else:
                data = payload
            begun = self._begun.get(id)
            if begun is None:
                continue  # it was not waited for any longer
            begun.data[part] = data[:size].tobytes()
            if len(begun.data) == parts:
                yield self._begun.pop(id).record()


@dataclass(slots=True)
class _Parts:
    """A record in chunks."""

    head: Record
    parts: int
    data: dict[int, bytes] = field(default_factory=dict)

    def record(self) -> Record:
        """All that came of it, up to the first part that did not."""
        pieces = [self.data[part] for part in takewhile(self.data.__contains__, range(self.parts))]
        return self.head._replace(text=b"".join(pieces))


def _heads(found: Slice) -> Iterator[Record]:
    """Records of those chunks that are heads, still without their texts."""
    rows = np.flatnonzero(found.chunks["part"] == 0)
    heads = found.chunks[rows].view(KIND.dtype)
    who = zip(*(heads[name].tolist() for name in NAMES), strict=True)
    places = found.position + rows * STRIDE
    columns = (heads["type"].tolist(), found.chunks["time"][rows].tolist(), places.tolist(), who)
    for number, written, place, values in zip(*columns, strict=True):
        yield Record(number, b"", written, place, dict(zip(NAMES, values, strict=True)))
