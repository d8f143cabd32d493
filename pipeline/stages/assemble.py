"""Assemble: chunks into events, in order of time. Merged → assemble → Batch, with the Passage that goes
along.

An event leaves when all its chunks are there and every event before it has left. One that does not complete
holds the others back until it is known to be lost, or has expired by the watermark, or assembly holds too
much. So what has left is always a prefix of the stream that merge made, and the cut behind it is a position
in every ring: what lies before it is done with, once the batch is safe; a new run that starts there finds
exactly the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from pipeline.chunk import HEADER, STRIDE, ring_of, sequence_of
from pipeline.event import Batch, Beat, Ints
from pipeline.ledger import zeros
from pipeline.stages.cut import Cut
from pipeline.stages.heads import Heads
from pipeline.stages.join import (
    BEYOND,
    DISCARDED,
    DUPLICATE,
    LATE,
    MALFORMED,
    ORPHAN,
    REPEAT,
    Groups,
    Unfinished,
    Window,
    group,
)
from pipeline.stages.merge import Merged

__all__ = ["EXPIRY", "LIMIT", "Assemble"]

EXPIRY: Final = 500_000_000
"""ns that an event may hold the others back."""
LIMIT: Final = 64 << 20
"""Bytes of chunks that may be held."""
SETTLE: Final = 10_000_000
"""ns without a new chunk after which a gap is taken for what an event misses."""
MOST: Final = 4096
"""Events in a batch."""


class Assemble:
    """The stage; see the module's text.

    `boundary`: ring → first sequence that no earlier run has released; `number`: of the last passage of that
    run.
    """

    name = "assemble"

    def __init__(
        self, boundary: Mapping[int, int], number: int = 0, expiry: int = EXPIRY, limit: int = LIMIT
    ) -> None:
        self._heads = Heads(boundary)
        self._cut = Cut(boundary, number)
        self._expiry = expiry
        self._limit = limit
        self._windows: deque[Window] = deque()
        self._unfinished: dict[int, Unfinished] = {}
        """By id, oldest first."""
        self._clock = 0
        self._total = 0
        """Chunks that came in."""

    def __call__(self, batch: Merged) -> list[Batch]:
        """Join, settle what will not complete, and release."""
        self._clock = batch.clock
        self._cut.look(batch.gaps)
        if len(batch):
            self._take(batch)
        self._settle(batch.watermark)
        return list(self._release(batch.beat))

    def finish(self) -> list[Batch]:
        """Everything leaves, complete or not."""
        for unfinished in list(self._unfinished.values()):
            self._leave(unfinished)
        return list(self._release())

    def held(self) -> Ints:
        """Heads that did not leave yet."""
        return sum((window.held() for window in self._windows), zeros())

    def _take(self, merged: Merged) -> None:
        sound = merged.sound()
        heads = (sound & (merged.part == 0)).nonzero()[0]
        fresh = self._heads.add(merged.id[heads])
        repeated, heads = heads[~fresh], heads[fresh]
        joining = sound & (merged.parts > 1)
        joining[repeated] = False
        rows = joining.nonzero()[0]
        groups = group(merged, rows) if len(rows) else None
        if groups is not None and self._unfinished:
            # What came before its head has memory already; the rest joins it there.
            groups.whole[groups.whole] = ~np.isin(groups.id[groups.whole], list(self._unfinished))
        window = Window(merged, self._total, heads, groups)
        self._windows.append(window)
        self._total += len(merged)
        if len(repeated):
            early = self._heads.before(merged.id[repeated])
            window.mark(repeated[early], REPEAT)
            window.mark(repeated[~early], DUPLICATE)
        if not sound.all():
            window.mark((~sound).nonzero()[0], MALFORMED)
            window.mark(merged.discarded.nonzero()[0], DISCARDED)
        if groups is not None and not groups.whole.all():
            self._piecewise(window, groups)

    def _piecewise(self, window: Window, groups: Groups) -> None:
        """Chunks of events that are not here whole and in order: few, so one by one."""
        merged, new = window.merged, []
        broken = (~groups.whole).nonzero()[0]
        gone = self._gone(merged, groups, broken)
        for g, fate in zip(broken.tolist(), gone.tolist(), strict=True):
            rows = groups.rows[groups.first[g] :][: groups.length[g]]
            if fate:
                window.mark(rows, fate)
                continue
            id = int(groups.id[g])
            unfinished = self._unfinished.get(id)
            if unfinished is None:
                first = rows[merged.rank[rows].argmin()]
                ordinal, time = window.base + int(merged.rank[first]), int(merged.time[first])
                unfinished = Unfinished(id, int(merged.parts[rows].min()), ordinal, time)
                new.append(unfinished)
            unfinished.add(window, rows)
            if merged.part[rows[0]] == 0:
                window.slow[int(merged.rank[rows[0]])] = unfinished
            if not unfinished.missing:
                self._unfinished.pop(id, None)
                self._fate(unfinished.beyond(), BEYOND)
        new.sort(key=lambda unfinished: unfinished.ordinal)
        self._unfinished.update((u.id, u) for u in new if u.missing)

    def _gone(self, merged: Merged, groups: Groups, broken: Ints) -> Ints:
        """The fate of parts that have no head here, nor any that waits: REPEAT, LATE, or 0 when it may yet
        come."""
        ids = groups.id[broken]
        stray = merged.part[groups.rows[groups.first[broken]]] > 0
        if self._unfinished:
            stray &= ~np.isin(ids, list(self._unfinished))
        if not stray.any():
            return np.zeros(len(ids), np.int64)
        came = np.where(self._heads.know(ids), LATE, 0)
        return np.where(stray, np.where(self._heads.before(ids), REPEAT, came), 0)

    def _settle(self, watermark: int) -> None:
        """Let the oldest unfinished ones leave that are not worth waiting for, or that there is no room to
        wait for."""
        while self._unfinished:
            oldest = next(iter(self._unfinished.values()))
            expired = oldest.time + self._expiry <= watermark
            if not (expired or (oldest.newest + SETTLE <= watermark and self._in_gaps(oldest))):
                if (self._total - oldest.ordinal) * STRIDE <= self._limit:
                    return
                oldest.evicted = True
            self._leave(oldest)

    def _leave(self, unfinished: Unfinished) -> None:
        del self._unfinished[unfinished.id]
        if unfinished.head:
            unfinished.settle("lost" if self._in_gaps(unfinished) else "expired")
        else:
            self._fate(unfinished.came(), ORPHAN)
        self._fate(unfinished.beyond(), BEYOND)

    def _in_gaps(self, unfinished: Unfinished) -> bool:
        """Its ring lost at least as many chunks after its head as it misses."""
        ring, sequence = ring_of(unfinished.id), sequence_of(unfinished.id)
        return unfinished.head and self._cut.gaps_after(ring, sequence, unfinished.missing)

    def _fate(self, ordinals: Ints, fate: int) -> None:
        if len(ordinals):
            for window in self._windows:
                window.mark_ordinals(ordinals, fate)

    def _release(self, beat: Beat | None = None) -> Iterator[Batch]:
        """All before the oldest that is unfinished; each batch from one window. A beat stands behind them."""
        stop = next(iter(self._unfinished.values())).ordinal if self._unfinished else self._total
        while self._windows and self._windows[0].base < stop:
            window = self._windows[0]
            end = min(stop - window.base, len(window.merged))
            last = int(np.searchsorted(window.rank, end))
            while window.released < last:
                first, window.released = window.released, min(window.released + MOST, last)
                self._cut.move(window, end if window.released == last else int(window.rank[window.released]))
                yield self._batch(window, first)
            self._cut.move(window, end)
            if end < len(window.merged):
                break
            self._windows.popleft()
        if self._cut.moved or beat:
            nothing, passage = np.empty(0, np.int64), self._cut.passage()
            if beat:
                held = (window.earliest() for window in self._windows)
                until = min((beat.until, self._cut.earliest(), *held))
                passage.beat = replace(beat, until=until)
            yield Batch(np.empty(0, HEADER), np.empty(0, np.uint8), nothing, nothing, self._clock, passage)

    def _batch(self, window: Window, first: int) -> Batch:
        heads, stream, start, size, holes = window.gather(first, window.released)
        passage = self._cut.passage()
        for ring in window.evicted(first, window.released):
            passage.chunks[ring, "evicted"] = passage.chunks.get((ring, "evicted"), 0) + 1
        batch = Batch(heads, stream, start, size, window.merged.clock, passage, holes)
        passage.reached("assembled", batch.counts)
        return batch
