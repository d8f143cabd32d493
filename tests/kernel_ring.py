"""A ring as the kernel keeps it, and an attachment of such rings: what is behind readers, without a kernel.

Numbers are taken before space is reserved, chunks can be left half written, a full ring drops, and counters
count. Its descriptor can be read while the reader's position is behind the producer's.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.chunk import BUSY, DISCARD, HEADER, SIZE, STRIDE, event_id
from pipeline.kernel.attachment import Attachment
from pipeline.kernel.layout import AREA_SIZE, BOOKS
from pipeline.kernel.manifest import Hook, Manifest
from pipeline.kernel.ring import PAGE, Ring, RingMemory
from pipeline.kernel.surfaces import Surfaces
from pipeline.ledger import RingBooks
from pipeline.schema import by_name
from tests import chunks

__all__ = ["Attached", "KernelRing", "boottime"]


def boottime() -> int:
    """ns since boot, as the kernel stamps chunks."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Position(np.ndarray[Any, np.dtype[np.int64]]):
    """A reader's position, as the kernel sees it: it notices when it is moved."""

    moved: Callable[[], None]

    def __setitem__(self, where: Any, value: Any) -> None:
        super().__setitem__(where, value)
        self.moved()


class KernelRing:
    """One CPU's ring, from the side of the programs that write."""

    def __init__(self, number: int = 0, room: int = 64, *, start: int = 1, position: int = 0) -> None:
        """`room` in chunks; `start` is the first number; `position` in bytes is where writing begins."""
        self.number, self.size = number, room * STRIDE
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK)
        self.memory = RingMemory(bytearray(PAGE), bytearray(PAGE + 2 * self.size), self.size)
        consumer = self.memory.consumer.view(Position)
        consumer.moved = self._settle
        self.memory.consumer = consumer
        self.memory.producer[0] = position
        self.memory.consumer[0] = position
        self.books: Any = np.zeros(1, BOOKS)[0]
        self.books["sequence"] = self.books["start"] = start

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.descriptor)

    def reader(self) -> Ring:
        """A reader from the beginning."""
        books = RingBooks(position=int(self.memory.consumer[0]), sequence=int(self.books["start"]))
        return Ring(self.number, self.memory, books)

    # ---- what a program does, step by step

    def take(self) -> int:
        """Take a number."""
        self.books["sequence"] += 1
        return int(self.books["sequence"]) - 1

    def reserve(self) -> int | None:
        """Reserve space for a chunk: its byte position, or None, a drop."""
        at = int(self.memory.producer[0])
        if at + STRIDE - int(self.memory.consumer[0]) >= self.size:
            self.books["drops"] += 1
            return None
        self._put(at, np.array([(BUSY | SIZE)], "<u4").tobytes())
        self.memory.producer[0] = at + STRIDE
        return at

    def commit(self, at: int, row: NDArray[Any], sequence: int, time: int = 0, discard: bool = False) -> None:
        """Finish a chunk that was reserved."""
        done = row.reshape(1).copy()
        done["length"] = SIZE | (DISCARD if discard else 0)
        done["sequence"], done["time"] = sequence, time or boottime()
        self._put(at, done.tobytes())
        os.eventfd_write(self.descriptor, 1)

    def write(self, row: NDArray[Any], time: int = 0) -> bool:
        """All three steps; False: it was dropped."""
        sequence, at = self.take(), self.reserve()
        if at is not None:
            self.commit(at, row, sequence, time)
        return at is not None

    # ---- what a hook does

    def event(
        self,
        kind: str,
        data: bytes = b"",
        *,
        time: int = 0,
        hidden: str = "",
        without: Collection[int] = (),
        **fields: int,
    ) -> bool:
        """One event: counted, then filtered (`hidden` names the counter) or written; False: a dropped head.

        Parts `without` are dropped as if the ring were full just then.
        """
        number = by_name()[kind].number
        kinds = self.books["kinds"]
        kinds["attempted"][number] += 1
        if hidden:
            kinds[hidden][number] += 1
            return True
        rows = chunks.event(number, event_id(self.number, int(self.books["sequence"])), data, **fields)
        if not self.write(rows[0], time):
            kinds["lost_full"][number] += 1
            return False
        for part, row in enumerate(rows[1:], 1):
            if part in without:
                self.take()
                self.books["drops"] += 1
            else:
                self.write(row, time)
        return True

    def _settle(self) -> None:
        """The descriptor is no longer readable once the position has caught up."""
        if self.memory.consumer[0] == self.memory.producer[0]:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.descriptor)

    def _put(self, at: int, data: bytes) -> None:
        """Both copies, the word that says how far a chunk is last."""
        raw = self.memory.chunks.view(np.uint8).reshape(-1)
        for first in (at % self.size, at % self.size + self.size):
            raw[first + 4 : first + len(data)] = np.frombuffer(data[4:], np.uint8)
            raw[first : first + 4] = np.frombuffer(data[:4], np.uint8)


class Attached(Attachment):
    """An attachment whose rings and counters are memory of our own."""

    def __init__(
        self, state: Path, rings: Iterable[KernelRing], processes: NDArray[Any] | None = None
    ) -> None:
        self.kernel = {ring.number: ring for ring in rings}
        self._processes = np.empty(0, HEADER) if processes is None else processes
        self.manifest = Manifest(
            boot_id="b" * 32,
            attached=1_700_000_000_000_000_000,
            pins=str(state / "pins"),
            state=str(state),
            rings={number: ring.size for number, ring in self.kernel.items()},
            entries=max(self.kernel) + 1,
            kinds=list(by_name()),
            hooks=[
                Hook(kind, "proc" if kind == "process" else "tracepoint", {}, True, "proven")
                for kind in by_name()
            ],
            processes=int(np.count_nonzero(self._processes["part"] == 0)),
        )
        self._books = np.zeros(self.manifest.entries, BOOKS)
        for number, ring in self.kernel.items():
            self._books[number] = ring.books
            ring.books = self._books[number]
        self.area = mmap.mmap(-1, AREA_SIZE)
        self.descriptors = {number: ring.descriptor for number, ring in self.kernel.items()}
        self._memories = {number: ring.memory for number, ring in self.kernel.items()}
        self._entries = {}
        self.surfaces = Surfaces(self.manifest, lambda: self.manifest)
        self._own = {}
        self.linked = True

    def remove_links(self) -> None:
        """From now on nothing comes in."""
        self.linked = False
