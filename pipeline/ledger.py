"""The ledger: the books that prove what was delivered (invariant I5).

    attempted = acknowledged + filtered + lost + in outbox + in flight        per kind, exactly

and per ring, for chunks:

    chunks attempted = chunks read + gaps + unread        and        gaps = drops

**No term is computed from the others.** Attempted, drops, and what the kernel filtered or lost are read from
the kernel's counters (`KernelBooks`); filtered and lost in user space are booked by the stage that does it
(`Passage.book`); acknowledged is counted when the last delivery callback of a batch came; in flight is what
rings, links, stages and the producer hold, each counting what it has in hand. A term that was derived would
make the identity hold by construction, and prove nothing.

`Books` are the user-space terms, plain enough to be checkpointed together with the rings' positions (see
sinks/checkpoint.py): after a SIGKILL the books say exactly what the positions say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.event import Ints, Passage, Told
from pipeline.schema import KINDS, by_number

__all__ = ["SHOWN", "TERMS", "Books", "KernelBooks", "RingBooks", "Statement"]

TERMS = ("attempted", "acknowledged", "filtered", "lost", "in_outbox", "in_flight")
MILESTONES = ("assembled", "encoded")
"""How far events came: no terms of the identity."""
SHOWN = ("attempted", "assembled", "filtered", "encoded", "in_outbox", "acknowledged", "lost", "in_flight")
"""Both, in the order of an event's way."""


def zeros() -> Ints:
    """No events of any kind."""
    return np.zeros(KINDS, np.int64)


Tally = dict[tuple[str, str, str], Ints]
"""(term, stage, reason) → events per kind; term is "filtered", "lost", or one of MILESTONES."""


def add(tally: Tally, other: Mapping[tuple[str, str, str], Ints]) -> None:
    """Add one tally to another, in place."""
    for key, counts in other.items():
        tally[key] = tally.get(key, 0) + counts


@dataclass(slots=True)
class RingBooks:
    """What the pipeline saw of one ring, up to a position."""

    position: int = 0
    """Byte position: everything before it is safe."""
    sequence: int = 0
    """Number of the chunk at that position, if none is missing there."""
    read: int = 0
    """Chunks read."""
    gaps: int = 0
    """Sequence numbers that never arrived."""
    other: dict[str, int] = field(default_factory=dict)
    """repeat, orphan, malformed, discarded: chunks that were read and made no event, or not a new one."""


@dataclass(slots=True)
class Books:
    """The user-space terms up to a checkpoint: what is settled for good."""

    number: int = 0
    """Passages retired."""
    acknowledged: Ints = field(default_factory=zeros)
    tally: Tally = field(default_factory=dict)
    rings: dict[int, RingBooks] = field(default_factory=dict)
    spilled: Ints = field(default_factory=zeros)
    """Events that ever went into the outbox. No term: what is missing there is found by it."""
    left: Tally = field(default_factory=dict)
    """What became of those that left it, as its file says too; for when that is lost."""
    seen: int = 0
    """Boottime ns that the newest heartbeat here speaks of: before it, everything is in these books."""
    told: Told = field(default_factory=dict)
    """The losses that are in the stream up to there."""
    complete: int = 0
    """Boottime ns: every event before it is acknowledged, filtered, or told as lost."""

    def retire(self, passage: Passage) -> None:
        """Take over what a passage booked, and the positions that are free now."""
        self.number = passage.number
        add(self.tally, passage.tally)
        if passage.beat:
            self.seen, self.told = max(self.seen, passage.beat.until), passage.told
        for ring, (position, sequence) in passage.positions.items():
            books = self.rings.setdefault(ring, RingBooks())
            books.position, books.sequence = position, sequence
        for gap in passage.gaps:
            self.rings.setdefault(gap.ring, RingBooks()).gaps += -len(gap) if gap.filled else len(gap)
        for (ring, what), n in passage.chunks.items():
            books = self.rings.setdefault(ring, RingBooks())
            if what == "read":
                books.read += n
            else:
                books.other[what] = books.other.get(what, 0) + n

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint: only dicts, lists, texts and numbers."""
        return {
            "number": self.number,
            "acknowledged": self.acknowledged.tolist(),
            "tally": _tally_to_plain(self.tally),
            "spilled": self.spilled.tolist(),
            "left": _tally_to_plain(self.left),
            "rings": [
                [ring, b.position, b.sequence, b.read, b.gaps, dict(b.other)]
                for ring, b in self.rings.items()
            ],
            "seen": self.seen,
            "told": [
                [*key, [(n, int(counts[n])) for n in np.flatnonzero(counts).tolist()]]
                for key, counts in self.told.items()
            ],
            "complete": self.complete,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Books:
        """The books that `to_plain` wrote."""
        return cls(
            number=plain["number"],
            acknowledged=np.array(plain["acknowledged"], np.int64),
            tally=_tally_from_plain(plain["tally"]),
            rings={ring: RingBooks(*rest) for ring, *rest in plain["rings"]},
            spilled=np.array(plain["spilled"], np.int64) if "spilled" in plain else zeros(),
            left=_tally_from_plain(plain.get("left", ())),
            # Books of earlier versions know of no heartbeats.
            seen=plain.get("seen", 0),
            told={(ring, stage, reason): _dense(few) for ring, stage, reason, few in plain.get("told", ())},
            complete=plain.get("complete", 0),
        )


def _tally_to_plain(tally: Tally) -> list[list[Any]]:
    return [[*key, counts.tolist()] for key, counts in tally.items()]


def _tally_from_plain(plain: Iterable[list[Any]]) -> Tally:
    return {(a, b, c): np.array(counts, np.int64) for a, b, c, counts in plain}


def _dense(few: Iterable[tuple[int, int]]) -> Ints:
    counts = zeros()
    for kind, n in few:
        counts[kind] = n
    return counts


@dataclass(frozen=True, slots=True)
class KernelBooks:
    """The kernel's counters at one moment (kernel/books.py reads them), and what stood in the rings then."""

    attempted: Ints
    """Events that a hook saw, those it skipped (recursion misses) included."""
    tally: Tally
    """What the kernel filtered ("filtered", "kernel", "self" | "self-test" | "uid" | "cgroup" | "events") and
    lost ("lost", "kernel" | "ring", …)."""
    unread: Ints
    """Events whose heads stand in the rings behind the reader's cursor: in flight."""
    rings: Mapping[int, tuple[int, int, int, int]]
    """Ring → (chunks attempted, drops, chunks unread, gaps behind the reader's cursor)."""


@dataclass(frozen=True)
class Statement:
    """The ledger at one moment, as `promissory ledger` prints it."""

    attempted: Ints
    attempted_after: Ints
    """Attempted, read again after all other terms: while events come in, the identity holds between them."""
    acknowledged: Ints
    tally: Tally
    in_outbox: Ints
    in_flight: Ints
    rings: Mapping[int, Mapping[str, int]]
    """Ring → chunks_attempted, chunks_attempted_after, chunks_read, gaps, drops, unread, …"""
    troubles: Mapping[str, int] = field(default_factory=dict)
    """Counters of the kernel that should stay 0."""
    complete_until: int = 0
    """Boottime ns: every event before it is acknowledged, filtered, or inside a loss record."""

    def term(self, name: str) -> Ints:
        """Events per kind of filtered or lost, or that came to a milestone."""
        return sum((c for (term, _, _), c in self.tally.items() if term == name), zeros())

    @property
    def balanced(self) -> bool:
        """I5 and I1, exactly; while events come in, within what came in during the look."""
        accounted = (
            self.acknowledged + self.term("filtered") + self.term("lost") + self.in_outbox + self.in_flight
        )
        events = bool(np.all(self.attempted <= accounted) and np.all(accounted <= self.attempted_after))
        return events and all(_ring_balanced(ring) for ring in self.rings.values())

    def to_plain(self) -> dict[str, Any]:
        """As `ledger --json` prints it (issue: stable keys)."""
        terms = {
            "attempted": self.attempted,
            "acknowledged": self.acknowledged,
            "filtered": self.term("filtered"),
            "lost": self.term("lost"),
            "in_outbox": self.in_outbox,
            "in_flight": self.in_flight,
            **{name: self.term(name) for name in MILESTONES},
        }
        kinds = {n: s.name for n, s in by_number().items()}
        return {
            "balanced": self.balanced,
            "complete_until": self.complete_until or None,
            **{name: int(counts.sum()) for name, counts in terms.items()},
            "events": {
                kind: {name: int(counts[n]) for name, counts in terms.items()} for n, kind in kinds.items()
            },
            "rings": {str(ring): dict(values) for ring, values in sorted(self.rings.items())},
            "losses": self._reasons("lost", kinds),
            "filters": self._reasons("filtered", kinds),
            "troubles": dict(self.troubles),
        }

    def _reasons(self, name: str, kinds: Mapping[int, str]) -> list[dict[str, Any]]:
        return [
            {"stage": stage, "reason": reason, "kind": kinds.get(n, "unknown"), "count": int(counts[n])}
            for (term, stage, reason), counts in sorted(self.tally.items(), key=lambda item: item[0])
            if term == name
            for n in np.flatnonzero(counts).tolist()
        ]


def _ring_balanced(ring: Mapping[str, int]) -> bool:
    seen = ring["chunks_read"] + ring["gaps"] + ring["unread"]
    attempted, after = ring["chunks_attempted"], ring["chunks_attempted_after"]
    return attempted <= seen <= after and (attempted != after or ring["gaps"] == ring["drops"])
