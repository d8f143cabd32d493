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
"""Seconds until what its beginning caused is done with."""
DEFAULT: Final = "process,exec,fork,exit"


@contextmanager
def live() -> Iterator[Live]:
    """A state folder with pins of its own; nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="promissory-bench-") as folder:
        name = Path(folder).name
        found = Live(Path(folder) / "state", Path("/sys/fs/bpf") / name)
        try:
            yield found
        finally:
            found.clean()


def measure(seconds: float = SECONDS) -> Part:
    """One look."""
    with Broker() as kafka, live() as run:
        run.start("--to", f"kafka://{kafka.address}/bench", events=DEFAULT)
        assert run.process
        time.sleep(REST)
        before = run.ledger()["attempted"], cpu_seconds(run.process.pid)
        time.sleep(seconds)
        used, memory = cpu_seconds(run.process.pid) - before[1], resident_mb(run.process.pid)
        events = run.ledger()["attempted"] - before[0]
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
