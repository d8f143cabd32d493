"""F6: from the kernel's timestamp to the acknowledgement

50,000 events per second, written into two synthetic rings with the time of their writing, through the
whole pipeline into Apache Kafka on the same machine; per event the time from its chunk to the moment
when its batch is known to be acknowledged. The reader's nap is what it sleeps between two passes, here at
least (the fewer events come, the longer it is, up to 10 ms: at this rate it is the shortest).
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import trio

from pipeline.kafka import ensure
from pipeline.place import Kafka
from pipeline.sources.rings import NAP
from tests.bench.line import Run
from tests.bench.line import measure as run_line
from tests.bench.produce import LARGEST, MIXES, PARTITIONS, RINGS, kafka_sink
from tests.bench.result import Figure, Part, Table, figure
from tests.bench.rings import SyntheticRings, lap
from tests.broker import Broker

__all__ = ["measure"]

RATE: Final = 50_000
SECONDS: Final = 4.0
WARM: Final = 0.25
"""Part of the events that only warms up."""
NAPS: Final = (0.002, 0.005, 0.01)
RING: Final = 16 << 20


def measure(seconds: float = SECONDS) -> Part:
    """Both mixes at the usual nap, and the other naps for fork and exit."""
    figures: list[Figure] = []
    rows: list[tuple[object, ...]] = []
    with Broker() as kafka:
        place = Kafka(kafka.address, "bench")
        ensure(place, {}, partitions=PARTITIONS, largest=LARGEST)
        _paced(place, 0, NAP, seconds)  # a broker that has just begun is slow
        for name, execs in MIXES.items():
            for nap in NAPS:
                run = _paced(place, execs, nap, seconds)
                p50, p99 = np.percentile(run.latencies[int(len(run.latencies) * WARM) :], (50, 99)) / 1e6
                rows.append((name, nap * 1000, float(p50), float(p99), run.cpu / run.seconds * 100))
                if nap == NAP:
                    figures.append(figure("F6", f"p50, {name}", float(p50), "ms", goal=("<=", 10)))
                    figures.append(figure("F6", f"p99, {name}", float(p99), "ms", goal=("<=", 50)))
    header = ("", "nap, ms", "p50, ms", "p99, ms", "CPU, % of a core")
    return Part(__doc__ or "", figures, [Table("What the nap trades:", header, rows)])


def _paced(place: Kafka, execs: int, nap: float, seconds: float) -> Run:
    chunks = lap(RING, execs)
    events = np.count_nonzero(chunks["part"] == 0) * RINGS
    laps = max(1, round(RATE * seconds / events))
    with (
        tempfile.TemporaryDirectory() as state,
        SyntheticRings(chunks, rings=RINGS, laps=laps, rate=RATE) as rings,
    ):
        line = partial(run_line, rings.readers(), partial(kafka_sink, place, Path(state)))
        run = trio.run(partial(line, go=rings.go, ended=lambda: rings.written, nap=nap, latency=True))
    assert run.events == rings.events, f"{run.events} of {rings.events} events were acknowledged"
    return run
