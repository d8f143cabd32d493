"""Synthetic events and rings for tests: chunks as the kernel writes them, numbered, timed and lost as it
does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.chunk import HEADER, PAYLOAD, STRIDE, event_id, split
from pipeline.event import Gap, Pass, Slice
from pipeline.schema import Schema, by_number

__all__ = ["RingLog", "data_of", "event", "kinds", "look", "sizes"]

kinds = st.sampled_from(sorted(by_number()))
"""Numbers of kinds."""
sizes = st.one_of(st.integers(0, 40), st.integers(0, 6 * PAYLOAD), st.sampled_from([PAYLOAD, 2 * PAYLOAD]))
"""Bytes of promise data of an event; `data_of` says how many its kind can have."""


def data_of(schema: Schema, size: int, seed: int = 0) -> bytes:
    """So many bytes that tell their place; none for a kind without promises."""
    if not schema.promises:
        return b""
    return bytes((np.arange(size) * 7 + seed + np.arange(size) // 251).astype(np.uint8))


def event(kind: int, id: int, data: bytes = b"", **fields: int) -> NDArray[Any]:
    """The chunks of one event, (n,) of HEADER; sequence and time are for a ring to set. All data belongs to
    the kind's last promise unless `fields` says otherwise."""
    schema = by_number()[kind]
    head = np.zeros(1, HEADER)
    head["id"], head["kind"] = id, kind
    view = head.view(schema.dtype)
    values: dict[str, int] = {"pid": id & 0x3FFFFF, "tid": id & 0x3FFFFF}
    if schema.promises:
        last = schema.promises[-1].name
        values |= {f"{last}_of": len(data), f"{last}_have": len(data)}
    for name, value in (values | fields).items():
        view[name] = value
    return split(head[0], data, schema.room)


class RingLog:
    """What one ring ever held. Numbers are taken before chunks are written, so they can come in another
    order."""

    def __init__(self, number: int, position: int = 0, sequence: int = 1) -> None:
        self.number = number
        self.position = position
        self.first = self.sequence = sequence
        self.chunks: list[NDArray[Any]] = []

    def take(self, n: int = 1) -> int:
        """Take numbers; the first."""
        first, self.sequence = self.sequence, self.sequence + n
        return first

    def write(self, chunk: NDArray[Any], time: int, sequence: int | None = None) -> None:
        """Write one chunk (a row of HEADER), at the next number unless one was taken before."""
        row = chunk.reshape(1).copy()
        row["sequence"] = self.take() if sequence is None else sequence
        row["time"] = time
        self.chunks.append(row)

    def event(self, kind: int, data: bytes = b"", time: int = 0, **fields: int) -> int:
        """Write a whole event; its id."""
        id = event_id(self.number, self.sequence)
        for chunk in event(kind, id, data, **fields):
            self.write(chunk, time)
        return id

    @property
    def end(self) -> int:
        """Byte position behind the last chunk."""
        return self.position + len(self.chunks) * STRIDE

    def slice(self, first: int, end: int, expected: int | None = None) -> Slice:
        """The chunks between two byte positions, with the gaps that a reader finds who expects this
        number."""
        a, b = (first - self.position) // STRIDE, (end - self.position) // STRIDE
        rows = self.chunks[a:b]
        chunks = np.concatenate(rows) if rows else np.empty(0, HEADER)
        highest = (self.expected(first) if expected is None else expected) - 1
        gaps = []
        for i, sequence in enumerate(chunks["sequence"].tolist()):
            at = first + i * STRIDE
            if sequence <= highest:
                gaps.append(Gap(self.number, sequence, sequence, 0, 0, at, filled=True))
            elif sequence > highest + 1:
                gaps.append(Gap(self.number, highest + 1, sequence - 1, 0, 0, at))
            highest = max(highest, sequence)
        chunks.setflags(write=False)
        return Slice(self.number, first, chunks, tuple(gaps))

    def expected(self, position: int) -> int:
        """The number that a reader expects there who read all before."""
        rows = self.chunks[: (position - self.position) // STRIDE]
        return max([self.first - 1, *(int(row["sequence"][0]) for row in rows)]) + 1


def look(rings: Iterable[RingLog], cursors: dict[int, int], watermark: int) -> Pass:
    """One look at all rings, from `cursors` (ring → byte position; moved) to their ends."""
    slices = []
    for ring in rings:
        first = cursors.get(ring.number, ring.position)
        if ring.end > first:
            slices.append(ring.slice(first, ring.end))
            cursors[ring.number] = ring.end
    return Pass(tuple(slices), watermark, clock=1_000)
