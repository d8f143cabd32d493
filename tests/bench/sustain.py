"""F2: one CPU floods its ring without pause

A process on one CPU makes system calls for ten seconds, each of which writes an event of one chunk into
a 16 MiB BPF ring; on the other CPU rings → merge → assemble run under trio into a sink that
acknowledges at once, and the ring's position moves behind it. CPU is that of the whole process, trio
and all.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Final

import trio

from tests.bench.flood import CPU, Flood
from tests.bench.line import Immediate, Run
from tests.bench.line import measure as run_line
from tests.bench.loads import Loads
from tests.bench.result import Part, Table, figure

__all__ = ["measure"]

SECONDS: Final = 10.0
TRY: Final = 200_000
STAGES: Final = 2


def measure(seconds: float = SECONDS) -> Part:
    """One run, and a short one that tells the CPU of each stage."""
    before = os.sched_getaffinity(0)
    with Loads() as loads, Flood(loads) as flood:
        os.sched_setaffinity(0, before - {CPU} or before)
        try:
            per_call = _flood(flood, TRY)[1]
            run, _, drops = _flood(flood, int(seconds * 1e9 / per_call))
            profile, _, _ = _flood(flood, int(1e9 / per_call), profile=True)
        finally:
            os.sched_setaffinity(0, before)
    costs = [(name, cost / profile.events * 1e9) for name, cost in profile.stages.items()]
    rest = profile.ns - sum(cost for _, cost in costs)
    return Part(
        __doc__ or "",
        [
            figure("F2", "chunks taken", run.rate, "chunks/s", goal=(">=", 800_000)),
            figure("F2", f"chunks lost in {run.seconds:.0f} s", drops + run.lost, "chunks", goal=("==", 0)),
            figure("F2", "CPU of drain + merge + assemble", run.ns, "ns per event", goal=("<=", 250)),
        ],
        [Table("CPU per event by stage:", ("stage", "ns"), [*costs, ("drain, trio and the rest", rest)])],
    )


def _flood(flood: Flood, calls: int, profile: bool = False) -> tuple[Run, float, int]:
    """A run over so many calls; ns of a call; chunks that found no space."""
    reader, drops, attempted = flood.reader(), flood.drops, flood.attempted
    load = flood.start(calls)
    line = partial(run_line, {CPU: reader}, Immediate, last=STAGES, profile=profile)
    run = trio.run(partial(line, go=lambda: None, ended=lambda: load.poll() is not None))
    dropped = flood.drops - drops
    assert load.stdout
    assert run.chunks + dropped == flood.attempted - attempted, "the kernel's count is another"
    return run, float(load.stdout.read()), dropped
