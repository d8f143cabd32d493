"""Heads: which events' heads came already. Assembly's memory for what comes twice or too late; bounded.

A ring's numbers ascend, but for programs that nest: one takes its number, the next one is first to reserve.
So a number below the highest is new unless it is remembered, or is older than all that is remembered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.chunk import MAX_RINGS, event_id, ring_of
from pipeline.event import Ints

__all__ = ["LATE", "Heads"]

Bools = NDArray[np.bool_]
LATE: Final = 1 << 15
"""Heads that are remembered, and how far below a ring's boundary a number can still be a new one that nesting
delayed: a ring's position says exactly which chunks are new, its boundary only which numbers."""
BATCHES: Final = 1 << 10


class Heads:
    """Ids of heads, of all rings."""

    def __init__(self, boundary: Mapping[int, int]) -> None:
        self._boundary = np.zeros(MAX_RINGS, np.int64)
        self._floor = np.full(MAX_RINGS, -1, np.int64)
        for ring, sequence in boundary.items():
            self._boundary[ring] = event_id(ring, sequence)
            self._floor[ring] = event_id(ring, max(sequence - LATE, 0)) - 1
        self._top = self._floor.copy()
        self._recent: deque[Ints] = deque()
        self._remembered = 0

    def add(self, ids: Ints) -> Bools:
        """Take heads in, ring by ring, each ring's in its order; say which are new."""
        rings = ring_of(ids)
        fresh: Bools = ids > self._top[rings]
        if fresh.all() and (ids[1:] > ids[:-1]).all():
            # Of several for one ring numpy keeps the last: the highest.
            self._top[rings] = ids
        else:
            fresh = np.zeros(len(ids), bool)
            fresh[np.unique(ids, return_index=True)[1]] = True
            fresh &= ~self.know(ids)
            ids = ids[fresh]
            np.maximum.at(self._top, ring_of(ids), ids)
        self._remember(ids)
        return fresh

    def know(self, ids: Ints) -> Bools:
        """Which of these came already, or are older than what is remembered."""
        known: Bools = ids <= self._floor[ring_of(ids)]
        if self._remembered:
            recent = np.sort(np.concatenate(self._recent), kind="stable")
            known |= recent[recent.searchsorted(ids).clip(max=len(recent) - 1)] == ids
        return known

    def before(self, ids: Ints) -> Bools:
        """Which of these lie before their ring's boundary: an earlier run had them."""
        old: Bools = ids < self._boundary[ring_of(ids)]
        return old

    def _remember(self, ids: Ints) -> None:
        if not len(ids):
            return
        self._recent.append(ids)
        self._remembered += len(ids)
        while len(self._recent) > BATCHES or (self._remembered > LATE and len(self._recent) > 1):
            old = self._recent.popleft()
            self._remembered -= len(old)
            np.maximum.at(self._floor, ring_of(old), old)
