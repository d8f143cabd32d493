"""What stages hand on: `Pass` (chunks as rings hold them), `Batch` (events in columns), `Encoded` (records).

Each is small, frozen, and lives for one trip through the pipeline. A `Passage` goes along with every batch
and says what may happen when its last record is safe: how far each ring's position may move, and what the
stages booked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.chunk import CAPPED, CUT, PAYLOAD, ring_of
from pipeline.schema import KINDS, Schema

__all__ = [
    "FOREVER",
    "NO_RING",
    "UNKNOWN",
    "Batch",
    "Beat",
    "Encoded",
    "Gap",
    "Hole",
    "Loss",
    "Pass",
    "Passage",
    "Records",
    "Settled",
    "Slice",
    "State",
    "Told",
    "count",
    "settle",
    "spans",
]

Array = NDArray[Any]
Ints = NDArray[np.int64]
State = Literal["complete", "capped", "lost", "fault", "expired"]
Told = Mapping[tuple[int, str, str], Ints]
"""(ring or NO_RING, stage, reason) → events per kind, or how many under kind 0, lost since the attachment
began."""
NO_RING: Final = -1
FOREVER: Final = (1 << 63) - 1
"""Later than any time, ns."""
UNKNOWN: Final = 0xFFFFFFFF
"""`of` of a promise whose true size the kernel could not find out."""


def count(kinds: Array) -> Ints:
    """Events per kind number: an array of KINDS."""
    return np.bincount(kinds, minlength=KINDS).astype(np.int64, copy=False)


@dataclass(frozen=True, slots=True)
class Gap:
    """Sequence numbers of a ring that never arrived (loss in the ring itself)."""

    ring: int
    first: int
    last: int
    before: int
    """Boottime ns of the last chunk before it (0: unknown)."""
    after: int
    """Boottime ns of the first chunk after it."""
    position: int
    """Byte position in the ring of the first chunk after it."""
    filled: bool = False
    """These numbers did arrive after all: they take back a part of an earlier gap."""

    def __len__(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat on its way: the source begins one now and then, and `tell` makes it a record.

    What it says holds where it stands in the stream, and so goes along with what it speaks of.
    """

    until: int
    """Boottime ns: every event before it is in front of this beat, or lost and told. Stages that hold
    something lower it."""
    tails: tuple[Gap, ...] = ()
    """Numbers that rings lost behind their last chunks: no chunk shows them yet."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One ring's new chunks. `chunks` is a view into the ring's own memory: it stays as it is until the
    position moves over it, so nobody copies what is only looked at, and nobody writes to it."""

    ring: int
    position: int
    """Byte position in the ring of the first chunk."""
    chunks: Array
    """(n,) of chunk.HEADER; the kernel's busy and discard bits are checked already."""
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True, slots=True)
class Pass:
    """What one look at all rings found."""

    slices: tuple[Slice, ...]
    watermark: int
    """Boottime ns: every chunk with an earlier time is in this pass or one before (reader's clock before it
    looked, less a small slack)."""
    clock: int
    """ns to add to boottime to get the time since the epoch, as it was at this pass."""
    beat: Beat | None = None

    @property
    def counts(self) -> Ints:
        """Events per kind number: the heads that are here (kinds that do not exist are left out)."""
        kinds = [s.chunks["kind"][s.chunks["part"] == 0] for s in self.slices]
        return sum((count(k[k < KINDS]) for k in kinds), np.zeros(KINDS, np.int64))


@dataclass(frozen=True, slots=True)
class Hole:
    """What is missing of an event's stream (the data of its promises, one after another)."""

    state: Literal["lost", "expired"]
    parts: Ints
    """Numbers of the parts (chunks) that did not come, ascending."""


@dataclass(slots=True)
class Passage:
    """The way of one batch to safety. Made where events leave assembly; sinks retire them by `number`."""

    number: int
    positions: dict[int, tuple[int, int]]
    """Ring → (byte position, next sequence): how far the ring is free once this and all earlier passages are
    safe. Only rings that moved are named."""
    gaps: tuple[Gap, ...] = ()
    """Gaps of the rings before those positions, not reported by an earlier passage."""
    chunks: dict[tuple[int, str], int] = field(default_factory=dict)
    """(ring, what) → chunks before those positions that were read, repeat, orphan, malformed, discarded, …"""
    tally: dict[tuple[str, str, str], Ints] = field(default_factory=dict)
    """(term, stage, reason) → events per kind; term is "filtered" or "lost", or a milestone (`reached`)."""
    beat: Beat | None = None
    """The heartbeat that stands behind this batch's events."""
    told: Told = field(default_factory=dict)
    """With a beat: all losses that are in the stream once this batch is."""

    def book(self, term: Literal["filtered", "lost"], stage: str, reason: str, counts: Ints) -> None:
        """Say why events that came in do not go on: the only way for a stage to drop something."""
        self._add((term, stage, reason), counts)

    def reached(self, milestone: Literal["assembled", "encoded"], counts: Ints) -> None:
        """Events came so far on their way: no term of the ledger, but shown among its terms."""
        self._add((milestone, "", ""), counts)

    def _add(self, key: tuple[str, str, str], counts: Ints) -> None:
        self.tally[key] = self.tally.get(key, 0) + counts


@dataclass(frozen=True, slots=True)
class Batch:
    """Events, in order, in columns."""

    heads: Array
    """(n,) of chunk.HEADER: the head chunks, a copy. View those of one kind through Schema.dtype."""
    stream: NDArray[np.uint8]
    """The promises' data of all events, one after another; bytes of missing parts are zero."""
    start: Ints
    """(n,) where each event's data starts in `stream`."""
    size: Ints
    """(n,) how many bytes of `stream` are the event's (missing ones included)."""
    clock: int
    passage: Passage
    holes: Mapping[int, Hole] = field(default_factory=dict)
    """Row → what is missing; rows that are not named have all their parts."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """What `enrich` found, by name; (n,) each."""

    def __len__(self) -> int:
        return len(self.heads)

    @property
    def counts(self) -> Ints:
        """Events per kind number."""
        return count(self.heads["kind"])

    def take(self, rows: Array) -> Batch:
        """The batch with only these rows (ascending indexes or a mask), the stream shared."""
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        where = {int(old): new for new, old in enumerate(index)} if self.holes else {}
        return replace(
            self,
            heads=self.heads[index],
            start=self.start[index],
            size=self.size[index],
            holes={where[row]: hole for row, hole in self.holes.items() if row in where},
            columns={name: column[index] for name, column in self.columns.items()},
        )


@dataclass(frozen=True, slots=True)
class Records:
    """Encoded events of one family, in order."""

    keys: list[bytes]
    values: list[bytes]
    times: list[int]
    """Of each event, ms since the epoch: Kafka's timestamps, by which a topic is searched."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch as it is stored or sent."""

    records: Mapping[str, Records]
    """Family → records (a family is the end of a topic's name)."""
    counts: Ints
    """Events per kind number."""
    passage: Passage
    time: tuple[int, int] = (0, 0)
    """First and last time of a record, ns since the epoch."""
    spans: tuple[tuple[int, int], ...] = ()
    """For each ring, the ids of the first and the last event from it."""
    clock: int = 0

    def __len__(self) -> int:
        return sum(len(records.values) for records in self.records.values())


@dataclass(frozen=True, slots=True)
class Loss:
    """Events that were lost where no gap of a ring says so: what the stream is to tell of it."""

    kinds: Ints
    """Events per kind number."""
    since: int
    until: int
    """First and last time that they can have, ns since the epoch (0: unknown)."""
    stage: str
    reason: str
    spans: tuple[tuple[int, int], ...] = ()
    """See Encoded: no event outside these was lost. Empty: not known."""


@dataclass(frozen=True, slots=True)
class Settled:
    """How one promise of one event ended, and the bytes of it that can be trusted."""

    state: State
    have: int
    """Bytes that arrived (not only those before the first hole)."""
    of: int | None
    """True size in bytes; None: the kernel could not say."""
    spans: tuple[tuple[int, int], ...]
    """(first, end) of the bytes that arrived, relative to the promise, ascending; complete: one span."""
    parts: tuple[int, ...] = ()
    """Chunks (part numbers of the event) that are missing."""


def spans(ids: Ints) -> tuple[tuple[int, int], ...]:
    """See Encoded: of these events."""
    if not len(ids):
        return ()
    ordered = np.sort(ids)
    ends = np.flatnonzero(np.diff(ring_of(ordered)))
    firsts, lasts = ordered[np.append(0, ends + 1)], ordered[np.append(ends, len(ids) - 1)]
    return tuple(zip(firsts.tolist(), lasts.tolist(), strict=True))


def settle(schema: Schema, head: Array, size: int, hole: Hole | None) -> dict[str, tuple[int, Settled]]:
    """Say for each promise of one event where its data starts in the event's stream and how it settled (I3).

    `head` is the event's row of chunk.HEADER as assembly left it: `flags` holds CUT or CAPPED when any of its
    chunks did. `size` is the event's bytes in the stream. This is for the few events that are not plainly
    complete.
    """
    view = head.reshape(1).view(schema.dtype)[0]
    missing = hole.parts if hole else np.empty(0, np.int64)
    found: dict[str, tuple[int, Settled]] = {}
    start = 0
    for bit, promise in enumerate(schema.promises):
        of, sent = int(view[f"{promise.name}_of"]), int(view[f"{promise.name}_have"])
        end = start + sent
        parts = [int(p) for p in missing if sent and (p - 1) * PAYLOAD < end and p * PAYLOAD > start]
        spans = _spans(start, min(end, max(size, start)), parts)
        have = sum(b - a for a, b in spans)
        state: State = "complete"
        if parts and hole:
            state = hole.state
        elif int(head["faults"]) >> bit & 1 or (have < sent and int(head["flags"]) & CUT):
            state = "fault"
        elif have < sent or sent < of:
            state = "capped" if sent < of or int(head["flags"]) & CAPPED else "lost"
        true = None if of == UNKNOWN else of
        found[promise.name] = (start, Settled(state, have, true, spans, tuple(parts)))
        start = end
    return found


def _spans(start: int, end: int, missing: list[int]) -> tuple[tuple[int, int], ...]:
    """Bytes of [start, end) outside the missing parts, relative to start."""
    spans: list[tuple[int, int]] = []
    at = start
    for part in missing:
        hole = min((part - 1) * PAYLOAD, end)
        if hole > at:
            spans.append((at - start, hole - start))
        at = max(at, part * PAYLOAD)
    if at < end or (not missing and start == end):
        spans.append((at - start, end - start))
    return tuple(spans)
