"""Join: chunks into events, for assembly. A sort by id and part, and a gather; no Python per chunk or event.

`Window` is one Merged as assembly holds it: a table of its events in order of time, and of what its chunks
became. `Unfinished` is an event (or parts without a head) whose chunks did not come in one Merged, whole and
in order: it has memory of its own, so that a promise of 2 MiB is not sorted again with every pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.chunk import HEADER, PAYLOAD, STRIDE, ring_of
from pipeline.event import FOREVER, Hole, Ints, count
from pipeline.schema import by_number
from pipeline.stages.merge import Merged, known, starts

__all__ = [
    "BEYOND",
    "DISCARDED",
    "DUPLICATE",
    "FATES",
    "LATE",
    "MALFORMED",
    "ORPHAN",
    "REPEAT",
    "Groups",
    "Unfinished",
    "Window",
    "group",
]

FATES: Final = ("used", "malformed", "discarded", "repeat", "duplicate", "late", "orphan", "beyond")
"""What became of a chunk, by number, as the ledger calls it: repeat: an earlier run had its event; duplicate:
it came twice; late: its event had left, or had been complete; orphan: its head never came; beyond: its event
ends before it."""
_, MALFORMED, DISCARDED, REPEAT, DUPLICATE, LATE, ORPHAN, BEYOND = range(len(FATES))

DATA: Final = np.dtype(f"V{PAYLOAD}")


def _inline() -> Ints:
    offset = np.zeros(max(by_number()) + 1, np.int64)
    for number, schema in by_number().items():
        offset[number] = PAYLOAD - schema.room
    return offset


INLINE: Final = _inline()
"""Kind → where in its head's payload the data stands that fits there."""


@dataclass(frozen=True, slots=True)
class Groups:
    """The chunks of events that have several, event by event (ascending ids), each by part."""

    rows: Ints
    first: Ints
    """(g,) of each event's chunks in `rows`."""
    length: Ints
    id: Ints
    whole: NDArray[np.bool_]
    """Every part is there, once."""


def group(merged: Merged, rows: Ints) -> Groups:
    """Sort these rows by id and part."""
    ids = merged.id[rows]
    if not (ids[1:] >= ids[:-1]).all():
        # Chunks of an event stand together in their ring, nearly: a stable sort of that is cheap.
        order = np.argsort(ids, kind="stable")
        rows, ids = rows[order], ids[order]
    first = starts(ids)
    length = np.append(first[1:], len(rows)) - first
    part = merged.part[rows]
    place = np.arange(len(rows)) - first.repeat(length)
    right = part == place
    if not right.all():
        order = np.argsort(np.arange(len(first)).repeat(length) << 32 | part, kind="stable")
        rows = rows[order]
        right = part[order] == place
    whole = np.logical_and.reduceat(right, first)
    whole &= np.minimum.reduceat(merged.parts[rows], first) == length
    return Groups(rows, first, length, ids[first], whole)


class Unfinished:
    """Chunks of one event, as far as they came. Parts are kept where they belong in the event's stream."""

    __slots__ = (
        "at", "data", "evicted", "flags", "head", "hole", "id", "newest", "ordinal", "parts", "sizes", "time"
    )  # fmt: skip

    def __init__(self, id: int, parts: int, ordinal: int, time: int) -> None:
        self.id = id
        self.ordinal = ordinal
        """Of the first chunk that came: nothing later is released before this event left."""
        self.time = self.newest = time
        self.parts = parts
        """Of the whole event: the smallest that a chunk said."""
        self.head = False
        self.flags = 0
        self.hole: Hole | None = None
        self.evicted = False
        self.at = np.full(parts, -1, np.int64)
        """Part → ordinal of its chunk; -1: it did not come."""
        self.sizes = np.zeros(parts, np.int64)
        # Zeroed memory is only taken up where it is written to.
        self.data = np.zeros(parts - 1, DATA)

    @property
    def missing(self) -> int:
        """How many parts did not come."""
        return self.parts - int(np.count_nonzero(self.at[: self.parts] >= 0))

    def add(self, window: Window, rows: Ints) -> None:
        """Take chunks in: rows of a window, by part. What is not needed gets its fate there."""
        merged = window.merged
        self.parts = min(self.parts, int(merged.parts[rows].min()))
        self.flags |= int(np.bitwise_or.reduce(merged.flags[rows]))
        part = merged.part[rows]
        if not (part[-1] < self.parts and (part[1:] > part[:-1]).all() and (self.at[part] < 0).all()):
            rows = self._new(window, rows, part)
            if not len(rows):
                return
            part = merged.part[rows]
        self.at[part] = window.base + merged.rank[rows]
        self.sizes[part] = merged.size[rows]
        self.newest = max(self.newest, int(merged.time[rows].max()))
        if not part[0]:
            self.head = True
            rows, part = rows[1:], part[1:]
        self.data[part - 1] = payloads(merged.chunks)[rows]

    def _new(self, window: Window, rows: Ints, part: Ints) -> Ints:
        """Those of these chunks that the event still needs; the others get their fate."""
        fits = part < self.parts
        window.mark(rows[~fits], BEYOND)
        rows, part = rows[fits], part[fits]
        new = self.at[part] < 0
        new[1:] &= part[1:] != part[:-1]
        window.mark(rows[~new], DUPLICATE)
        return rows[new]

    @property
    def stream(self) -> NDArray[np.uint8]:
        """The event's data as far as the last part that came, zeros where one is missing before it."""
        last = int((self.at[: self.parts] >= 0).nonzero()[0][-1])
        size = (last - 1) * PAYLOAD + int(self.sizes[last]) if last else 0
        return self.data.view(np.uint8)[:size]

    def settle(self, state: Literal["lost", "expired"]) -> None:
        """It leaves as it is."""
        self.hole = Hole(state, np.flatnonzero(self.at[: self.parts] < 0))

    def came(self) -> Ints:
        """Ordinals of the chunks that make the event."""
        return self.at[: self.parts][self.at[: self.parts] >= 0]

    def beyond(self) -> Ints:
        """Ordinals of those that were taken in before another one said that the event ends sooner."""
        return self.at[self.parts :][self.at[self.parts :] >= 0]


class Window:
    """One Merged, its events in order of time, and what became of its chunks."""

    def __init__(self, merged: Merged, base: int, heads: Ints, groups: Groups | None) -> None:
        """`heads`: the rows where events begin; `groups`: those of several chunks."""
        self.merged = merged
        self.base = base
        """Chunks of all windows before it: row r is chunk number base + rank[r] of all."""
        self.fate = np.zeros(len(merged), np.uint8)
        self.marked = False
        self.released = 0
        """Events that have left."""
        self.passed = 0
        """Chunks, in order of time, that lie before the cut."""
        self.left = np.zeros(len(merged.runs), np.int64)
        """(rings,) the same, per ring."""
        self.slow: dict[int, Unfinished] = {}
        """Rank of the head → an event that was not here whole."""
        self.row = heads[np.argsort(merged.rank[heads], kind="stable")]
        self.rank = merged.rank[self.row]
        self.kind = merged.kind[self.row]
        self.size = merged.size[self.row]
        self.flags = merged.flags[self.row]
        self.joined = np.empty(0, np.int64)
        """Rows of the parts of whole events, event by event."""
        self.first = np.zeros(len(heads) + 1, np.int64)
        """(events + 1,) of each event's rows in `joined`."""
        if groups is not None and groups.whole.any():
            self._join(groups)

    def _join(self, groups: Groups) -> None:
        m, whole = self.merged, groups.whole
        first, length = groups.first[whole] + 1, groups.length[whole] - 1
        event = np.searchsorted(self.rank, m.rank[groups.rows[first - 1]])
        order = np.argsort(event, kind="stable")
        event, first, length = event[order], first[order], length[order]
        self.joined = groups.rows[_ranges(first, length)]
        self.first[event + 1] = length
        np.cumsum(self.first, out=self.first)
        self.size[event] = (length - 1) * PAYLOAD + m.size[groups.rows[first + length - 1]]
        if m.flags.any():
            self.flags[event] |= np.bitwise_or.reduceat(m.flags[self.joined], self.first[event])

    def mark(self, rows: Ints, fate: int) -> None:
        """Say what became of chunks."""
        if len(rows):
            self.fate[rows] = fate
            self.marked = True

    def mark_ordinals(self, ordinals: Ints, fate: int) -> None:
        """The same by number, for those of these that lie in this window."""
        inside = ordinals[(ordinals >= self.base) & (ordinals < self.base + len(self.merged))]
        if len(inside):
            self.mark(np.flatnonzero(np.isin(self.merged.rank, inside - self.base)), fate)

    def earliest(self) -> int:
        """Boottime ns of the first chunk that lies behind the cut."""
        return int(self.merged.stamp[self.merged.rank >= self.passed].min(initial=FOREVER))

    def held(self) -> Ints:
        """Events per kind that are inside: not released, or malformed and not yet booked."""
        total = count(self.kind[self.released :])
        return total + self.malformed(self.passed, len(self.merged)) if self.marked else total

    def malformed(self, first: int, end: int) -> Ints:
        """Heads per kind of that rank that make no sense: events that are lost."""
        m = self.merged
        heads = (self.fate == MALFORMED) & (m.part == 0) & (m.rank >= first) & (m.rank < end)
        return count(known(m.kind[heads]))

    def gather(
        self, first: int, end: int
    ) -> tuple[NDArray[Any], NDArray[np.uint8], Ints, Ints, dict[int, Hole]]:
        """Heads, stream, start, size and holes of some events (see event.Batch).

        The stream is one gather of payloads, each copied once: of heads with data in them, then of parts.
        """
        rows, size = self.row[first:end], self.size[first:end].copy()
        heads = self.merged.chunks[rows].view(HEADER)
        inside = ((np.diff(self.first[first : end + 1]) == 0) & (size > 0)).nonzero()[0]
        joined = self.joined[self.first[first] : self.first[end]]
        stream = payloads(self.merged.chunks)[np.concatenate((rows[inside], joined))].view(np.uint8)
        start = (self.first[first:end] - self.first[first] + len(inside)) * PAYLOAD
        start[inside] = np.arange(len(inside)) * PAYLOAD + INLINE[self.kind[first:end][inside]]
        slow = self._slow(first, end)
        at = len(stream)
        if slow:
            stream = np.concatenate((stream, *(unfinished.stream for _, unfinished in slow)))
        flags = self.flags[first:end]
        if flags.any():
            heads["flags"] = flags
        holes = {}
        for row, unfinished in slow:
            start[row], size[row] = at, len(unfinished.stream)
            heads["flags"][row] = unfinished.flags
            at += int(size[row])
            if unfinished.hole is not None:
                holes[row] = unfinished.hole
        return heads, stream, start, size, holes

    def evicted(self, first: int, end: int) -> list[int]:
        """The rings of those of some events that left early for want of room."""
        return [int(ring_of(event.id)) for _, event in self._slow(first, end) if event.evicted]

    def _slow(self, first: int, end: int) -> list[tuple[int, Unfinished]]:
        if not self.slow:
            return []
        ranks = sorted(self.slow)
        rows = zip(self.rank.searchsorted(ranks).tolist(), ranks, strict=True)
        return [(row - first, self.slow[rank]) for row, rank in rows if first <= row < end]


def payloads(chunks: NDArray[Any]) -> NDArray[Any]:
    """(n,) of DATA: the payloads of chunks, in place."""
    return np.ndarray(chunks.shape, DATA, chunks, STRIDE - PAYLOAD, (STRIDE,))


def _ranges(first: Ints, length: Ints) -> Ints:
    """first[0], first[0] + 1, … (length[0] numbers), then first[1], …"""
    end = length.cumsum()
    ranges: Ints = np.arange(int(end[-1])) + (first - end + length).repeat(length)
    return ranges
