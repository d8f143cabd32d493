"""What merge and assemble cost, on synthetic passes in memory: numbers for the benchmark suite."""

from __future__ import annotations

from collections.abc import Sequence
from time import thread_time_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.chunk import STRIDE, event_id
from pipeline.event import Pass, Slice
from pipeline.schema import by_name
from pipeline.stages.assemble import Assemble
from pipeline.stages.merge import Merge
from tests.chunks import data_of, event

__all__ = ["measure", "mixed", "passes", "single"]


def single(ring: int, n: int) -> NDArray[Any]:
    """About n chunks of a ring: forks and exits, one chunk each."""
    return _numbered(ring, [("fork", 0), ("exit", 0)], n)


def mixed(ring: int, n: int) -> NDArray[Any]:
    """About n chunks of a ring: 40 % exec of 3 to 8 chunks, the rest forks and exits."""
    return _numbered(ring, [("fork", 0), ("exec", 400), ("exit", 0), ("exec", 1400), ("fork", 0)], n)


def _numbered(ring: int, recipe: Sequence[tuple[str, int]], n: int) -> NDArray[Any]:
    schemas = by_name()
    block = [event(schemas[kind].number, 0, data_of(schemas[kind], size)) for kind, size in recipe]
    chunks = np.concatenate(block * (n // sum(map(len, block)) or 1))
    chunks["sequence"] = np.arange(1, len(chunks) + 1)
    chunks["time"] = 1_000_000 + np.arange(len(chunks)) * 1_000 + ring
    heads = np.maximum.accumulate(np.where(chunks["part"] == 0, chunks["sequence"], 0))
    chunks["id"] = event_id(ring, 0) | heads
    return chunks


def passes(rings: Sequence[NDArray[Any]], batch: int) -> list[Pass]:
    """Looks at these rings (numbered from 0), about `batch` chunks each; the last µs of each waits for the
    next."""
    step = max(batch // len(rings), 1)
    longest = max(map(len, rings))
    return [
        Pass(
            tuple(
                Slice(number, at * STRIDE, chunks[at : at + step])
                for number, chunks in enumerate(rings)
                if at < len(chunks)
            ),
            watermark=int(rings[0]["time"][min(at + step, len(rings[0])) - 1]),
            clock=0,
        )
        for at in range(0, longest, step)
    ]


def measure(looks: Sequence[Pass]) -> dict[str, float]:
    """CPU time of merge + assemble: ns per chunk and per event, µs per pass."""
    merge, assemble = Merge(), Assemble({})
    chunks = sum(len(s.chunks) for look in looks for s in look.slices)
    events = 0
    begin = thread_time_ns()
    for look in looks:
        for merged in merge(look):
            for batch in assemble(merged):
                events += len(batch)
    for merged in merge.finish():
        events += sum(len(batch) for batch in assemble(merged))
    events += sum(len(batch) for batch in assemble.finish())
    took = thread_time_ns() - begin
    assert events == sum(int(look.counts.sum()) for look in looks)
    return {
        "ns_per_chunk": took / chunks,
        "ns_per_event": took / events,
        "us_per_pass": took / len(looks) / 1_000,
    }
