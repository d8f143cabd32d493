"""One ring: what is read, which numbers are missing, what is safe; over memory laid out as the kernel's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.chunk import BUSY, DISCARD, HEADER, SIZE, STRIDE
from pipeline.event import Gap
from pipeline.kernel import bpf
from pipeline.kernel.ring import PAGE, Ring, RingMemory, resume
from pipeline.ledger import RingBooks
from pipeline.schema import by_name
from tests.kernel_ring import KernelRing
from tests.live.host import need_kernel

CHUNKS = PAGE // STRIDE
EXIT = by_name()["exit"].number


class Writer:
    """The kernel's side of a ring of one page: data twice in a row."""

    def __init__(self) -> None:
        self._consumer = bytearray(PAGE)
        self._rest = bytearray(PAGE + 2 * PAGE)
        self.memory = RingMemory(self._consumer, self._rest, PAGE)
        self._data = np.frombuffer(self._rest, np.uint8, offset=PAGE).view(HEADER)
        self.n = 0

    def write(self, sequence: int, length: int = SIZE, part: int = 0) -> None:
        """One chunk at the producer's place."""
        assert self.n - int(self.memory.consumer[0]) // STRIDE < CHUNKS, "the ring is full"
        for at in (self.n % CHUNKS, self.n % CHUNKS + CHUNKS):
            row = self._data[at : at + 1]
            row["length"], row["sequence"], row["time"] = length, sequence, 1000 + sequence
            row["kind"], row["part"] = EXIT, part
        self.n += 1
        self.memory.producer[0] = self.n * STRIDE

    def commit(self, index: int) -> None:
        """A chunk that was busy is written now."""
        for at in (index % CHUNKS, index % CHUNKS + CHUNKS):
            self._data[at : at + 1]["length"] = SIZE


def ring_of(*sequences: int, expected: int = 0) -> tuple[Writer, Ring]:
    writer = Writer()
    for sequence in sequences:
        writer.write(sequence)
    return writer, Ring(3, writer.memory, RingBooks(sequence=expected))


def numbers(chunks: NDArray[Any]) -> list[int]:
    found: list[int] = chunks["sequence"].tolist()
    return found


def spans(ring: Ring, limit: int = 65536) -> list[tuple[int, int, bool]]:
    found = ring.read(limit)
    assert found is not None
    return [(gap.first, gap.last, gap.filled) for gap in found.gaps]


def test_chunks_come_once_and_in_order() -> None:
    writer, ring = ring_of(0, 1, 2)
    first = ring.read()
    assert first is not None
    assert (first.ring, first.position, numbers(first.chunks), first.gaps) == (3, 0, [0, 1, 2], ())
    assert ring.read() is None
    writer.write(3)
    second = ring.read()
    assert second is not None
    assert (second.position, numbers(second.chunks)) == (3 * STRIDE, [3])
    assert (ring.chunks_read, ring.gaps, ring.expected) == (4, 0, 4)


def test_a_limit() -> None:
    _, ring = ring_of(0, 1, 2)
    found = ring.read(2)
    assert found is not None
    assert numbers(found.chunks) == [0, 1]
    assert ring.cursor == 2 * STRIDE


def test_the_end_of_the_memory_is_no_end() -> None:
    writer, ring = ring_of(*range(CHUNKS))
    ring.read()
    ring.release(10 * STRIDE)
    for sequence in range(CHUNKS, CHUNKS + 10):
        writer.write(sequence)
    found = ring.read()
    assert found is not None
    assert numbers(found.chunks) == list(range(CHUNKS, CHUNKS + 10))
    assert ring.filled == 1.0


def test_gaps_at_the_beginning_within_and_between() -> None:
    writer, ring = ring_of(2, 3, 7)
    found = ring.read()
    assert found is not None
    assert [(g.first, g.last, g.position, len(g)) for g in found.gaps] == [
        (0, 1, 0, 2),
        (4, 6, 2 * STRIDE, 3),
    ]
    assert [(g.before, g.after) for g in found.gaps] == [(0, 1002), (1003, 1007)]
    writer.write(10)
    assert spans(ring) == [(8, 9, False)]
    assert ring.gaps == 7


def test_a_late_number_fills_its_gap() -> None:
    writer, ring = ring_of(0, 2)
    assert spans(ring) == [(1, 1, False)]
    writer.write(1)
    writer.write(3)
    assert spans(ring) == [(1, 1, True)]
    assert (ring.gaps, ring.expected) == (0, 4)


def test_a_chunk_that_is_still_written_ends_the_look() -> None:
    writer, ring = ring_of(0)
    writer.write(1, SIZE | BUSY)
    writer.write(2)
    found = ring.read()
    assert found is not None
    assert numbers(found.chunks) == [0]
    assert ring.stalled
    assert ring.time == 1000
    assert ring.read() is None
    writer.commit(1)
    found = ring.read()
    assert found is not None
    assert numbers(found.chunks) == [1, 2]
    assert not ring.stalled


def test_a_chunk_that_was_given_up_is_handed_on() -> None:
    writer, ring = ring_of(0)
    writer.write(1, SIZE | DISCARD)
    found = ring.read()
    assert found is not None
    assert found.chunks["length"].tolist() == [SIZE, SIZE | DISCARD]


def test_only_what_is_safe_is_freed() -> None:
    writer, ring = ring_of(0, 1, 2)
    ring.read(2)
    ring.release(STRIDE)
    assert int(writer.memory.consumer[0]) == STRIDE
    assert not ring.idle
    for wrong in (0, 3 * STRIDE):
        with pytest.raises(AssertionError):
            ring.release(wrong)
    ring.read()
    ring.release(3 * STRIDE)
    assert ring.idle


def test_a_new_run_goes_on_where_the_books_end() -> None:
    writer, ring = ring_of(0, 1, 4)
    ring.read()
    ring.release(2 * STRIDE)
    again = Ring(3, writer.memory, RingBooks(position=2 * STRIDE, sequence=2, read=2, gaps=0))
    assert spans(again) == [(2, 3, False)]
    assert (again.chunks_read, again.gaps) == (3, 2)


def test_what_stands_behind_the_cursor() -> None:
    writer, ring = ring_of(0, 1, 2)
    ring.read(1)
    writer.write(5)
    writer.write(6, part=1)
    behind = ring.behind(9)
    assert (behind.chunks, behind.gaps) == (4, 4)  # 3, 4 within; 7, 8 at the very end
    assert int(behind.events[EXIT]) == int(behind.events.sum()) == 3
    assert numbers(ring.read().chunks) == [1, 2, 5, 6]  # type: ignore[union-attr]
    behind = ring.behind(9)
    assert (behind.chunks, behind.gaps, int(behind.events.sum())) == (0, 2, 0)


def test_chunks_of_a_file_are_a_ring_that_ends() -> None:
    chunks = np.zeros(3, HEADER)
    chunks["length"], chunks["sequence"] = SIZE, [5, 6, 7]
    ring = Ring(9, RingMemory.of_chunks(chunks), RingBooks(sequence=5))
    found = ring.read()
    assert found is not None
    assert numbers(found.chunks) == [5, 6, 7]
    assert not ring.idle


def test_such_a_ring_is_idle_when_all_of_it_is_safe() -> None:
    chunks = np.zeros(1, HEADER)
    chunks["length"] = SIZE
    ring = Ring(9, RingMemory.of_chunks(chunks), RingBooks())
    ring.read()
    ring.release(ring.cursor)
    assert ring.idle
    empty = Ring(9, RingMemory.of_chunks(chunks[:0]), RingBooks())
    assert empty.read() is None
    assert empty.idle


@given(
    st.lists(st.integers(0, 200), unique=True, min_size=1, max_size=60).flatmap(
        lambda kept: st.tuples(st.just(sorted(kept)), st.lists(st.integers(1, 9), min_size=1, max_size=60))
    ),
    st.lists(st.integers(0, 58), max_size=8),
)
def test_gaps_are_exactly_what_never_came(found: tuple[list[int], list[int]], swaps: Sequence[int]) -> None:
    """However numbers are lost and reads are cut: gaps + chunks = numbers given out; a swap fills itself."""
    kept, limits = found
    for at in swaps:
        if at + 1 < len(kept):
            kept[at], kept[at + 1] = kept[at + 1], kept[at]
    writer = Writer()
    ring = Ring(0, writer.memory, RingBooks())
    came: list[int] = []
    missing: set[int] = set()
    for i, sequence in enumerate(kept):
        writer.write(sequence)
        while i == len(kept) - 1 or writer.n - ring.cursor // STRIDE >= CHUNKS - 1:
            part = ring.read(limits[len(came) % len(limits)])
            if part is None:
                break
            came += numbers(part.chunks)
            for gap in part.gaps:
                span = set(range(gap.first, gap.last + 1))
                assert span <= missing if gap.filled else not span & missing
                missing = missing - span if gap.filled else missing | span
            ring.release(ring.cursor)
    assert came == kept
    assert missing == set(range(max(kept) + 1)) - set(kept)
    assert (ring.chunks_read, ring.gaps) == (len(kept), len(missing))


@pytest.mark.kernel
def test_a_ring_of_the_kernel_is_mapped() -> None:
    need_kernel()
    fd = bpf.create_ring(1 << 16, "test_ring")
    memory = RingMemory.of_map(fd, 1 << 16)
    ring = Ring(0, memory, RingBooks())
    assert ring.read() is None
    assert ring.idle
    assert len(memory.chunks) == 2 * (1 << 16) // STRIDE
    os.close(fd)


# ---- what is missing behind the last chunk


def test_what_was_dropped_behind_the_last_chunk() -> None:
    kernel = KernelRing(2, 4, start=50)
    ring = kernel.reader()
    number = by_name()["exit"].number
    assert ring.tail(50, 0, 9) is None
    for _ in range(6):
        kernel.event("exit", time=7)
    ring.read()
    drops = int(kernel.books["drops"])
    gap = ring.tail(int(kernel.books["sequence"]), drops, 9)
    assert isinstance(gap, Gap)
    assert (gap.ring, gap.last, gap.before, gap.after, len(gap)) == (2, 55, 7, 9, drops)
    assert drops == int(kernel.books["kinds"]["lost_full"][number]) > 0
    kernel.take()  # a program that is not yet through
    assert ring.tail(int(kernel.books["sequence"]), drops, 9) == 7, "until it is, nobody knows"
    kernel.close()


@pytest.mark.parametrize(
    ("consumer", "position", "sequence", "at", "expected", "said"),
    [
        (512, 512, 52, 512, 52, ""),
        (256, 768, 53, 768, 53, ""),
        (768, 512, 52, 512, 52, "consumer position 768"),
        (100, 512, 52, 512, 52, "consumer position 100"),
        (-256, 512, 52, 512, 52, "consumer position -256"),
        (1 << 40, 512, 52, 512, 52, "consumer position 1099511627776"),
        (512, 1 << 40, 52, 512, 52, "books' position 1099511627776"),
        (512, 513, 52, 512, 52, "books' position 513"),
        (512, -256, 52, 512, 52, "books' position -256"),
        (1 << 40, 1 << 41, 52, 0, 52, "books' position"),
        (512, 512, 49, 512, 52, "books' sequence 49"),
        (512, 512, 10**9, 512, 52, "books' sequence 1000000000"),
        (1024, 1024, 10**9, 1024, 54, "books' sequence 1000000000"),
    ],
)
def test_what_makes_no_sense_is_refused(
    consumer: int, position: int, sequence: int, at: int, expected: int, said: str
) -> None:
    """Four chunks, 50 to 53, stand in the ring; wherever reading goes on, it begins at a chunk of it."""
    kernel = KernelRing(0, 8, start=50)
    for _ in range(4):
        kernel.event("exit")
    kernel.memory.consumer[0] = consumer
    given = RingBooks(position=position, sequence=sequence, read=9)
    books, refused = resume(kernel.memory, given, range(50, 55))
    assert (books.position, books.sequence, books.read) == (at, expected, 9)
    assert said in refused
    assert bool(refused) == bool(said) == (books.other == {"refused": 1})
    kernel.close()
