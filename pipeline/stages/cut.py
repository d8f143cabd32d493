"""The cut behind what assembly has released: a place in every ring, and the books of the chunks before it.

Chunks and gaps are counted when the cut passes over them and not before, so what is checkpointed with a
position says exactly what lies before that position: a run that starts there counts on, and nothing twice.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

import numpy as np

from pipeline.chunk import STRIDE
from pipeline.event import FOREVER, Gap, Passage
from pipeline.stages.join import FATES, Window

__all__ = ["Cut"]


class Cut:
    """Makes passages. `boundary`: ring → the sequence expected where its reading starts."""

    def __init__(self, boundary: Mapping[int, int], number: int) -> None:
        self._expected = dict(boundary)
        self._number = number
        self._gaps: dict[tuple[int, bool], deque[Gap]] = {}
        """(ring, filled) → in order; those that are not filled ascend in their numbers too."""
        self._next = Passage(0, {})

    @property
    def moved(self) -> bool:
        """Chunks lie before the cut of which no passage tells yet."""
        return bool(self._next.positions)

    def look(self, gaps: tuple[Gap, ...]) -> None:
        """Gaps that lie ahead of the cut."""
        for gap in gaps:
            self._gaps.setdefault((gap.ring, gap.filled), deque()).append(gap)

    def earliest(self) -> int:
        """Boottime ns at which the first gap that lies ahead may begin."""
        ahead = (gap.before for (_, filled), gaps in self._gaps.items() if not filled for gap in gaps)
        return min(ahead, default=FOREVER)

    def gaps_after(self, ring: int, sequence: int, enough: int) -> bool:
        """Does this ring miss so many numbers after this one, ahead of the cut?"""
        enough += sum(gap.first > sequence for gap in self._gaps.get((ring, True), ()))
        for gap in reversed(self._gaps.get((ring, False), ())):
            enough -= max(0, gap.last - max(gap.first - 1, sequence))
            if enough <= 0 or gap.first <= sequence:
                break
        return enough <= 0

    def move(self, window: Window, end: int) -> None:
        """Take the cut over the window's chunks of lower rank than `end`."""
        if end == window.passed:
            return
        m = window.merged
        if end == len(m):
            till = np.append(m.runs[1:], end) - m.runs
            highest = np.maximum.reduceat(m.sequence, m.runs)
        else:
            before = m.rank < end
            till = np.add.reduceat(before, m.runs, dtype=np.int64)
            highest = np.maximum.reduceat(np.where(before, m.sequence, -1), m.runs)
        read, window.left = till - window.left, till
        columns = (m.ring[m.runs], m.position[m.runs + till - 1] + STRIDE, read, highest + 1)
        for ring, position, n, expected in zip(*(column.tolist() for column in columns), strict=True):
            if n:
                self._pass(ring, position, n, expected)
        if window.marked:
            self._book(window, end)
        window.passed = end

    def passage(self) -> Passage:
        """All that the cut passed over since the last one."""
        self._number += 1
        passage, self._next = self._next, Passage(0, {})
        passage.number = self._number
        return passage

    def _pass(self, ring: int, position: int, read: int, expected: int) -> None:
        expected = self._expected[ring] = max(self._expected.get(ring, 0), expected)
        self._next.positions[ring] = position, expected
        self._count(ring, "read", read)
        for filled in (False, True):
            gaps = self._gaps.get((ring, filled))
            while gaps and gaps[0].position < position:
                self._next.gaps += (gaps.popleft(),)

    def _book(self, window: Window, end: int) -> None:
        m = window.merged
        rows = np.flatnonzero((window.fate > 0) & (m.rank >= window.passed) & (m.rank < end))
        fates = Counter(zip(m.ring[rows].tolist(), window.fate[rows].tolist(), strict=True))
        for (ring, fate), n in fates.items():
            self._count(ring, FATES[fate], n)
        lost = window.malformed(window.passed, end)
        if lost.any():
            self._next.book("lost", "merge", "malformed", lost)

    def _count(self, ring: int, what: str, n: int) -> None:
        self._next.chunks[ring, what] = self._next.chunks.get((ring, what), 0) + n
