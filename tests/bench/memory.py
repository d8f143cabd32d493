"""F7: memory under a flood

A process of its own takes a flood from two synthetic rings of 16 MiB (default mix: 40 % exec, 3 KB
environments) through the whole pipeline into Apache Kafka, as fast as it can. Its resident memory
besides the rings is looked at every half second; "growth" compares the last quarter with the one
before.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import trio

from pipeline.kafka import ensure
from pipeline.place import Kafka
from tests.bench.host import resident_mb
from tests.bench.line import measure as run_line
from tests.bench.produce import LARGEST, PARTITIONS, RINGS, kafka_sink
from tests.bench.result import Part, figure, tried
from tests.bench.rings import SyntheticRings, lap
from tests.broker import Broker

__all__ = ["measure"]

SECONDS: Final = 30.0
LONG: Final = 600.0
LOOK: Final = 0.5
RING: Final = 16 << 20
EXECS: Final = 4
ENDLESS: Final = 1 << 30
TRIED: Final = """
At work 40 to 70 MB are in use besides the 72 MB that the idle process has; as much again is free memory
between live blocks. Tried: links that hold one batch and a sink that holds two, librdkafka's queue of
16 MiB for 32 (217 → 195 MB, same rate); malloc returning what is free above 4 MiB (195 → 158 MB, but 10
to 20 % more CPU: left out); batches of 2,048 and 1,024 events (no less memory).
"""
KEEP: Final = {"log.retention.bytes": str(256 << 20), "log.segment.bytes": str(64 << 20)} | {
    "log.retention.check.interval.ms": "5000"
}
"""The broker need not keep ten minutes of flood."""


def measure(long: bool = False) -> Part:
    """Half a minute, or ten."""
    seconds = LONG if long else SECONDS
    with Broker(KEEP) as kafka, tempfile.NamedTemporaryFile(suffix=".npy") as contents:
        place = Kafka(kafka.address, "bench")
        ensure(place, {}, partitions=PARTITIONS, largest=LARGEST)
        # Made here: to make them takes more memory than is to be measured.
        np.save(contents.name, lap(RING, EXECS))
        flood = subprocess.Popen(
            [sys.executable, "-m", __name__, kafka.address, str(seconds), contents.name],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert flood.stdout
        flood.stdout.readline()  # it has begun
        looks = _watch(flood, seconds)
        rate = float(flood.stdout.readline())
        assert flood.wait() == 0, "the flood failed"
    quarter = len(looks) // 4
    before, after = statistics.median(looks[-2 * quarter : -quarter]), statistics.median(looks[-quarter:])
    what = f"during {seconds:.0f} s of flood ({rate:.0f} events/s)"
    figures = [
        figure("F7", f"highest resident memory {what}", max(looks), "MB", goal=("<=", 150)),
        figure(
            "F7",
            "growth: the last quarter",
            after,
            "MB",
            anchor=("the one before", before),
            goal=("<=", 1.02),
            of="ratio",
        ),
    ]
    return Part(__doc__ or "", figures, remarks=tried(figures, TRIED))


def _watch(flood: subprocess.Popen[str], seconds: float) -> list[float]:
    end, looks = time.monotonic() + seconds, []
    while time.monotonic() < end:
        looks.append(resident_mb(flood.pid))
        time.sleep(LOOK)
    return looks


def main(address: str, seconds: float, contents: str) -> None:
    """The process that is watched."""
    place = Kafka(address, "bench")
    with (
        tempfile.TemporaryDirectory() as state,
        SyntheticRings(np.load(contents, mmap_mode="r"), rings=RINGS, laps=ENDLESS) as rings,
    ):

        def go() -> None:
            rings.go()
            print(flush=True)

        end = time.monotonic() + seconds + LOOK

        def ended() -> bool:
            if time.monotonic() < end:
                return False
            rings.stop()
            return True

        sink = partial(kafka_sink, place, Path(state))
        run = trio.run(partial(run_line, rings.readers(), sink, go=go, ended=ended))
    print(run.rate, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3])
