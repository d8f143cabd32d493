"""Chunks that no program wrote: true ones of every kind, and then bits flipped, rows swapped, doubled or
dropped, cut, contradictory, or random altogether; put into rings as fast as these are read.

    Fuzz (a feed of sources/rings.py) → rings laid out like the kernel's → the real reader and the real stages
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import trio
from numpy.typing import NDArray

from pipeline.chunk import BUSY, DISCARD, HEADER, MAX_RINGS, PAYLOAD, SIZE, STRIDE, event_id
from pipeline.event import Ints, count
from pipeline.kernel.ring import PAGE, Ring, RingMemory
from pipeline.ledger import RingBooks, zeros
from pipeline.schema import by_number
from tests.chunks import data_of, event

__all__ = ["Fuzz"]

Rows = NDArray[Any]
ROOM: Final = 4096
"""Chunks of a ring."""
EVENTS: Final = 600
"""True events in the pool that rows are taken from."""
TICK: Final = 2_000_000
"""ns between two looks."""
NEAR: Final = 1 << 26
FAR: Final = 1 << 55
"""ns: a time is wrong by less than the one or by more than the other; what is between holds its ring back."""
JUMP: Final = 64
"""Numbers are wrong by less than this, but in the last ring: there they are whatever comes out."""
PARTS: Final = 1 + (8 << 20) // PAYLOAD
ROOMS: Final = {number: schema.room for number, schema in by_number().items()}


class Fuzz:
    """Fills rings with `total` chunks, from a seed. The witness counts what it wrote:

    written: chunks per ring; malformed, discarded: those that the wire format forbids, or says to skip;
    heads: all that are not discarded, per kind (0: no such kind); events: per kind, each id once;
    numbers: the different numbers of each ring's chunks.
    """

    descriptors: Sequence[int] = ()

    def __init__(self, total: int, seed: int, rings: int = 3) -> None:
        self._chance = np.random.default_rng(seed)
        self._pool = _pool(self._chance)
        self._memory = {number: _memory() for number in range(rings)}
        self.rings = {n: Ring(n, m, RingBooks(sequence=1)) for n, m in self._memory.items()}
        self._left = total
        self._next = dict.fromkeys(self.rings, 1)
        self._at = dict.fromkeys(self.rings, 0)
        self._busy: dict[int, list[int]] = {number: [] for number in self.rings}
        self._before: dict[int, Rows] = {number: np.empty(0, HEADER) for number in self.rings}
        self._ids: dict[int, set[int]] = {number: set() for number in self.rings}
        self._sequences: dict[int, list[Ints]] = {number: [] for number in self.rings}
        self.time = 1 << 50
        self.over = trio.Event()
        self.written = dict.fromkeys(self.rings, 0)
        self.malformed = self.discarded = 0
        self.heads, self.events = zeros(), zeros()

    def now(self) -> tuple[int, int]:
        """The clock of the source: boottime, and what to add for the epoch."""
        self.time += TICK
        return self.time, 1 << 60

    def numbers(self, ring: int) -> int:
        """How many different ones its chunks have."""
        return len(np.unique(np.concatenate(self._sequences[ring])))

    @property
    def waits(self) -> bool:
        """More is to come."""
        return self._left > 0

    def listen(self, on: bool) -> None:
        """Nobody has to be woken: while more is to come, nobody sleeps."""

    @property
    def oldest(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is open."""

    def pump(self, now: int, *, beat: bool = False, last: bool = False) -> None:
        """Fill what is free, and finish what was left half written."""
        for ring, memory in self._memory.items():
            for at in self._busy[ring]:
                for row in (at, at + ROOM):
                    memory.chunks["length"][row] &= ~np.uint32(BUSY)
            self._busy[ring].clear()
            room = ROOM - int(memory.producer[0] - memory.consumer[0]) // STRIDE
            # What is doubled or comes again needs room as well.
            if self._left and not last and room > ROOM // 2:
                self._put(ring, self._wrong(ring, self._rows(ring, min(self._left, room // 2), now), now))

    def _rows(self, ring: int, n: int, now: int) -> Rows:
        """The next n chunks as programs write them."""
        rows = self._pool[np.arange(self._at[ring], self._at[ring] + n) % len(self._pool)]
        rows["sequence"] = self._next[ring] + np.arange(n)
        rows["id"] = event_id(ring, 0) + rows["sequence"] - rows["part"]
        rows["time"] = now - TICK + np.arange(n)
        self._at[ring] = (self._at[ring] + n) % len(self._pool)
        self._next[ring] += n
        return rows

    def _some(self, n: int, share: float) -> Ints:
        return np.flatnonzero(self._chance.random(n) < share)

    def _wrong(self, ring: int, rows: Rows, now: int) -> Rows:
        """What may be wrong with them, one after another: a row can have several troubles."""
        chance, n = self._chance, len(rows)
        again, self._before[ring] = self._before[ring], rows[self._some(n, 0.01)]
        kept, twice = np.delete(np.arange(n), self._some(n, 0.02)), self._some(n, 0.02)
        source = np.concatenate([kept, twice])
        place = source.astype(float)
        moved = self._some(len(kept), 0.02)
        place[moved] += chance.integers(-4, 5, len(moved))
        place[len(kept) :] += chance.uniform(0, 40, len(twice))
        rows = np.concatenate([rows[source], again])
        place = np.concatenate([place, chance.uniform(0, n, len(again))])
        rows = rows[np.argsort(place, kind="stable")]
        true = rows["sequence"].copy()
        self._fields(rows)
        self._bytes(rows)
        far = (np.abs(rows["time"].astype(float) - now) > NEAR) & (rows["time"] >= 0)
        rows["time"][far] = now | FAR
        if ring < len(self.rings) - 1:
            jumped = np.abs(rows["sequence"].astype(float) - true) > JUMP
            rows["sequence"][jumped] = true[jumped]
        # A last part without data would be in its event, and nobody could see it there.
        rows["size"][(rows["part"] > 0) & (rows["size"] == 0)] = PAYLOAD + 1
        return rows

    def _fields(self, rows: Rows) -> None:
        """Lengths, sizes, parts and ids that contradict other chunks, or themselves."""
        n, chance = len(rows), self._chance
        lengths = np.array([0, 8, 100, SIZE - 1, SIZE + 1, 0xFFFF, SIZE | DISCARD, SIZE | BUSY])
        for name, share, values in (
            ("length", 0.01, lambda k: chance.choice(lengths, k)),
            ("size", 0.01, lambda k: chance.integers(0, 300, k)),
            ("parts", 0.02, lambda k: chance.choice([0, 1, 2, 3, 5, 9, 1000, PARTS, PARTS + 1, 1 << 31], k)),
            ("part", 0.01, lambda k: chance.choice([0, 1, 2, 3, 8, 1000, 1 << 31], k)),
            ("id", 0.01, lambda k: chance.choice(rows["id"], k)),
            ("kind", 0.01, lambda k: chance.integers(0, len(ROOMS) + 3, k)),
            ("flags", 0.01, lambda k: chance.integers(0, 8, k)),
            ("faults", 0.01, lambda k: chance.integers(0, 1 << 16, k)),
        ):
            some = self._some(n, share)
            rows[name][some] = values(len(some))

    def _bytes(self, rows: Rows) -> None:
        """Bits that flipped, in headers, in fields and anywhere; and rows of noise."""
        chance, raw = self._chance, rows.view(np.uint8).reshape(-1, STRIDE)
        for first, end, share in ((0, 48, 0.01), (48, 128, 0.02), (0, STRIDE, 0.02)):
            some = self._some(len(rows), share)
            raw[some, chance.integers(first, end, len(some))] ^= np.uint8(1) << chance.integers(
                0, 8, len(some), np.uint8
            )
        some = self._some(len(rows), 0.01)
        raw[some] = chance.integers(0, 256, (len(some), STRIDE), np.uint8)

    def _put(self, ring: int, rows: Rows) -> None:
        rows = rows[: self._left]
        self._left -= len(rows)
        if not self._left:
            self.over.set()
        self.written[ring] += len(rows)
        memory = self._memory[ring]
        at = (int(memory.producer[0]) // STRIDE + np.arange(len(rows))) % ROOM
        memory.chunks[at] = memory.chunks[at + ROOM] = rows
        self._busy[ring] += at[rows["length"] & BUSY != 0].tolist()
        memory.producer[0] += len(rows) * STRIDE
        rows["length"] &= ~np.uint32(BUSY)
        self._witness(ring, rows)

    def _witness(self, ring: int, rows: Rows) -> None:
        """What docs/wire-format.md says of each row alone."""
        discarded = rows["length"] & DISCARD != 0
        room = np.array([ROOMS.get(kind, -1) for kind in rows["kind"].tolist()])
        part, parts, size, id = (rows[name].astype(np.int64) for name in ("part", "parts", "size", "id"))
        good = (rows["length"] == SIZE) & (room >= 0) & (part < parts) & (parts <= PARTS)
        good &= (rows["sequence"] >> 52 == 0) & (rows["time"] >= 0) & (rows["time"] < FAR)
        own = (id == event_id(ring, 0) + rows["sequence"]) & (size <= room)
        of = (id >= 0) & (id >> 52 < MAX_RINGS) & ((size == PAYLOAD) | (size < PAYLOAD) & (part == parts - 1))
        good &= np.where(part == 0, own, of)
        self.discarded += int(discarded.sum())
        self.malformed += int((~good & ~discarded).sum())
        kinds = np.where(room < 0, 0, rows["kind"])
        self.heads += count(kinds[(part == 0) & ~discarded])
        self._sequences[ring].append(rows["sequence"].copy())
        heads = np.flatnonzero(good & (part == 0))
        first = heads[np.unique(id[heads], return_index=True)[1]]
        known = self._ids[ring]
        new = [row for row in first.tolist() if int(id[row]) not in known]
        known.update(id[new].tolist())
        self.events += count(kinds[new])


def _memory() -> RingMemory:
    return RingMemory(bytearray(PAGE), bytearray(PAGE + 2 * ROOM * STRIDE), ROOM * STRIDE)


def _pool(chance: np.random.Generator) -> Rows:
    """Chunks of true events, of every kind and many sizes."""
    kinds = sorted(by_number())
    sizes = chance.choice([0, 12, 40, 200, PAYLOAD, 500, 6 * PAYLOAD, 5000], EVENTS).tolist()
    events = zip(kinds * EVENTS, sizes, range(EVENTS), strict=False)
    return np.concatenate([event(kind, 0, data_of(by_number()[kind], size, i)) for kind, size, i in events])
