"""Synthetic rings: memory of the same layout as a BPF ring buffer's, written by a process of its own as
positions move.

A ring is filled once with whole events; after that the writer only renumbers and dates the chunks that
have become free, and moves the producer's position, as the kernel would after writing them. It runs
apart from the pipeline, so that none of its work is counted there.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.chunk import PROC_RING, STRIDE, event_id, ring_of, split
from pipeline.kernel.ring import PAGE, Ring, RingMemory
from pipeline.ledger import RingBooks
from pipeline.schema import by_number
from tests.batches import batch_of, event
from tests.bench.encode import SHELLS, script

__all__ = ["Spec", "SyntheticRings", "lap"]

FIRST: Final = 1_000_000
"""Sequence of a ring's first chunk."""
WORDS: Final = STRIDE // 8
SEQUENCE, ID, TIME, EXEC_ID = 1, 2, 3, 6
"""Which of a chunk's words of 8 bytes: what a writer changes from lap to lap."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_FIXED: Final = 0x10


@dataclass(frozen=True)
class Spec:
    """What a writer writes: `laps` times the contents of all rings, at `rate` events per second in all
    (0: whenever there is room)."""

    size: int
    """Bytes of each ring."""
    descriptors: list[int]
    """Of each ring's memory; their places are the rings' numbers."""
    events: int
    """In one lap of one ring."""
    laps: int
    rate: float


class SyntheticRings:
    """Some rings of the same contents and their writer. `with … as rings:`, then `rings.go()`."""

    def __init__(self, chunks: NDArray[Any], *, rings: int, laps: int, rate: float = 0) -> None:
        size = len(chunks) * STRIDE
        self._descriptors = [os.memfd_create(f"ring_{n}") for n in range(rings)]
        self.memories: dict[int, RingMemory] = {}
        for number, fd in enumerate(self._descriptors):
            os.ftruncate(fd, 2 * PAGE + size)
            memory = self.memories[number] = _map(fd, size)
            memory.chunks[: len(chunks)] = chunks
            _number(memory.chunks[: len(chunks)], number)
        events = int(np.count_nonzero(chunks["part"] == 0))
        self.spec = Spec(size, self._descriptors, events, laps, rate)
        self.memories[PROC_RING] = RingMemory.of_chunks(_shells())
        self._writer: subprocess.Popen[bytes] | None = None

    @property
    def events(self) -> int:
        """All that the writer will write, and the shells."""
        return self.spec.events * self.spec.laps * len(self._descriptors) + SHELLS

    def readers(self) -> dict[int, Ring]:
        """A reader for each ring, and for the shells that its processes come from."""
        return {
            number: Ring(number, memory, RingBooks(sequence=1 if number == PROC_RING else FIRST))
            for number, memory in self.memories.items()
        }

    def __enter__(self) -> SyntheticRings:
        self._writer = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(asdict(self.spec))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=self._descriptors,
            cwd=Path(__file__).parents[2],
        )
        assert self._writer.stdout
        self._writer.stdout.readline()
        return self

    def go(self) -> None:
        """Let the writer begin."""
        assert self._writer
        assert self._writer.stdin
        self._writer.stdin.write(b"\n")
        self._writer.stdin.flush()

    def stop(self) -> None:
        """Let the writer end where it is."""
        assert self._writer
        self._writer.kill()
        self._writer.wait()

    @property
    def written(self) -> bool:
        """The writer has ended."""
        return self._writer is None or self._writer.poll() is not None

    def __exit__(self, *_: object) -> None:
        self.stop()
        assert self._writer
        self._writer.communicate()
        for fd in self._descriptors:
            os.close(fd)


def lap(size: int, execs: int) -> NDArray[Any]:
    """A ring of `size` bytes full of whole events: three forks, so many execs, three exits, over and
    over, filled up with forks. Numbered from 0 in ring 0."""
    room = size // STRIDE
    parts: list[NDArray[Any]] = []
    ids: dict[int, int] = {1: event_id(PROC_RING, 1)}
    ids |= {event_id(0, shell): event_id(PROC_RING, shell) for shell in range(1, SHELLS + 1)}
    taken = 0
    for values in script(room // (4 if execs else 1) + 8, execs):
        own = event_id(0, values["sequence"])
        now = values | {name: ids.get(values[name], 0) for name in ("exec_id", "parent_exec_id")}
        if values["kind"] == "exec":
            ids[own] = now["exec_id"] = event_id(0, taken)
        chunks = _cut(now)
        if taken + len(chunks) > room:
            break
        parts.append(chunks)
        taken += len(chunks)
    fill = _cut(event("fork", 0, exec_id=event_id(PROC_RING, 1), pid=1, comm=b"bash"))
    whole = np.concatenate(parts + [fill] * (room - taken))
    whole["sequence"] = np.arange(room)
    whole["id"] = np.maximum.accumulate(np.where(whole["part"] == 0, whole["sequence"], 0))
    return whole


def _cut(values: dict[str, Any]) -> NDArray[Any]:
    batch = batch_of([values])
    head = batch.heads[0]
    return split(head, batch.stream.tobytes(), by_number()[int(head["kind"])].room)


def _shells() -> NDArray[Any]:
    who = [
        event(
            "process",
            n,
            ring=PROC_RING,
            pid=n,
            exec_id=event_id(PROC_RING, n),
            parent_exec_id=event_id(PROC_RING, 1) if n > 1 else 0,
            parent_pid=1 if n > 1 else 0,
            executable=b"/usr/bin/bash",
            comm=b"bash",
        )
        for n in range(1, SHELLS + 1)
    ]
    return np.concatenate([_cut(values) for values in who])


def _number(lap: NDArray[Any], ring: int) -> None:
    """Number a lap as it stands before a ring's first: the writer adds a lap's numbers before it shows it."""
    words = lap.view("<i8").reshape(-1, WORDS)
    shift = event_id(ring, FIRST - len(lap))
    words[:, SEQUENCE] += FIRST - len(lap)
    words[:, ID] += shift
    words[_moves(words, 0), EXEC_ID] += shift


def _moves(words: NDArray[np.int64], ring: int) -> NDArray[np.bool_]:
    """Heads whose exec id is of this ring: it moves on with the laps."""
    heads = words[:, 4] & 0xFFFFFFFF == 0
    found: NDArray[np.bool_] = heads & (words[:, EXEC_ID] != 0) & (ring_of(words[:, EXEC_ID]) == ring)
    return found


def _map(fd: int, size: int) -> RingMemory:
    """Map a ring: the data stands twice in a row, so that what wraps is still in one piece."""
    consumer = mmap.mmap(fd, PAGE)
    both = mmap.PROT_READ | mmap.PROT_WRITE
    base = _libc.mmap(None, PAGE + 2 * size, both, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    for at, length, offset in ((0, PAGE + size, PAGE), (PAGE + size, size, 2 * PAGE)):
        if _libc.mmap(base + at, length, both, mmap.MAP_SHARED | _FIXED, fd, offset) != base + at:
            raise OSError(ctypes.get_errno(), "mmap of a synthetic ring")
    return RingMemory(consumer, (ctypes.c_char * (PAGE + 2 * size)).from_address(base), size)


# ---- the writer


class Writer:
    """Writes one ring."""

    def __init__(self, memory: RingMemory, number: int, laps: int) -> None:
        self._memory = memory
        self._total = memory.size // STRIDE
        self._left = laps * self._total
        self._words = memory.chunks[: self._total].view("<i8").reshape(-1, WORDS)
        moves = _moves(self._words, number)
        self._moved = np.flatnonzero(moves)
        self._time = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        part = self._words[:, 4] & 0xFFFFFFFF
        self._event = np.cumsum(part == 0)
        self._after = part * CHUNK_TIME
        self._ends = np.append(np.flatnonzero(part == 0)[1:], self._total)
        """Where events end: only whole ones are written."""

    @property
    def done(self) -> bool:
        """All laps are written."""
        return not self._left

    def write(self, events: int) -> int:
        """Write at most so many events, as many as there is room for; how many these were."""
        at = int(self._memory.producer[0]) // STRIDE
        room = self._total - (at - int(self._memory.consumer[0]) // STRIDE)
        first = at % self._total
        before = int(np.searchsorted(self._ends, first, side="right"))
        fit = int(np.searchsorted(self._ends, first + min(room, self._left), side="right"))
        last = min(before + events, fit)
        if last <= before:
            return 0
        end = int(self._ends[last - 1])
        self._renew(first, end)
        self._left -= end - first
        self._memory.producer[0] = (at + end - first) * STRIDE
        return last - before

    def _renew(self, first: int, end: int) -> None:
        words, n = self._words[first:end], self._total
        words[:, SEQUENCE] += n
        words[:, ID] += n
        low, high = np.searchsorted(self._moved, (first, end))
        self._words[self._moved[low:high], EXEC_ID] += n
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        event = self._event[first:end] - self._event[first]
        written = self._time + event * (now - self._time) // (int(event[-1]) + 1)
        words[:, TIME] = written + self._after[first:end]
        self._time = now


CHUNK_TIME: Final = 80
"""ns from one chunk of an event to the next, as the kernel writes them."""
STEP: Final = 0.0005
"""Seconds between two looks of a writer that has nothing to do."""
MOST: Final = 4096
"""Events that are written at once."""


def main(argument: str) -> None:
    """Say that all is mapped, wait for a line, write, end."""
    spec = Spec(**json.loads(argument))
    writers = [Writer(_map(fd, spec.size), n, spec.laps) for n, fd in enumerate(spec.descriptors)]
    print(flush=True)
    sys.stdin.readline()
    flood(writers) if not spec.rate else pace(writers, spec.rate)


def flood(writers: Sequence[Writer]) -> None:
    """Whenever there is room."""
    while not all(writer.done for writer in writers):
        if not sum(writer.write(MOST) for writer in writers):
            time.sleep(STEP)


def pace(writers: Sequence[Writer], rate: float) -> None:
    """At `rate` events per second in all, as even as a sleeping process can be."""
    begin, written = time.monotonic(), 0
    while not all(writer.done for writer in writers):
        due = int((time.monotonic() - begin) * rate) - written
        each = -(-due // len(writers)) if due > 0 else 0
        written += sum(writer.write(each) for writer in writers) if each else 0
        time.sleep(STEP)


if __name__ == "__main__":
    main(sys.argv[1])
