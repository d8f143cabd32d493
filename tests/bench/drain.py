"""F1: reading a full ring

A BPF program fills a 16 MiB ring of one CPU; another CPU reads it whole, by turns through `Ring.read`
(a view of the ring's memory, all headers checked at once, gaps found), through bcc's own ring-buffer
callback, which does nothing but count, and by one memory copy of the same bytes (numpy, into memory
that is there already). CPU time of the reading thread, medians.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np

from pipeline.chunk import STRIDE
from tests.bench.flood import CPU, SIZE, Flood
from tests.bench.loads import Loads
from tests.bench.result import Part, figure

__all__ = ["measure"]

ROUNDS: Final = 9
LIMIT: Final = 8192
CHUNKS: Final = SIZE // STRIDE - 1
"""In a ring that is full: the kernel never lets the producer catch up."""


def measure() -> Part:
    """Nine rounds of each."""
    before = os.sched_getaffinity(0)
    with Loads() as loads, Flood(loads) as flood:
        os.sched_setaffinity(0, before - {CPU} or before)
        try:
            times = _rounds(flood)
        finally:
            os.sched_setaffinity(0, before)
    ours, theirs, copy = (statistics.median(times[name]) for name in ("ring", "bcc", "copy"))
    chunks = "ns per chunk of 256 bytes"
    return Part(
        __doc__ or "",
        [
            figure("F1", "drain", ours, chunks, anchor=("memory copy", copy), goal=("<=", 60)),
            figure(
                "F1",
                "drain, times as fast as bcc's callback",
                ours,
                chunks,
                anchor=("bcc's callback", theirs),
                ratio=theirs / ours,
                goal=(">=", 25),
                of="ratio",
            ),
        ],
    )


def _rounds(flood: Flood) -> dict[str, list[float]]:
    seen = 0

    def called(context: Any, data: Any, size: int) -> None:
        nonlocal seen
        seen += 1

    consume = flood.callback(called)
    target = np.zeros(CHUNKS * STRIDE, np.uint8)
    times: dict[str, list[float]] = {"ring": [], "bcc": [], "copy": []}
    for _ in range(ROUNDS):
        reader = flood.reader()
        flood.fill()
        times["ring"].append(_timed(partial(_drain, reader)))
        reader.release(reader.cursor)
        flood.fill()
        full = flood.memory.chunks[:CHUNKS].view(np.uint8)
        times["copy"].append(_timed(partial(np.copyto, target, full)))
        seen = 0
        times["bcc"].append(_timed(consume))
        assert seen == CHUNKS, f"{seen} of {CHUNKS} chunks through bcc"
    return times


def _drain(reader: Any) -> None:
    n = 0
    while found := reader.read(LIMIT):
        n += len(found.chunks)
        assert not found.gaps
    assert n == CHUNKS, f"{n} of {CHUNKS} chunks"


def _timed(work: Callable[[], object]) -> float:
    begin = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - begin) / CHUNKS
