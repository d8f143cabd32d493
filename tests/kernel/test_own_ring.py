"""A ring of our own: what is put comes out as a kernel's chunks would, books add up, no half of a batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.chunk import HEADER, OWN_RINGS, PERF_RING, STRIDE, event_id, split
from pipeline.event import UNKNOWN, settle
from pipeline.kernel import own_ring
from pipeline.kernel.layout import BOOKS, OWN, row_of
from pipeline.kernel.own_ring import OwnMemory, OwnRing
from pipeline.kernel.ring import PAGE, Ring
from pipeline.ledger import RingBooks
from pipeline.schema import by_name
from tests.live.host import need_kernel

MMAP, COMM = by_name()["mmap"], by_name()["comm"]
START = 5_000_000
CAPS = {"path": 65536, "argv": 1 << 21}
CHUNKS = 16


class World:
    """Memory of a file, a row of books, a writer and a reader."""

    def __init__(self, chunks: int = CHUNKS, caps: Mapping[str, int] = CAPS) -> None:
        self.size, self.caps = chunks * STRIDE, caps
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + self.size)
        self.memory = OwnMemory(self.fd, self.size)
        self.row: Any = np.zeros(1, OWN)
        self.row["start"] = self.row["sequence"] = START
        self.writer = self.open()
        self.reader = Ring(PERF_RING, self.memory, RingBooks(sequence=START))

    def open(self) -> OwnRing:
        """A writer over what is there, as the next run has it."""
        return OwnRing(PERF_RING, OwnMemory(self.fd, self.size), self.row, self.caps)

    def balanced(self) -> bool:
        """I1, and the events of `mmap`."""
        row, kind = self.row[0], self.row[0]["kinds"][MMAP.number]
        chunks = int(self.memory.producer[0]) // STRIDE
        heads = sum(s["kind"] == MMAP.number and s["part"] == 0 for s in self.all)
        booked = heads + kind["lost_full"] + kind["filtered_self"] + kind["filtered_uid"]
        ring = chunks + row["drops"] == row["sequence"] - row["start"]
        return bool(ring and kind["attempted"] == booked)

    @property
    def all(self) -> Any:
        """Every chunk between the beginning and the producer (as long as nothing was overwritten)."""
        return self.memory.chunks[: int(self.memory.producer[0]) // STRIDE]


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    os.close(world.fd)


def path(size: int) -> bytes:
    return bytes(33 + i % 90 for i in range(size))


@given(size=st.one_of(st.integers(0, 100), st.integers(0, 3 * STRIDE)), address=st.integers(0, 2**64 - 1))
def test_an_event_is_cut_as_the_kernels_writer_cuts_it(size: int, address: int) -> None:
    world = World()
    values: dict[str, int | bytes] = {"address": address, "pid": 7, "comm": b"cat", "memfd": 1}
    assert world.writer.put(MMAP, values, {"path": path(size)}, 123, flags=2)
    world.writer.publish(200)
    found = world.reader.read()
    head = np.zeros(1, HEADER)
    head["sequence"], head["time"], head["kind"], head["flags"] = START, 123, MMAP.number, 2
    head["id"] = event_id(PERF_RING, START)
    view = head.view(MMAP.dtype)
    for name, value in values.items():
        view[name] = np.void(value.ljust(16, b"\0")) if isinstance(value, bytes) else value
    for field in MMAP.fields:
        if field.name not in values:
            view[field.name] = np.void(16) if field.type == "comm" else field.nil or 0
    view["path_of"] = view["path_have"] = size
    expected = split(head[0], path(size), MMAP.room)
    assert found is not None
    assert found.chunks.tobytes() == expected.tobytes()
    assert found.gaps == ()
    assert world.balanced()
    os.close(world.fd)


def test_nothing_counts_before_it_is_published(world: World) -> None:
    world.writer.put(MMAP, {}, {}, 1)
    world.writer.filter(MMAP, "self")
    world.writer.book("received", 2)
    assert world.reader.read() is None
    assert world.row["sequence"] == START
    assert not world.row["kinds"]["attempted"].any()
    world.writer.publish(9)
    assert world.row["seen"] == 9
    assert world.row["received"] == 2
    assert world.row["kinds"]["attempted"][0][MMAP.number] == 2
    assert world.row["kinds"]["filtered_self"][0][MMAP.number] == 1
    assert world.balanced()


def test_wrapping_around_leaves_every_event_whole(world: World) -> None:
    for n in range(40):
        assert world.writer.put(MMAP, {"address": n}, {"path": path(300)}, n)
        world.writer.publish(n)
        found = world.reader.read()
        assert found is not None
        assert [int(part) for part in found.chunks["part"]] == [0, 1, 2]
        assert found.chunks[:1].view(MMAP.dtype)["address"][0] == n
        assert found.chunks["payload"][1:].tobytes()[:300] == path(300)
        world.reader.release(world.reader.cursor)
    assert world.row["drops"] == 0


def test_a_full_ring_drops_and_books_and_the_gap_is_seen(world: World) -> None:
    taken = [world.writer.put(MMAP, {"address": n}, {}, n) for n in range(CHUNKS + 5)]
    world.writer.publish(1)
    assert taken == [True] * CHUNKS + [False] * 5
    assert int(world.row["drops"][0]) == 5
    assert world.balanced()
    assert world.reader.read() is not None
    assert world.reader.behind(int(world.row["sequence"][0])).gaps == 5
    world.reader.release(world.reader.cursor)
    assert world.writer.put(COMM, {}, {"name": b"x"}, 2)
    world.writer.publish(2)
    found = world.reader.read()
    assert found is not None
    assert [len(gap) for gap in found.gaps] == [5]


def test_an_event_that_does_not_fit_whole_is_lost_whole(world: World) -> None:
    assert not world.writer.put(MMAP, {}, {"path": path(CHUNKS * STRIDE)}, 1)
    assert world.writer.put(MMAP, {}, {}, 1)
    world.writer.publish(1)
    assert world.balanced()


def test_a_value_over_its_cap_or_unreadable_says_so() -> None:
    world = World(caps={"path": 10, "argv": 10})
    world.writer.put(MMAP, {}, {"path": path(30)}, 1)
    world.writer.put(MMAP, {}, {"path": None}, 2)
    world.writer.publish(2)
    capped, unread = world.all
    assert settle(MMAP, capped, int(capped["size"]), None)["path"][1].state == "capped"
    assert capped.reshape(1).view(MMAP.dtype)["path_of"][0] == 30
    assert settle(MMAP, unread, int(unread["size"]), None)["path"][1].state == "fault"
    assert unread.reshape(1).view(MMAP.dtype)["path_of"][0] == UNKNOWN
    os.close(world.fd)


class Killed(BaseException):
    """The process ended here."""


@pytest.mark.parametrize("step", range(4))
def test_a_kill_while_publishing_leaves_all_or_nothing(
    world: World, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two stores: the next run finishes what the journal has, or knows nothing of it."""
    world.writer.put(MMAP, {}, {}, 1)
    world.writer.publish(1)
    world.writer.put(MMAP, {}, {"path": path(400)}, 2)
    stores = 0

    class Dying:
        def __init__(self, of: Any) -> None:
            self.of = of

        def __getitem__(self, at: Any) -> Any:
            return self.of[at]

        def __setitem__(self, at: Any, value: Any) -> None:
            nonlocal stores
            if stores == step:
                raise Killed
            stores += 1
            self.of[at] = value

    memory = world.writer._memory
    for name in ("_journal", "producer"):
        monkeypatch.setattr(memory, name, Dying(getattr(memory, name)))
    with pytest.raises(Killed):
        world.writer.publish(2)
    writer = world.open()
    assert world.balanced()
    assert int(world.row["sequence"][0]) - START in (1, 4)
    assert (int(world.row["sequence"][0]) - START == 4) == (step >= 3)
    writer.put(MMAP, {}, {}, 3)
    writer.publish(3)
    assert world.balanced()


def test_a_promise_can_be_a_beginning(world: World) -> None:
    for size in (0, 10, 5 * STRIDE):
        assert world.writer.put(MMAP, {}, {"path": path(size)}, 1, beginnings=["path"])
    world.writer.publish(1)
    heads = world.all[world.all["part"] == 0].copy().view(MMAP.dtype)
    assert heads["path_of"].tolist() == [UNKNOWN] * 3
    assert heads["path_have"].tolist() == [0, 10, 5 * STRIDE]


def test_time_without_a_reader_is_booked(world: World) -> None:
    world.writer.opened(START * 1000 + 50)
    world.writer.publish(START * 1000 + 60)
    assert world.row["away"] == 1
    assert world.row["away_ns"] == 50
    again = world.open()
    again.opened(START * 1000 + 100)
    again.publish(START * 1000 + 110)
    assert world.row["away"] == 2
    assert world.row["away_ns"] == 90


def test_a_map_in_the_kernel_is_such_memory() -> None:
    need_kernel()
    size = 64 * 1024
    fd = own_ring.create(size, "ring_test")
    row: Any = np.zeros(1, OWN)
    writer = OwnRing(PERF_RING, OwnMemory(fd, size), row, CAPS)
    for n in range(size // STRIDE):
        assert writer.put(MMAP, {"address": n}, {}, n)
    writer.publish(1)
    assert not writer.put(MMAP, {}, {}, 0)
    other = OwnMemory(fd, size)
    assert other.chunks[: size // STRIDE].view(MMAP.dtype)["address"].tolist() == list(range(size // STRIDE))
    assert bytes(other.data[:size]) == bytes(other.data[size:])
    os.close(fd)


def test_rows_stand_behind_those_of_cpus() -> None:
    assert [row_of(ring, 8) for ring in (0, 7, *OWN_RINGS.values())] == [0, 7, 8, 9]
    assert OWN.itemsize == BOOKS.itemsize
    for name in ("sequence", "start", "drops", "kinds"):
        assert OWN.fields is not None
        assert BOOKS.fields is not None
        assert OWN.fields[name] == BOOKS.fields[name]
