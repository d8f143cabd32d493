"""Records that BPF kept in a ring: joined from parts, held until they are safe, their losses counted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.chunk import HEADER, STRIDE, split
from pipeline.event import Array
from pipeline.kernel.layout import BOOKS
from pipeline.kernel.own_ring import OwnMemory
from pipeline.kernel.ring import PAGE
from pipeline.schema import by_name
from pipeline.sources.audit import Audit
from pipeline.sources.wires import PATIENCE, Kept
from tests.audit_writer import stamp
from tests.sources.test_audit import BODY, World

SCHEMA = by_name()["audit"]
CHUNKS = 256


class Kernel:
    """The ring that bpf/audit.c fills, and its row of the books."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("records")
        os.ftruncate(self.fd, 2 * PAGE + CHUNKS * STRIDE)
        self.memory = OwnMemory(self.fd, CHUNKS * STRIDE)
        self.row: Any = np.zeros(1, BOOKS)

    def write(self, chunks: Array) -> None:
        """More chunks; nothing wraps around here."""
        first = int(self.memory.producer[0]) // STRIDE
        self.memory.chunks[first : first + len(chunks)] = chunks
        self.memory.producer[0] += len(chunks) * STRIDE

    def lose(self) -> None:
        """A record's head found no space."""
        self.row["drops"] += 1
        self.row["kinds"][0]["lost_full"][SCHEMA.number] += 1

    def wire(self) -> Kept:
        """A reader, as each run of the pipeline has it."""
        return Kept(self.fd, self.memory, self.row, 0)

    @property
    def safe(self) -> int:
        """The consumer position, in chunks."""
        return int(self.memory.consumer[0]) // STRIDE


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def record(id: int, number: int, text: bytes, time: int = 100) -> Array:
    """A record's chunks, as the program cuts it."""
    head = np.zeros(1, SCHEMA.dtype)
    head["pid"], head["tid"], head["type"], head["comm"] = 12, 13, number, np.void(b"cat".ljust(16, b"\0"))
    head["records_of"] = head["records_have"] = len(text)
    chunk = head.view(HEADER)[0]
    chunk["sequence"] = chunk["id"] = id
    chunk["time"], chunk["kind"] = time, SCHEMA.number
    return split(chunk, text, SCHEMA.room)


def taken(wire: Kept, now: int = 1000) -> list[tuple[int, bytes] | None]:
    return [record and record[:2] for record in wire.take(now)]


@given(st.lists(st.binary(max_size=700), max_size=8), st.randoms())
def test_records_are_joined_from_mixed_parts(texts: list[bytes], random: Any) -> None:
    kernel = Kernel()
    waiting = [list(record(100 * n, 1300 + n, text)) for n, text in enumerate(texts)]
    order: list[int] = []
    chunks = []
    while any(waiting):
        n = random.choice([n for n, left in enumerate(waiting) if left])
        chunks.append(waiting[n].pop(0))
        if not waiting[n]:
            order.append(n)
    if chunks:
        kernel.write(np.array(chunks, HEADER))
    wire = kernel.wire()
    assert taken(wire) == [(1300 + n, texts[n]) for n in order]
    assert not wire.more
    wire.release(None)
    assert kernel.safe == len(chunks)


def test_a_record_says_who_wrote_it_and_when(kernel: Kernel) -> None:
    kernel.write(record(7, 1300, b"x" * 500, time=55))
    kernel.write(record(10, 1302, b"y"))
    first, second = kernel.wire().take(1000)
    assert first
    assert second
    assert (first.type, first.time, first.place, second.place) == (1300, 55, 0, 4 * STRIDE)
    assert (first.who["pid"], first.who["tid"], first.who["comm"]) == (12, 13, b"cat".ljust(16, b"\0"))


def test_what_is_not_safe_stays(kernel: Kernel) -> None:
    kernel.write(record(1, 1300, b"x"))
    kernel.write(record(2, 1302, b"y" * 500)[:2])
    wire = kernel.wire()
    assert taken(wire) == [(1300, b"x")]
    assert wire.more
    wire.release(None)
    assert kernel.safe == 1, "the second record is not whole"
    kernel.write(record(2, 1302, b"y" * 500)[2:])
    assert taken(wire) == [(1302, b"y" * 500)]
    wire.release(STRIDE)
    assert kernel.safe == 1
    assert taken(kernel.wire()) == [(1302, b"y" * 500)], "the next run begins where this one was safe"


def test_a_part_that_never_comes_is_not_waited_for(kernel: Kernel) -> None:
    parts = record(2, 1302, b"y" * 500)
    kernel.write(parts[[0, 1, 3]])
    wire = kernel.wire()
    assert taken(wire, 1000) == []
    assert taken(wire, 100 + PATIENCE) == []
    assert taken(wire, 101 + PATIENCE) == [None, (1302, b"y" * 208)]
    kernel.write(parts[[2]])
    assert taken(wire, 102 + PATIENCE) == []
    wire.release(None)
    assert kernel.safe == 4


def test_drops_are_told_and_counted(kernel: Kernel) -> None:
    wire = kernel.wire()
    kernel.lose()
    kernel.lose()
    kernel.write(record(2, 1300, b"x"))
    assert taken(wire) == [None, (1300, b"x")]
    assert taken(wire) == []
    assert (wire.lost(), wire.lost()) == (2, 0)
    assert Kept(kernel.fd, kernel.memory, kernel.row, 2).lost() == 0, "that was booked by an earlier run"


def events(*records: Sequence[Any]) -> Array:
    return np.concatenate([record(*each) for each in records])


def test_a_ring_is_freed_when_its_events_are_put(kernel: Kernel) -> None:
    world = World()
    audit = Audit(world.ring, kernel.wire(), lambda pid, time: {"start": 5}, 1)
    kernel.write(events((1, 1300, stamp(1) + BODY), (3, 1300, stamp(2) + BODY), (5, 1320, stamp(2))))
    size = len(record(1, 1300, stamp(1) + BODY))
    audit.pump(1000)
    assert world.payloads["serial"].tolist() == [2]
    assert kernel.safe == 0, "the first event is open"
    kernel.write(events((6, 1320, stamp(1))))
    audit.pump(2000)
    assert world.payloads["serial"].tolist() == [2, 1]
    assert kernel.safe == 2 * size + 2
    assert int(world.row["away"][0]) == 0, "nothing was missed before"
    assert not audit.waits
    assert [int(world.payloads[0][name]) for name in ("pid", "tid", "start")] == [12, 13, 0], (
        "as it was read then"
    )


def test_a_killed_reader_leaves_what_it_had_not_put(kernel: Kernel) -> None:
    kernel.write(events((1, 1300, stamp(1) + BODY)))
    Audit(World().ring, kernel.wire(), lambda pid, time: {}, 1).pump(1000)
    world = World()
    audit = Audit(world.ring, kernel.wire(), lambda pid, time: {}, 1)
    kernel.write(events((6, 1320, stamp(1))))
    audit.pump(2000)
    (head,) = world.payloads
    assert int(head["records_of"]) == int(head["records_have"])


def test_a_record_that_lost_a_part_is_no_whole_event(kernel: Kernel) -> None:
    world = World()
    audit = Audit(world.ring, kernel.wire(), lambda pid, time: {}, 1)
    long = record(1, 1309, stamp(1) + b"argc=1 a0=" + b"4" * 500)
    kernel.write(events((1, 1300, stamp(1) + BODY)))
    kernel.row["drops"] += 1
    kernel.write(long[[0, 1, 3]])
    kernel.write(events((9, 1320, stamp(1))))
    for now in (1000, 101 + PATIENCE, 3 * PATIENCE):
        audit.pump(now)
    assert [
        of == have
        for of, have in zip(world.payloads["records_of"], world.payloads["records_have"], strict=True)
    ] == [
        False,
        False,
    ]
