"""docs/wire-format.md says enough: a decoder made of that page alone agrees with the pipeline."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.chunk import BUSY, CAPPED, CUT, DISCARD, HEADER, PAYLOAD, STRIDE, event_id, split
from pipeline.event import UNKNOWN, Batch, Pass, settle
from pipeline.kernel.layout import BOOKS
from pipeline.kernel.ring import Ring, RingMemory
from pipeline.ledger import RingBooks
from pipeline.schema import KINDS, VARYING, Schema, by_number
from pipeline.stages.assemble import EXPIRY, Assemble
from pipeline.stages.merge import Merge
from tests import decoder

START = 1_000_000
"""First number of the rings here."""
TIME = 5_000_000_000


# ---- chunks as the kernel writes them


@st.composite
def written(draw: st.DrawFn, ring: int, sequence: int) -> NDArray[Any]:
    """The chunks of one event of any kind with any values, some cut short; (n,) of HEADER."""
    schema = by_number()[draw(st.sampled_from(sorted(by_number())))]
    head = np.zeros(1, HEADER)
    head["payload"] = np.frombuffer(draw(st.binary(min_size=PAYLOAD, max_size=PAYLOAD)), np.uint8)
    head["sequence"], head["id"], head["kind"] = sequence, event_id(ring, sequence), schema.number
    head["faults"] = draw(st.integers(0, (1 << len(schema.promises)) - 1)) if draw(st.booleans()) else 0
    data = _fill(draw, head.view(schema.dtype), schema)
    chunks = split(head[0], data, schema.room)
    if len(chunks) > 1 and draw(st.booleans()):
        stop = draw(st.integers(1, len(chunks) - 1))
        chunks = chunks[: stop + 1].copy()
        chunks["parts"][stop], chunks["size"][stop] = stop + 1, 0
        chunks["flags"][stop] = draw(st.sampled_from((CUT, CAPPED)))
    return chunks


def _fill(draw: st.DrawFn, view: NDArray[Any], schema: Schema) -> bytes:
    """Give every promise a value; returns the stream."""
    sizes = st.one_of(st.integers(0, 3), st.integers(0, 3 * PAYLOAD), st.just(PAYLOAD))
    stream = b""
    for promise in schema.promises:
        have = draw(sizes)
        of = draw(st.sampled_from((have, have, have + 5, UNKNOWN)))
        view[f"{promise.name}_of"], view[f"{promise.name}_have"] = of, have
        stream += bytes((np.arange(have) * 7 + len(stream)).astype(np.uint8))
    return stream


@st.composite
def rings(draw: st.DrawFn) -> list[NDArray[Any]]:
    """What two rings hold: events in order, two chunks exchanged as programs that nest do, some missing."""
    found = []
    for ring in range(2):
        sequence, events = START, []
        for _ in range(draw(st.integers(0, 4))):
            events.append(draw(written(ring, sequence)))
            sequence += len(events[-1])
        chunks = np.concatenate([np.zeros(0, HEADER), *events])
        chunks["time"] = TIME + np.arange(len(chunks)) * 1000 + ring
        kept = [i for i in range(len(chunks)) if draw(st.integers(0, 7))]
        swap = draw(st.integers(0, max(len(kept) - 2, 0)))
        if len(kept) > 1 and draw(st.booleans()):
            kept[swap : swap + 2] = kept[swap + 1], kept[swap]
        found.append(chunks[kept])
    return found


class Memory(RingMemory):
    """A ring like the kernel's, its data twice in a row, filled from some position on."""

    def __init__(self, chunks: NDArray[Any], first: int, size: int = 64 * STRIDE) -> None:
        rest = np.zeros(mmap.PAGESIZE + 2 * size, np.uint8)
        for i, row in enumerate(chunks.view(f"V{STRIDE}")):
            at = mmap.PAGESIZE + (first + i * STRIDE) % size
            for copy in (at, at + size):
                rest[copy : copy + STRIDE] = np.frombuffer(row.tobytes(), np.uint8)
        rest[:8] = np.array([first + len(chunks) * STRIDE]).view(np.uint8)
        super().__init__(np.zeros(mmap.PAGESIZE, np.uint8), rest, size)


# ---- the comparison


@given(st.data())
def test_ring_readers_agree(data: st.DataObject) -> None:
    """Busy ends it, discarded ones are no chunks, numbers that never arrived are gaps."""
    n = data.draw(st.integers(0, 40))
    chunks = np.zeros(n, HEADER)
    steps = data.draw(st.lists(st.sampled_from((1, 1, 1, 2, 5)), min_size=n, max_size=n))
    chunks["sequence"] = START - 1 + np.cumsum(np.array(steps, np.int64))
    bits = st.sampled_from((0, 0, 0, 0, 0, BUSY, DISCARD))
    chunks["length"] = 248 | np.array(data.draw(st.lists(bits, min_size=n, max_size=n)), np.uint32)
    first = data.draw(st.integers(0, 63)) * STRIDE
    ring = Ring(0, Memory(chunks, first), RingBooks(position=first, sequence=START))
    found = ring.read()
    seen = found.chunks if found else chunks[:0]
    theirs = list(decoder.chunks(chunks.tobytes()))
    alive = seen[seen["length"] & DISCARD == 0]
    assert [chunk.raw for chunk in theirs] == [row.tobytes() for row in alive]
    # A discarded chunk has a number too.
    numbers = seen["sequence"].tolist()
    assert len(decoder.gaps(numbers, START)) == ring.gaps == sum(steps[: len(seen)]) - len(seen)


@given(st.permutations(range(8)), st.integers(0, 3))
def test_late_numbers_fill_gaps_for_both(order: list[int], before: int) -> None:
    chunks = np.zeros(8, HEADER)
    chunks["length"] = 248
    chunks["sequence"] = START + before + np.array(order)
    ring = Ring(0, Memory(chunks, 0), RingBooks(sequence=START))
    ring.read()
    assert ring.gaps == len(decoder.gaps(chunks["sequence"].tolist(), START)) == before


@given(rings())
def test_events_agree(found: list[NDArray[Any]]) -> None:
    """Reader, merge, assemble and settle against the page's rules: events of every kind, some incomplete."""
    theirs = decoder.events(
        (chunk for chunks in found for chunk in decoder.chunks(chunks.tobytes())),
        {number: decoder.gaps(chunks["sequence"].tolist(), START) for number, chunks in enumerate(found)},
    )
    ours = {}
    for batch in _assembled(found):
        for row, head in enumerate(batch.heads):
            ours[int(head["id"])] = _event(batch, row)
    assert ours.keys() == theirs.keys()
    for id, event in theirs.items():
        assert ours[id] == event


def _assembled(found: list[NDArray[Any]]) -> list[Batch]:
    slices = []
    for number, chunks in enumerate(found):
        taken = Ring(number, Memory(chunks, 0), RingBooks(sequence=START)).read()
        if taken:
            slices.append(taken)
    merge, assemble = Merge(), Assemble({0: START, 1: START})
    # By this watermark everything has come that ever will.
    (merged,) = merge(Pass(tuple(slices), TIME + 2 * EXPIRY, 0))
    return [*assemble(merged), *assemble.finish()]


def _event(batch: Batch, row: int) -> decoder.Event:
    """An event of the pipeline's in the decoder's words."""
    head = batch.heads[row]
    schema = by_number()[int(head["kind"])]
    view = head.reshape(1).view(schema.dtype)[0]
    promises = {}
    for name, (at, how) in settle(schema, head, int(batch.size[row]), batch.holes.get(row)).items():
        seen = how.spans[0][1] if how.spans and how.spans[0][0] == 0 else 0
        first = int(batch.start[row]) + at
        shown = batch.stream[first : first + seen].tobytes()
        promises[name] = decoder.Promise(how.state, how.of, how.have, shown, how.parts)
    fields = {
        field.name: view[field.name].tobytes() if field.type in VARYING else int(view[field.name])
        for field in schema.fields
    }
    return decoder.Event(int(head["id"]), schema.name, fields, promises)


@given(st.binary(min_size=BOOKS.itemsize, max_size=BOOKS.itemsize))
def test_books_agree(row: bytes) -> None:
    ours = np.frombuffer(row, BOOKS, 1)[0]
    theirs = decoder.unpack(decoder.BOOKS, row)
    kinds = theirs.pop("kinds")
    assert isinstance(kinds, bytes)
    assert theirs == {name: int(ours[name]) for name in BOOKS.names or () if name != "kinds"}
    width = len(kinds) // KINDS
    for number in range(KINDS):
        mine = ours["kinds"][number]
        said = decoder.unpack(decoder.KIND_BOOKS, kinds, number * width)
        assert said == {name: int(mine[name]) for name in mine.dtype.names}
