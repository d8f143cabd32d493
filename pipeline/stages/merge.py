"""Merge: rings into one stream. The first stage after a source: Pass → merge → Merged → assemble.

Every header of a pass is checked at once, each ring is put in order of kernel time, and what is earlier than
the watermark goes on; the rest of each ring waits for the next pass. Here the chunks are copied out of the
rings' memory, once and whole: what comes after is arrays of our own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from operator import not_
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.chunk import DISCARD, MAX_RINGS, PAYLOAD, SIZE, STRIDE, event_id
from pipeline.event import FOREVER, Beat, Gap, Ints, Pass, Slice, count
from pipeline.ledger import zeros
from pipeline.schema import KINDS, by_number

__all__ = ["ROW", "Merge", "Merged", "known", "starts"]

Bools = NDArray[np.bool_]
ROW: Final = np.dtype(f"V{STRIDE}")
"""A chunk as opaque bytes: numpy copies these at once, structured ones field by field."""
WORDS: Final = (STRIDE - PAYLOAD) // 8
"""int64 words of a header."""
MAX_PARTS: Final = 1 + (8 << 20) // PAYLOAD
"""More than execve can pass (6 MiB, and paths): a larger total is not one that our programs wrote."""
AHEAD: Final = 86_400_000_000_000
"""A time that is a day (ns) later than the watermark is none: it would hold its ring back until then."""
RANGE: Final = 1 << 51
"""Times further than this (26 days in ns) before the watermark are one: there is the ring beside them."""


@dataclass(frozen=True, slots=True)
class Merged:
    """Chunks of all rings that lie before the watermark: rows ring by ring (ascending), and their order in
    time."""

    chunks: NDArray[Any]
    """(n,) of ROW."""
    ring: Ints
    position: Ints
    """Byte positions in the rings."""
    sequence: Ints
    id: Ints
    part: Ints
    parts: Ints
    kind: Ints
    size: Ints
    flags: Ints
    stamp: Ints
    """Boottime ns, as the chunk says."""
    time: Ints
    """Boottime ns, made monotone in each ring and never before an earlier Merged: for order only."""
    length: Ints
    """As the kernel keeps it, with its bits."""
    rank: Ints
    """Place of each row in the order of time; in each ring it ascends."""
    runs: Ints
    """(rings,) the first row of each ring."""
    gaps: tuple[Gap, ...]
    """Gaps right before one of these chunks."""
    watermark: int
    clock: int
    beat: Beat | None = None

    def __len__(self) -> int:
        return len(self.ring)

    @property
    def counts(self) -> Ints:
        """Events per kind number: the heads that are here, malformed ones too (see `known`)."""
        return count(known(self.kind[(self.part == 0) & ~self.discarded]))

    @property
    def discarded(self) -> Bools:
        """Rows that their program gave up."""
        given_up: Bools = self.length & DISCARD != 0
        return given_up

    def sound(self) -> Bools:
        """Rows with a header that our programs could have written; it can still contradict other rows."""
        head = self.part == 0
        room = ROOM[self.kind]
        sound = (self.length == SIZE) & (room >= 0) & (self.part < self.parts) & (self.parts <= MAX_PARTS)
        sound &= (self.sequence >> 52 == 0) & (self.stamp >= 0) & (self.stamp < self.watermark + AHEAD)
        # An event's parts may stand in another ring than its head; those that are not the last are full.
        part = (self.size == PAYLOAD) | (self.part == self.parts - 1)
        part &= (self.size <= PAYLOAD) & (self.id >= 0) & (self.id < event_id(MAX_RINGS, 0))
        first = (self.id == (self.ring << 52 | self.sequence)) & (self.size <= room)
        good: Bools = sound & np.where(head, first, part)
        return good


class Merge:
    """The stage; see the module's text."""

    name = "merge"

    def __init__(self) -> None:
        self._rest: list[Slice] = []
        self._gaps: tuple[Gap, ...] = ()
        self._watermark = 0
        self._clock = 0

    def __call__(self, batch: Pass) -> list[Merged]:
        """Always one Merged, be it empty: the watermark goes on with it."""
        slices = [*self._rest, *batch.slices]
        gaps = (*self._gaps, *(gap for s in batch.slices for gap in s.gaps))
        earlier, self._watermark = self._watermark, max(self._watermark, batch.watermark)
        self._clock = batch.clock
        merged = self._merge(slices, gaps, earlier, self._watermark)
        if batch.beat:
            merged = replace(merged, beat=replace(batch.beat, until=min(batch.beat.until, self._earliest())))
        return [merged]

    def finish(self) -> list[Merged]:
        """What lies at or after the last watermark."""
        if not self._rest:
            return []
        return [self._merge(self._rest, self._gaps, self._watermark, None)]

    def _earliest(self) -> int:
        """Boottime ns of the first that waits, chunk or loss."""
        stamps = (int(s.chunks["time"].min()) for s in self._rest)
        return min((*stamps, *(gap.before for gap in self._gaps if not gap.filled)), default=FOREVER)

    def held(self) -> Ints:
        """Heads that wait for the watermark."""
        total = zeros()
        for s in self._rest:
            alive = (s.chunks["part"] == 0) & (s.chunks["length"] & DISCARD == 0)
            total += count(known(s.chunks["kind"][alive]))
        return total

    def _merge(
        self, slices: Sequence[Slice], gaps: tuple[Gap, ...], earlier: int, watermark: int | None
    ) -> Merged:
        """`watermark` None: everything goes on."""
        # The sort is stable: what waited stays before what is new in its ring.
        slices = sorted((s for s in slices if len(s.chunks)), key=lambda s: s.ring)
        lengths = np.array([len(s.chunks) for s in slices], np.int64)
        ring = np.array([s.ring for s in slices], np.int64).repeat(lengths)
        time = _monotone([s.chunks["time"] for s in slices], ring, earlier, self._watermark)
        going = lengths
        if watermark is not None and len(time) and int(time.max()) >= watermark:
            go = time < watermark
            going = np.add.reduceat(go, lengths.cumsum() - lengths, dtype=np.int64)
            ring, time = ring[go], time[go]
        taken = going.tolist()
        chunks = _rows([s.chunks[:n] for s, n in zip(slices, taken, strict=True)])
        self._rest = [
            Slice(s.ring, s.position + n * STRIDE, s.chunks[n:])
            for s, n in zip(slices, taken, strict=True)
            if n < len(s.chunks)
        ]
        waiting = {s.ring: s.position for s in reversed(self._rest)}
        behind = [gap.ring in waiting and gap.position >= waiting[gap.ring] for gap in gaps]
        self._gaps = tuple(compress(gaps, behind))
        first = np.array([s.position for s in slices], np.int64) - (going.cumsum() - going) * STRIDE
        # Word by word, from memory that was just written: all checks are then on small arrays.
        words = chunks.view("<i8").reshape(-1, STRIDE // 8)[:, :WORDS]
        length, sequence, ids, stamp, of, tail = words.T.copy()
        return Merged(
            chunks=chunks,
            ring=ring,
            position=first.repeat(going) + np.arange(0, len(ring) * STRIDE, STRIDE),
            sequence=sequence,
            id=ids,
            part=of & 0xFFFFFFFF,
            parts=of >> 32,
            kind=tail & 0xFFFF,
            size=tail >> 16 & 0xFFFF,
            flags=tail >> 32 & 0xFFFF,
            stamp=stamp,
            time=time,
            length=length & 0xFFFFFFFF,
            rank=_rank(time),
            runs=starts(ring),
            gaps=tuple(compress(gaps, map(not_, behind))),
            watermark=self._watermark,
            clock=self._clock,
        )


def known(kinds: NDArray[Any]) -> NDArray[Any]:
    """Kinds as the books have them: numbers that no schema has count as kind 0."""
    return np.where(ROOM[kinds] < 0, 0, kinds)


def _rooms() -> NDArray[np.int16]:
    room = np.full(1 << 16, -1, np.int16)
    for number, schema in by_number().items():
        room[number] = schema.room
    return room


ROOM: Final = _rooms()
"""Kind → bytes of promise data that its head can hold; -1: no such kind."""
assert max(by_number()) < KINDS


def _rows(chunks: Iterable[NDArray[Any]]) -> NDArray[Any]:
    rows = [c.view(ROW) for c in chunks]
    return np.concatenate(rows) if rows else np.empty(0, ROW)


def _monotone(times: Sequence[Ints], ring: Ints, earlier: int, watermark: int) -> Ints:
    """Times of chunks, ring by ring. Nested programs reserve and look at the clock in either order (about 1.5
    µs): no chunk is earlier than the one before it in its ring, nor than what went on with an earlier
    pass."""
    if not times:
        return np.empty(0, np.int64)
    time = np.concatenate(times)
    time[time >= watermark + AHEAD] = 0
    time = np.maximum(np.maximum(time, earlier) - watermark, -RANGE)
    # All rings at once: each has a range of its own above the one before.
    lift = ring << 52
    lifted: Ints = np.maximum.accumulate(time + lift)
    lifted += watermark - lift
    return lifted


def _rank(time: Ints) -> Ints:
    """The inverse of the stable order of time (a merge of runs that are in order already)."""
    rank = np.empty(len(time), np.int64)
    rank[np.argsort(time, kind="stable")] = np.arange(len(time))
    return rank


def starts(values: Ints) -> Ints:
    """Where runs of equal values begin."""
    first = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return first.nonzero()[0]
