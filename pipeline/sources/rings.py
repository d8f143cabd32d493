"""Live rings: one task per ring waits; whichever wakes starts passes over all rings. Each pass is one batch.

While anything is unread or unsafe (read, but not yet acknowledged) a pass is made after every nap. Waiting on
the descriptors would not do then: a ring whose position is held back is always readable, so level-triggered
epoll spins, and the kernel wakes nobody before the position has caught up. When everything is safe, only the
descriptors are waited on, and nothing ticks.

Now and then a pass is made though nothing may have come: a *beat*. It says up to when the stream is whole
behind it, and for that looks at the kernel's counters, which know of losses that no chunk shows yet.

Sources of our own (feeds.py) are asked at each pass, after the clock and before the rings: what they put into
their rings is as old as what programs put there, so the watermark holds for them too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from pipeline.event import Beat, Gap, Pass
from pipeline.kernel.ring import Ring
from pipeline.sources.feeds import Feed
from pipeline.stages.stage import Link

__all__ = ["NAP", "Beats", "Rings"]

NAP: Final = 0.002
"""Seconds between two passes while many events come: latency against CPU (see docs/benchmarks.md)."""
ENOUGH: Final = 100
"""Events that a nap waits for: a pass costs the same for one as for a hundred, …"""
LONG_NAP: Final = 0.01
"""… but no longer than this, in seconds, …"""
CROWDED: Final = 1 / 8
"""… and NAP alone once this part of a ring is taken: few events can be many chunks."""
LONGEST_NAP: Final = 0.02
"""Seconds between two passes while nothing comes and something is still unsafe."""
SLACK: Final = 1_000_000
"""ns: how much later than its time a chunk may become visible."""
LIMIT: Final = 16384
"""Chunks that a pass takes in all: 4 MiB, shared by those rings that have any. So memory is bounded."""
LEAST: Final = 256
"""Chunks that it may take from one ring, however many share."""


@dataclass(frozen=True, slots=True)
class Beats:
    """How often the source begins a heartbeat, and what it looks at."""

    every: float
    """Seconds."""
    counters: Callable[[], Mapping[int, tuple[int, int]]]
    """Ring → (its next number, numbers that were dropped), as the kernel counts them."""


class Rings:
    """The source of live chunks.

    rings: by number. descriptors: what can be waited on, for those rings that are in the kernel. now:
    boottime, and what to add to it for the time since the epoch, both ns. feeds: what fills rings of our own.
    beats: None: there are no heartbeats.
    """

    def __init__(
        self,
        rings: Mapping[int, Ring],
        descriptors: Mapping[int, int],
        now: Callable[[], tuple[int, int]],
        nap: float = NAP,
        feeds: Sequence[Feed] = (),
        beats: Beats | None = None,
    ) -> None:
        self.rings = rings
        self._descriptors = descriptors
        self._now = now
        self._nap = nap
        self._feeds = feeds
        self._beats = beats
        self._due = -math.inf if beats else math.inf
        self._stop = False
        self._drain = True
        self._asleep = trio.Event()
        self._awake = trio.Event()

    def stop(self, *, drain: bool) -> None:
        """End. `drain`: read what is in the rings first (nothing fills them any more)."""
        if self._feeds and not self._stop:
            self._feed(self._now()[0], last=True)  # what they hold would be lost with their descriptors
        self._stop, self._drain = True, drain
        self._awake.set()

    async def run(self, target: Link[Pass]) -> None:
        """Make passes until told to stop; then close the output."""
        async with trio.open_nursery() as nursery:
            fed = (descriptor for feed in self._feeds for descriptor in feed.descriptors)
            for descriptor in (*self._descriptors.values(), *fed):
                nursery.start_soon(self._watch, descriptor)
            await self._passes(target)
            nursery.cancel_scope.cancel()
        target.close()

    async def _watch(self, descriptor: int) -> None:
        while True:
            await self._asleep.wait()
            await trio.lowlevel.wait_readable(descriptor)
            self._awake.set()
            # Until the passes are over this ring stays readable, and waiting would spin.
            await trio.lowlevel.checkpoint()

    async def _passes(self, target: Link[Pass]) -> None:
        nap = self._nap
        looked = trio.current_time()
        while self._drain or not self._stop:
            stopping = self._stop
            found = self._look(self._is_due())
            before, looked = looked, trio.current_time()
            nap = self._nap_after(found, looked - before, nap)
            if found.slices or found.beat or not self._idle():
                await target.send([found])
            if stopping and not found.slices:
                break
            if self._idle() and not self._stop:
                await self._sleep()
                looked = trio.current_time()
                nap = self._nap  # what woke us is too young to be let go (SLACK), and seldom alone
            await trio.sleep(nap)

        if self._beats:  # the last word on what was lost
            await target.send([self._look(self._beats)])

    def _is_due(self) -> Beats | None:
        """A beat, if it is time for one."""
        if self._beats is None or trio.current_time() < self._due:
            return None
        self._due = trio.current_time() + self._beats.every
        return self._beats

    def _nap_after(self, found: Pass, seconds: float, nap: float) -> float:
        """The nap after what came in so many seconds, and after the last nap."""
        if not found.slices:
            return min(2 * nap, LONGEST_NAP)
        if any(ring.filled > CROWDED for ring in self.rings.values()):
            return self._nap
        events = max(int(found.counts.sum()), 1)
        return max(self._nap, min(seconds * ENOUGH / events, LONG_NAP))

    async def _sleep(self) -> None:
        self._awake = trio.Event()
        self._listen(True)
        self._asleep.set()
        for _ in range(2):  # after the second one, every watcher waits on its descriptor
            await trio.lowlevel.checkpoint()
        if self._idle():  # nothing came while nobody would have been woken
            with trio.move_on_at(self._due):
                await self._awake.wait()
        self._asleep = trio.Event()
        self._listen(False)

    def _listen(self, on: bool) -> None:
        for feed in self._feeds:
            feed.listen(on)

    def _idle(self) -> bool:
        waiting = not self._stop and any(feed.waits for feed in self._feeds)
        return not waiting and all(ring.idle for ring in self.rings.values())

    def _feed(self, now: int, *, beat: bool = False, last: bool = False) -> None:
        for feed in self._feeds:
            feed.pump(now, beat=beat, last=last)

    def _look(self, beats: Beats | None) -> Pass:
        boottime, clock = self._now()
        counters = beats.counters() if beats else {}  # before the rings: what it counts can be seen there
        if not self._stop:
            self._feed(boottime, beat=beats is not None)
        watermark = boottime - SLACK
        share = max(LIMIT // max(sum(ring.waits for ring in self.rings.values()), 1), LEAST)
        slices = []
        for ring in self.rings.values():
            found = ring.read(share)
            if found is not None:
                slices.append(found)
            full = found is not None and len(found.chunks) == share
            if ring.stalled or full:  # what stands there already is hardly earlier than what was read
                watermark = min(watermark, ring.time - SLACK)
        beat = self._beat(watermark, boottime, counters) if beats else None
        return Pass(tuple(slices), watermark, clock, beat)

    def _beat(self, until: int, now: int, counters: Mapping[int, tuple[int, int]]) -> Beat:
        tails = []
        for feed in self._feeds:
            if feed.oldest is not None:
                until = min(until, feed.oldest)
        for ring, (number, dropped) in counters.items():
            tail = self.rings[ring].tail(number, dropped, now)
            if isinstance(tail, Gap):
                tails.append(tail)
            elif tail is not None:
                until = min(until, tail)
        return Beat(until, tuple(tails))
