"""F8: the same rate spread over many rings

40,000 events per second of the default mix (40 % exec, 3 KB environments), written into 2 synthetic
rings of 8 MiB or 64 of 256 KiB, through rings → merge → assemble → enrich → encode into a sink that
acknowledges at once. Runs alternate; medians.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Final

import numpy as np
import trio

from tests.bench.line import Immediate, Run
from tests.bench.line import measure as run_line
from tests.bench.result import Part, figure
from tests.bench.rings import SyntheticRings, lap

__all__ = ["measure"]

RATE: Final = 40_000
SECONDS: Final = 4.0
ROUNDS: Final = 2
MEMORY: Final = 16 << 20
FEW: Final = 2
MANY: Final = 64
EXECS: Final = 4


def measure(seconds: float = SECONDS) -> Part:
    """Few and many, in turn."""
    runs: dict[int, list[Run]] = {FEW: [], MANY: []}
    for _ in range(ROUNDS):
        for rings, found in runs.items():
            found.append(_paced(rings, seconds))
    few, many = (statistics.median(run.ns for run in runs[rings]) for rings in (FEW, MANY))
    what = f"CPU with {MANY} rings"
    anchor = (f"with {FEW} rings", few)
    return Part(
        __doc__ or "",
        [figure("F8", what, many, "ns per event", anchor=anchor, goal=("<=", 1.5), of="ratio")],
    )


def _paced(rings: int, seconds: float) -> Run:
    chunks = lap(MEMORY // rings, EXECS)
    events = np.count_nonzero(chunks["part"] == 0) * rings
    laps = max(1, round(RATE * seconds / events))
    with SyntheticRings(chunks, rings=rings, laps=laps, rate=RATE) as written:
        line = partial(run_line, written.readers(), Immediate)
        run = trio.run(partial(line, go=written.go, ended=lambda: written.written))
    assert run.events == written.events, f"{run.events} of {written.events} events"
    return run
