"""One CPU's ring: read ahead with a cursor of our own, move the consumer position only when told that it is
safe.

The kernel maps a ring as one page with the consumer position, one with the producer position, and the data
twice in a row, so that what wraps around is contiguous all the same. Chunks have a fixed stride, so what is
between cursor and producer *is* an array: it is viewed, its headers are checked all at once, and nothing is
copied.

The kernel wakes a waiting reader only when the consumer position has caught up with the producer's. We hold
that position back until what was read is acknowledged, so the source must look again by itself while anything
is unsafe, and may wait on the descriptor only when all is (sources/rings.py).

x86 keeps stores in order, so a length word that is not busy vouches for the chunk behind it.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.chunk import BUSY, DISCARD, HEADER, SIZE, STRIDE
from pipeline.event import Gap, Ints, Slice, count
from pipeline.ledger import RingBooks, zeros
from pipeline.schema import KINDS

__all__ = ["Behind", "Ring", "RingMemory", "resume"]

PAGE: Final = mmap.PAGESIZE


class RingMemory:
    """The three mapped parts of a ring, of a BPF map or of anything with the same layout."""

    def __init__(self, consumer: Any, producer_and_data: Any, size: int) -> None:
        self.size = size
        self.consumer: NDArray[np.int64] = np.frombuffer(consumer, np.int64, 1)
        self.producer: NDArray[np.int64] = np.frombuffer(producer_and_data, np.int64, 1)
        data = np.frombuffer(producer_and_data, np.uint8, 2 * size, PAGE)
        self.chunks: NDArray[Any] = data.view(HEADER)

    @classmethod
    def of_map(cls, fd: int, size: int) -> RingMemory:
        """Map a BPF ring buffer of `size` bytes."""
        consumer = mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        rest = mmap.mmap(fd, PAGE + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=PAGE)
        return cls(consumer, rest, size)

    @classmethod
    def of_chunks(cls, chunks: NDArray[Any]) -> RingMemory:
        """Chunks of a file as a ring that is full and gets no more."""
        memory = cls.__new__(cls)
        memory.size = max(len(chunks), 1) * STRIDE
        memory.consumer = np.zeros(1, np.int64)
        memory.producer = np.array([len(chunks) * STRIDE])
        memory.chunks = chunks
        return memory


@dataclass(frozen=True, slots=True)
class Behind:
    """What a ring holds that was not read yet."""

    chunks: int
    gaps: int
    """Numbers that were given out and are in no chunk, less those that come late and fill earlier gaps."""
    events: Ints
    """Per kind."""


class Ring:
    """Reads a ring's chunks in order and finds its gaps.

    cursor: where reading goes on; position: what is safe. Both in bytes, ever growing.
    expected: the sequence that the next chunk should have.
    chunks_read, gaps: the books up to the cursor (those up to the position are in ledger.Books).
    begin, first: the sequence at which this reading begins, and that of the first chunk that it took.
    refused: what made no sense of what an earlier run left, in words (see `resume`).
    time: of the last chunk that was read, boottime ns.
    stalled: the last look ended before a chunk that is still being written.
    """

    def __init__(self, number: int, memory: RingMemory, books: RingBooks, refused: str = "") -> None:
        """`books` are those up to the position from which to read: what an earlier run left, or new ones."""
        self.number = number
        self.position = self.cursor = books.position
        self.expected = self.begin = books.sequence
        self.first: int | None = None
        self.refused = refused
        self.chunks_read = books.read
        self.gaps = books.gaps
        self.time = 0
        self.stalled = False
        self._memory = memory

    @property
    def size(self) -> int:
        """Bytes that the ring can hold."""
        return self._memory.size

    @property
    def idle(self) -> bool:
        """Everything was read, and all of it is safe."""
        return self.position == self.cursor == int(self._memory.producer[0])

    @property
    def waits(self) -> bool:
        """Something was not read yet."""
        return int(self._memory.producer[0]) > self.cursor

    @property
    def filled(self) -> float:
        """The part of the ring that is taken, 0 to 1: unread, or read and not yet safe."""
        return (int(self._memory.producer[0]) - self.position) / self.size

    def read(self, limit: int = 65536) -> Slice | None:
        """Take the next chunks, at most `limit`; None: there are none.

        A chunk that is still being written (busy) ends the slice: the ring is in order of reservation.
        """
        chunks = self._waiting(limit)
        self.stalled = False
        lengths = chunks["length"]
        if not (lengths == SIZE).all():
            busy = np.flatnonzero(lengths & BUSY)
            self.stalled = len(busy) > 0
            if self.stalled:
                chunks = chunks[: busy[0]]
        if not len(chunks):
            return None
        gaps = self._find_gaps(chunks)
        found = Slice(self.number, self.cursor, chunks, gaps)
        self.cursor += len(chunks) * STRIDE
        self.chunks_read += len(chunks)
        self.gaps += sum(-len(gap) if gap.filled else len(gap) for gap in gaps)
        return found

    def release(self, position: int) -> None:
        """What lies before this position is safe: the kernel may write over it."""
        if not self.position <= position <= self.cursor:
            raise AssertionError(f"ring {self.number}: {position} is not in {self.position}..{self.cursor}")
        self.position = position
        self._memory.consumer[0] = position

    def behind(self, attempted: int) -> Behind:
        """What stands behind the cursor: looked at, not taken. `attempted` is the kernel's counter as it was
        just before.

        Numbers below that counter that are in no chunk are gaps, also those at the very end, which no later
        chunk shows.
        """
        chunks = self._waiting(self.size // STRIDE)
        known = chunks[(chunks["length"] & (BUSY | DISCARD)) == 0]
        kinds = known["kind"][known["part"] == 0]
        highest = int(known["sequence"].max()) if len(known) else self.expected - 1
        late = int(np.count_nonzero(known["sequence"] < self.expected))
        gaps = max(attempted, highest + 1) - self.expected - len(chunks)
        return Behind(len(chunks), max(gaps, -late), count(kinds[kinds < KINDS]) if len(kinds) else zeros())

    def tail(self, number: int, dropped: int, now: int) -> Gap | int | None:
        """What is missing behind the last chunk: `number` is the next one that the kernel gives out,
        `dropped` how many it dropped; both as they were just before the last `read`, at `now` or later.

        None: nothing. A gap: all that is missing was dropped. Else the boottime, ns, up to which the ring is
        whole: something stands there unread, or is still on its way.
        """
        missing = number - self.expected
        if missing <= 0:
            return None
        if missing != dropped - self.gaps:
            return self.time
        return Gap(self.number, self.expected, number - 1, self.time, now, self.cursor)

    def _waiting(self, limit: int) -> NDArray[Any]:
        n = min((int(self._memory.producer[0]) - self.cursor) // STRIDE, limit)
        first = self.cursor % self.size // STRIDE
        return self._memory.chunks[first : first + n]

    def _find_gaps(self, chunks: NDArray[Any]) -> tuple[Gap, ...]:
        sequences = chunks["sequence"]
        first, last = int(sequences[0]), int(sequences[-1])
        self.first = first if self.first is None else self.first
        before, self.time = self.time, int(chunks["time"][-1])
        expected = self.expected
        if first == expected and last - first == len(chunks) - 1 and bool((np.diff(sequences) == 1).all()):
            self.expected = last + 1
            return ()
        highest = np.maximum.accumulate(np.concatenate(([expected - 1], sequences)))
        self.expected = int(highest[-1]) + 1
        times = np.concatenate(([before], chunks["time"][:-1]))
        return tuple(
            self._gap(chunks, int(i), int(highest[i]), int(times[i]))
            for i in np.flatnonzero(sequences - highest[:-1] != 1)
        )

    def _gap(self, chunks: NDArray[Any], i: int, highest: int, before: int) -> Gap:
        """What is odd at chunk i. A number below the highest so far fills a gap that was reported too soon:
        its program was preempted between taking the number and reserving the space.
        """
        sequence, late = int(chunks["sequence"][i]), int(chunks["sequence"][i]) <= highest
        return Gap(
            self.number,
            first=sequence if late else highest + 1,
            last=sequence if late else sequence - 1,
            before=before,
            after=int(chunks["time"][i]),
            position=self.cursor + i * STRIDE,
            filled=late,
        )


def resume(memory: RingMemory, books: RingBooks, numbers: range) -> tuple[RingBooks, str]:
    """The books from which to go on: those that were left, as far as they can be true of this ring.

    `numbers`: the sequences that the next chunk can have. What makes no sense is replaced by what is nearest
    to losing nothing, counted as `refused` in the books, and told.
    """
    consumer, producer = int(memory.consumer[0]), int(memory.producer[0])
    possible = range(max(producer - memory.size, 0), producer + 1, STRIDE)
    said, position, sequence = [], books.position, books.sequence
    if consumer not in possible or consumer > position:
        said.append(f"its consumer position {consumer}")
    if position not in possible:
        position = consumer if consumer in possible else possible[0]
        said.append(f"the books' position {books.position}")
    if sequence not in numbers:
        waiting = memory.chunks[position % memory.size // STRIDE]["sequence"]
        sequence = int(waiting) if position < producer else numbers[-1]
        said.append(f"the books' sequence {books.sequence}")
    if not said:
        return books, ""
    refused = {"refused": books.other.get("refused", 0) + 1}
    text = f"refused {' and '.join(said)} (the producer's is {producer}): goes on at {position}"
    return replace(books, position=position, sequence=sequence, other=books.other | refused), text
