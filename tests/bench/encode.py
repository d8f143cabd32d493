"""What enrich and encode cost per event, alone: for fork and exit, and for the default mix.

Batches are made before the clock starts. `measure` gives ns of CPU per event; `overhead` the fixed cost of
a batch.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from pipeline.chunk import event_id
from pipeline.event import Batch
from pipeline.redact import Redaction
from pipeline.stages.encode import Encode
from pipeline.stages.enrich import Enrich
from tests.batches import HOST, FixedAnswers, batch_of, event

__all__ = ["anchor", "cycles", "default_mix", "fork_exit", "measure", "overhead"]

VARIABLES = b"".join(b"VARIABLE_%02d=" % n + b"v" * 36 + b"\0" for n in range(60))
"""An environment of 3 KB, but for what differs from program to program."""
SHELLS = 20
"""Processes that all others come from."""


def _exec(sequence: int, rng: random.Random, **who: Any) -> dict[str, Any]:
    tool = b"/usr/bin/tool-%d" % rng.randrange(40)
    arguments = [tool, *(b"--option-%d=%d" % (n, rng.randrange(50)) for n in range(9))]
    return event(
        "exec",
        sequence,
        executable=tool,
        cwd=b"/home/user-%d/work" % rng.randrange(20),
        path=tool,
        argv=b"\0".join(arguments) + b"\0",
        environment=VARIABLES + b"PWD=/home/user-%d/work\0" % rng.randrange(20),
        comm=tool[9:24],
        **who,
    )


def fork_exit(size: int, batches: int) -> list[Batch]:
    """Forks by some shells, and exits of what they forked."""
    return cycles(size, batches, execs=0)


def default_mix(size: int, batches: int) -> list[Batch]:
    """30 % fork, 30 % exit, 40 % exec of ten arguments; each exec is a program of its own, as it is in
    life."""
    return cycles(size, batches, execs=4)


def cycles(size: int, batches: int, execs: int) -> list[Batch]:
    """Batches of three forks, so many execs, three exits, over and over."""
    events = script(size * batches, execs)
    return [batch_of(events[at * size : (at + 1) * size], number=at) for at in range(batches)]


def script(number: int, execs: int) -> list[dict[str, Any]]:
    """So many events of cycles, or a few more: by shells whose exec ids are those of `event_id(0, 1 to
    20)`."""
    rng = random.Random(1)
    events: list[dict[str, Any]] = []
    sequence = 1000
    while len(events) < number:
        parent = 1 + rng.randrange(SHELLS)
        mine = event_id(0, parent)
        for _ in range(3):
            sequence += 1
            who: dict[str, Any] = {"exec_id": mine, "parent_exec_id": 1, "pid": parent, "comm": b"bash"}
            events.append(event("fork", sequence, child_pid=sequence, child_start=sequence * 10**6, **who))
        last, comm = mine, b"bash"
        for _ in range(execs):
            sequence += 21
            events.append(_exec(sequence, rng, pid=sequence, parent_exec_id=mine))
            last, comm = event_id(0, sequence), events[-1]["comm"]
        for _ in range(3):
            sequence += 1
            events.append(event("exit", sequence, exec_id=last, parent_exec_id=mine, pid=sequence, comm=comm))
    return events


def stages() -> tuple[Enrich, Encode]:
    """New ones, that remember nothing yet."""
    return Enrich(FixedAnswers()), Encode(HOST, {"exec": "tracepoint"}, Redaction(["PATH", "HOME"]))


def measure(batches: Sequence[Batch], repeats: int = 3) -> float:
    """ns of CPU per event once the stages know the machine: a quarter of the batches go ahead. Best of some
    repeats."""
    ahead = len(batches) // 4
    timed = batches[ahead:]
    best = min(_timed(batches[:ahead], timed) for _ in range(repeats))
    return best / sum(map(len, timed))


def anchor(batches: Sequence[Batch], repeats: int = 3) -> float:
    """ns of CPU per event of msgpack.Packer with the same records as dicts: a figure for what the machine
    can do."""
    enrich, encode = stages()
    records = [
        msgpack.unpackb(value)
        for batch in batches
        for enriched in enrich(batch)
        for encoded in encode(enriched)
        for value in encoded.records["process"].values
    ]
    pack = msgpack.Packer().pack
    best = min(_packed(pack, records) for _ in range(repeats))
    return best / len(records)


def _packed(pack: Callable[[Any], bytes], records: list[Any]) -> int:
    before = time.process_time_ns()
    for record in records:
        pack(record)
    return time.process_time_ns() - before


def overhead(make: Callable[[int, int], list[Batch]], small: int = 8, large: int = 1024) -> float:
    """ns of a batch whatever its size: from the cost of small and of large ones."""
    few, many = (measure(make(size, 8192 // size)) for size in (small, large))
    return (few - many) * small * large / (large - small)


def _timed(ahead: Sequence[Batch], timed: Sequence[Batch]) -> int:
    enrich, encode = stages()
    for batch in ahead:
        _through(enrich, encode, batch)
    before = time.process_time_ns()
    for batch in timed:
        _through(enrich, encode, batch)
    return time.process_time_ns() - before


def _through(enrich: Enrich, encode: Encode, batch: Batch) -> None:
    for enriched in enrich(batch):
        for _ in encode(enriched):
            pass


def main() -> None:
    for name, make in (("fork and exit", fork_exit), ("default mix", default_mix)):
        for size in (256, 1024):
            batches = make(size, 16384 // size)
            print(
                f"{name}, batches of {size}: {measure(batches):.0f} ns per event; "
                f"packing ready dicts: {anchor(batches[:8]):.0f}"
            )
        print(f"{name}: {overhead(make) / 1000:.0f} µs per batch")


if __name__ == "__main__":
    main()
