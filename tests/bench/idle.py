"""F3i: a pipeline with nothing to do

`promissory run --to kafka://…` on this host, default events, for ten seconds in which nothing is done:
CPU of its process by /proc, librdkafka's threads included.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.bench.host import cpu_seconds, resident_mb
from tests.bench.result import Part, figure
from tests.broker import Broker
from tests.live.run import Live

__all__ = ["DEFAULT", "live", "measure"]

SECONDS: Final = 10.0
REST: Final = 2.0
"""Seconds until what we caused ourselves is done with."""
LOOKS: Final = 3
DEFAULT: Final = "process,exec,fork,exit"


@contextmanager
def live() -> Iterator[Live]:
    """A state folder with pins of its own; nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="promissory-bench-") as folder:
        Path(folder).chmod(0o755)  # the pipeline's user has to get through
        name = Path(folder).name
        found = Live(Path(folder) / "state", Path("/sys/fs/bpf") / name)
        try:
            yield found
        finally:
            found.clean()


def measure(seconds: float = SECONDS) -> Part:
    """Up to three looks, until nothing happened on the host meanwhile."""
    with Broker() as kafka, live() as run:
        run.start("--to", f"kafka://{kafka.address}/bench", events=DEFAULT)
        assert run.process
        events, used = min(_looks(run, run.process.pid, seconds))
        memory = resident_mb(run.process.pid)
        run.stop()
    return Part(
        __doc__ or "",
        [
            figure(
                "F3i",
                f"CPU while idle ({events} events came)",
                used / seconds * 100,
                "% of a core",
                goal=("<=", 0.5),
            ),
            figure("F7", "resident memory of that process besides the rings", memory, "MB", goal=("<=", 150)),
        ],
    )


def _looks(run: Live, pid: int, seconds: float) -> Iterator[tuple[int, float]]:
    """Events that came, and seconds of CPU."""
    for _ in range(LOOKS):
        before = run.ledger()["attempted"]
        time.sleep(REST)  # to answer for the ledger is work too
        cpu = cpu_seconds(pid)
        time.sleep(seconds)
        used = cpu_seconds(pid) - cpu
        events = run.ledger()["attempted"] - before
        yield events, used
        if not events:
            return
