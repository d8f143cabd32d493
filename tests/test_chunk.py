"""Chunks: cut as the kernel's writer cuts them, read back by the second decoder; ids that do not repeat."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.chunk import (
    HEADER,
    HIDDEN,
    MAX_RINGS,
    PAYLOAD,
    PROC_RING,
    SIZE,
    STRIDE,
    event_id,
    ring_of,
    sequence_of,
    split,
)
from pipeline.schema import Schema, by_number
from tests import decoder

rings = st.integers(0, MAX_RINGS - 1)
sequences = st.integers(0, (1 << 52) - 1)
with_promises = pytest.mark.parametrize(
    "schema", [s for s in by_number().values() if s.promises], ids=lambda schema: schema.name
)


def cut(schema: Schema, data: bytes, ring: int = 3, sequence: int = 77) -> NDArray[Any]:
    """The chunks of an event whose last promise is all of its data; its fields are of many values."""
    head = np.zeros(1, HEADER)
    head["payload"] = np.arange(PAYLOAD)
    head["sequence"], head["id"], head["time"] = sequence, event_id(ring, sequence), 5_000
    head["kind"] = schema.number
    view = head.view(schema.dtype)
    for promise in schema.promises:
        size = len(data) if promise is schema.promises[-1] else 0
        view[f"{promise.name}_of"] = view[f"{promise.name}_have"] = size
    return split(head[0], data, schema.room)


def check(schema: Schema, data: bytes) -> None:
    chunks = cut(schema, data)
    found = list(decoder.chunks(chunks.tobytes()))
    assert [c.sequence for c in found] == list(range(77, 77 + len(found)))
    assert [c.part for c in found] == list(range(len(found)))
    assert {(c.id, c.time, c.kind, c.parts, c.length) for c in found} == {
        (event_id(3, 77), 5_000, schema.number, len(found), SIZE)
    }
    assert sum(c.size for c in found) == len(data)
    assert all(c.size == PAYLOAD for c in found[1:-1])
    ((id, event),) = decoder.events(found, {}).items()
    assert id == event_id(3, 77)
    assert event.promises[schema.promises[-1].name] == decoder.Promise(
        "complete", len(data), len(data), data, ()
    )
    whole = chunks[:1].view(schema.dtype)[0]
    for field in schema.fields:
        value = whole[field.name]
        assert event.fields[field.name] == (value.tobytes() if value.dtype.kind == "V" else int(value))


@with_promises
def test_what_split_cuts_the_second_decoder_joins(schema: Schema) -> None:
    """At every size where something changes."""
    for edge in (0, schema.room, PAYLOAD, 2 * PAYLOAD, 7 * PAYLOAD):
        for size in (edge - 1, edge, edge + 1):
            if size >= 0:
                check(schema, bytes(i * 7 % 251 + 1 for i in range(size)))


@given(schema=st.sampled_from([s for s in by_number().values() if s.promises]), data=st.binary(max_size=1500))
def test_any_data_comes_back(schema: Schema, data: bytes) -> None:
    check(schema, data)


@with_promises
def test_data_stands_in_the_head_as_long_as_all_of_it_fits(schema: Schema) -> None:
    assert len(cut(schema, bytes(schema.room))) == 1
    assert len(cut(schema, bytes(schema.room + 1))) == 2
    assert len(cut(schema, bytes(PAYLOAD))) == 2
    assert len(cut(schema, bytes(PAYLOAD + 1))) == 3


def test_a_chunk_is_as_long_as_its_stride_and_in_the_pages_places() -> None:
    assert HEADER.itemsize == STRIDE == SIZE + 8
    assert HEADER.fields is not None
    assert {name: place[1] for name, place in HEADER.fields.items()} == {
        name: offset for name, (offset, _) in decoder.CHUNK.items()
    }


@given(rings, sequences)
def test_an_id_tells_its_ring_and_sequence(ring: int, sequence: int) -> None:
    id = event_id(ring, sequence)
    assert (ring_of(id), sequence_of(id)) == (ring, sequence)
    assert 0 <= id < HIDDEN < 1 << 63, "numpy takes ids as signed; hidden execs have a bit of their own"
    many = np.array([id, id], np.int64)
    assert ring_of(many).tolist() == [ring, ring]
    assert sequence_of(many).tolist() == [sequence, sequence]


@given(rings, sequences)
def test_a_hidden_exec_keeps_its_ring_and_number(ring: int, sequence: int) -> None:
    id = event_id(ring, sequence) | HIDDEN
    assert (ring_of(id), sequence_of(id)) == (ring, sequence)


@given(st.tuples(rings, sequences), st.tuples(rings, sequences))
def test_ids_are_the_same_only_for_the_same_chunk(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert (event_id(*one) == event_id(*other)) == (one == other)


def test_the_look_at_proc_has_a_ring_that_no_cpu_has() -> None:
    assert PROC_RING == MAX_RINGS - 1
    assert ring_of(event_id(PROC_RING, 1)) == PROC_RING
