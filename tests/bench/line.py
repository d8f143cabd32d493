"""A whole pipeline over given rings, wired as pipeline/app.py wires a real one: what most figures run.

    rings → merge → assemble → enrich → encode → sink

It measures itself from outside: CPU of the process, time to the last acknowledgement, and when asked the
CPU of each stage and every event's time from its chunk to its acknowledgement.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import trio
from numpy.typing import NDArray

from pipeline.event import Batch, Encoded, Ints, Passage
from pipeline.kernel.layout import AREA_SIZE
from pipeline.kernel.ring import Ring
from pipeline.ledger import Books, Tally, zeros
from pipeline.redact import Redaction
from pipeline.sinks.checkpoint import BookKeeper
from pipeline.sinks.sink import Keeper, Sink
from pipeline.sources.rings import NAP, Rings
from pipeline.stages import stage
from pipeline.stages.assemble import Assemble
from pipeline.stages.encode import Encode
from pipeline.stages.enrich import Enrich
from pipeline.stages.merge import Merge
from pipeline.stages.stage import Link, Stage
from pipeline.store import Outcome
from tests.batches import HOST, FixedAnswers

__all__ = ["ALLOWED", "Immediate", "Run", "boottime", "measure", "stages"]

ALLOWED: Final = ("PATH", "HOME", "SHELL", "USER", "LANG", "TERM", "PWD")
"""Names of variables whose values are shown; most are not."""
SURFACES: Final = dict.fromkeys(("exec", "fork", "exit"), "tracepoint") | {"process": "proc"}
MakeSink = Callable[[Keeper], Sink]


@dataclass
class Run:
    """What one run showed."""

    seconds: float = 0
    """From the first event to the last acknowledgement."""
    cpu: float = 0
    """Seconds of CPU of the whole process meanwhile, all threads."""
    events: int = 0
    """Acknowledged."""
    spilled: int = 0
    """Of those, by way of the outbox."""
    lost: int = 0
    """Chunks: gaps in the rings' numbers."""
    chunks: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of CPU of each stage, where it was asked for."""
    latencies: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """ns from the time in a head to the acknowledgement of its batch, where they were asked for."""

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.events / self.seconds

    @property
    def ns(self) -> float:
        """CPU per event."""
        return self.cpu / self.events * 1e9


class Immediate:
    """A sink that acknowledges at once."""

    name = "immediate"

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    async def run(self, source: Link[Any]) -> None:
        """Every batch is safe when it comes."""
        async for batch in source:
            self._keeper.checkpoint(batch.passage, batch.counts)
            self._keeper.release()

    def held(self) -> Ints:
        """Nothing is held."""
        return zeros()

    def in_outbox(self) -> Ints:
        """There is none."""
        return zeros()

    def settled(self) -> Outcome:
        """There is no outbox."""
        return Outcome(zeros())


class Polled(Rings):
    """Live rings that no kernel fills: nobody would wake their reader."""

    async def _sleep(self) -> None:
        await trio.sleep(self._nap)


class Witness:
    """A keeper that notes when what became safe."""

    def __init__(self, keeper: BookKeeper) -> None:
        self._keeper = keeper
        self.pressure = keeper.pressure
        self.last = time.monotonic()
        self.acknowledged = zeros()
        self.times: dict[int, Ints] | None = None
        """Number of a passage → times of its events; None: nobody asked."""
        self.latencies: list[Ints] = []

    def checkpoint(
        self, passage: Passage, acknowledged: Ints, *, spilled: Ints | None = None
    ) -> dict[str, Any]:
        """See Keeper."""
        self.last = time.monotonic()
        self.acknowledged += acknowledged
        if self.times is not None:
            self.latencies.append(boottime() - self.times.pop(passage.number))
        return self._keeper.checkpoint(passage, acknowledged, spilled=spilled)

    def settled(self, left: Tally) -> None:
        """See Keeper."""
        self._keeper.settled(left)

    def complete(self, until: int) -> None:
        """See Keeper."""
        self._keeper.complete(until)

    def release(self) -> None:
        """See Keeper."""
        self._keeper.release()

    def note(self, batch: Batch) -> None:
        """Times of a batch that leaves assembly."""
        if self.times is not None:
            self.times[batch.passage.number] = batch.heads["time"].copy()


class Timed:
    """A stage, with a clock around it."""

    def __init__(self, inner: Stage[Any, Any], cost: dict[str, float]) -> None:
        self._inner, self._cost, self.name = inner, cost, inner.name
        self.finish, self.held = inner.finish, inner.held
        cost[self.name] = 0

    def __call__(self, batch: Any) -> Iterable[Any]:
        begin = time.thread_time()
        found = self._inner(batch)
        self._cost[self.name] += time.thread_time() - begin
        return found


class Tap:
    """A stage that lets somebody look at what passes by."""

    name = "noted"

    def __init__(self, look: Callable[[Batch], None]) -> None:
        self._look = look

    def __call__(self, batch: Batch) -> tuple[Batch]:
        self._look(batch)
        return (batch,)

    def finish(self) -> tuple[()]:
        """Nothing is held."""
        return ()

    def held(self) -> Ints:
        """Nothing is held."""
        return zeros()


def boottime() -> int:
    """ns since boot, as chunks have it."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def stages(rings: Mapping[int, Ring]) -> list[Stage[Any, Any]]:
    """All stages from the rings to records."""
    boundary = {number: ring.expected for number, ring in rings.items()}
    return [
        Merge(),
        Assemble(boundary),
        Enrich(FixedAnswers()),
        Encode(HOST, SURFACES, Redaction(ALLOWED)),
    ]


async def measure(
    rings: Mapping[int, Ring],
    sink: MakeSink,
    *,
    go: Callable[[], None],
    ended: Callable[[], bool],
    last: int = 4,
    nap: float = NAP,
    profile: bool = False,
    latency: bool = False,
) -> Run:
    """Run a pipeline of the first `last` stages from `go()` until `ended()`, and all is acknowledged."""
    run = Run()
    keeper = BookKeeper(
        Books(),
        bytearray(AREA_SIZE),
        move=lambda ring, position: rings[ring].release(position),
        pressure=lambda: max(ring.filled for ring in rings.values()),
    )
    witness = Witness(keeper)
    witness.times = {} if latency else None
    end = sink(witness)
    if hasattr(end, "open"):
        await end.open()
    chain = stages(rings)[:last]
    if profile:
        chain = [Timed(each, run.stages) for each in chain]
    if latency:
        chain.insert(2, Tap(witness.note))
    source = Polled(rings, {}, lambda: (boottime(), time.time_ns() - boottime()), nap)
    begin, cpu = time.monotonic(), time.process_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until, ended, source)
        link: Link[Any] = Link("passes")
        nursery.start_soon(source.run, link)
        for each in chain:
            following: Link[Any] = Link(each.name)
            nursery.start_soon(stage.run, each, link, following)
            link = following
        nursery.start_soon(end.run, link)
        go()
    run.cpu = time.process_time() - cpu
    run.spilled = int(end.settled().acknowledged.sum())
    run.seconds = (time.monotonic() if run.spilled else witness.last) - begin
    run.events = int(witness.acknowledged.sum()) + run.spilled
    run.lost = sum(ring.gaps for ring in rings.values())
    run.chunks = sum(ring.chunks_read for ring in rings.values())
    if witness.latencies:
        run.latencies = np.concatenate(witness.latencies)
    return run


async def _until(ended: Callable[[], bool], source: Rings) -> None:
    while not ended():  # noqa: ASYNC110 - a process is looked at: nobody could set an event
        await trio.sleep(0.02)
    source.stop(drain=True)


def records(rings: Mapping[int, Ring]) -> list[Encoded]:
    """What a pipeline makes of all that stands in rings now."""
    found: list[Encoded] = []

    class Collect(Immediate):
        async def run(self, source: Link[Any]) -> None:
            async for batch in source:
                found.append(batch)
                self._keeper.checkpoint(batch.passage, batch.counts)
                self._keeper.release()

    trio.run(lambda: measure(rings, Collect, go=lambda: None, ended=lambda: True))
    return found
