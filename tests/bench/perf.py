"""Perf: what a record costs

Mappings of one file, told by the perf side-band, through `Perf.pump` into a ring of our own: read, decoded,
looked up whose it was, put, published. CPU time of the reader, median of nine rounds of 1,000 records. And
what a mapping costs its maker, by turns with nothing listening and with the buffers that the pipeline has,
whose reader just woke up (its bells are kept from ringing) or has been awake for long (they are off).
"""

from __future__ import annotations

import mmap
import os
import statistics
import time
from contextlib import closing
from typing import Any, Final

import numpy as np

from pipeline.chunk import PERF_RING
from pipeline.kernel import bpf
from pipeline.kernel.layout import OWN
from pipeline.kernel.own_ring import OwnMemory, OwnRing, create
from pipeline.kernel.perf_buffer import LONG
from pipeline.kernel.perf_event import Sideband
from pipeline.kernel.who import Who
from pipeline.sources.perf import Perf, Wanted
from tests.bench.result import Part, figure

__all__ = ["measure"]

ROUNDS: Final = 9
RECORDS: Final = 1000
RING: Final = 4 << 20
KNOWN: Final = 120
"""Bytes of struct known; an array answers as a hash does, without content."""


def measure() -> Part:
    """All of it on one CPU, where the records are made."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        record, (untold, told, busy) = _reader(), _maker()
    finally:
        os.sched_setaffinity(0, before)
    return Part(
        __doc__ or "",
        [
            figure("perf", "a record into the ring", record, "ns"),
            figure("perf", "a mapping, told", told, "ns", anchor=("nothing listening", untold)),
            figure("perf", "the same, long awake", busy, "ns", anchor=("nothing listening", untold)),
        ],
    )


def _reader() -> float:
    """ns per record."""
    memory, row = OwnMemory(create(RING, "bench"), RING), np.zeros(1, OWN)
    maps = [bpf.create_array(size, 1, "bench") for size in (KNOWN, 24)]
    ring: Any = OwnRing(PERF_RING, memory, row, {"path": 65536})
    times = []
    with closing(Perf(ring, Who(*maps), Wanted(["mmap"]), _boottime())) as feed:
        for _ in range(ROUNDS):
            _map(RECORDS)
            begin = time.thread_time_ns()
            feed.pump(_boottime())
            times.append((time.thread_time_ns() - begin) / RECORDS)
            memory.consumer[0] = memory.producer[0]
    for descriptor in maps:
        os.close(descriptor)
    assert int(row["received"][0]) >= ROUNDS * RECORDS
    return statistics.median(times)


def _maker() -> tuple[float, float, float]:
    """ns per mapping, untold, told to a reader that just woke up, and to one long awake: medians of rounds by
    turns.
    """
    untold, told, busy = [], [], []
    for _ in range(ROUNDS):
        untold.append(_timed())
        with closing(Sideband(["mmap"])) as sideband:
            told.append(_timed())
            for now in (0, 2 * LONG):
                sideband.read(now)
            busy.append(_timed())
    return statistics.median(untold), statistics.median(told), statistics.median(busy)


def _timed() -> float:
    begin = time.thread_time_ns()
    _map(RECORDS)
    return (time.thread_time_ns() - begin) / RECORDS


def _map(times: int) -> None:
    with open("/usr/bin/env", "rb") as file:
        for _ in range(times):
            mmap.mmap(
                file.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_EXEC, flags=mmap.MAP_PRIVATE
            ).close()


def _boottime() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
