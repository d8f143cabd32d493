"""What faults happen to: storms of execs, each with a number that no other has, and what became of them."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterable
from itertools import count
from typing import Any

from tests.live.run import PATIENCE, Live, Record, eventually

__all__ = ["UID", "Mark", "Storms", "event_of", "mark_of", "settled"]

UID = 40_000 + os.getpid() % 20_000
"""Whose the storms are: nobody else's on this host, so that a filter by uid leaves nothing but them."""
EACH = 100
"""Execs of one storm."""

Mark = tuple[str, int]


class Storms:
    """`with Storms(acts) as storms:` execs go on, on every CPU, until the end; then `executed` has all."""

    def __init__(self, acts: bytes, pause: int = 2000, each: int = EACH, cpus: Iterable[int] = ()) -> None:
        """`pause`: microseconds between two execs on one CPU."""
        self.executed: set[Mark] = set()
        self.failed: list[int] = []
        self._acts, self._pause, self._each = acts, pause, each
        self._ending = threading.Event()
        self._numbers = count()
        self._threads = [
            threading.Thread(target=self._run, args=(cpu,)) for cpu in cpus or sorted(os.sched_getaffinity(0))
        ]

    def __enter__(self) -> Storms:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        assert not self.failed, f"storms ended with {self.failed}"

    def _run(self, cpu: int) -> None:
        while not self._ending.is_set():
            mark = f"{os.getpid()}-{next(self._numbers)}"
            numbers = [str(n).encode() for n in (cpu, self._each)]
            command = [self._acts, b"storm", *numbers, mark.encode(), b"%d" % self._pause]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=False, env={}, user=UID)
            if done.returncode:
                self.failed.append(done.returncode)
                return
            self.executed |= {(mark, n) for n in range(int(done.stdout))}


def mark_of(record: Record) -> Mark | None:
    """Which exec of a storm a record is."""
    if record["kind"] != "exec" or record["argv"][:1] != ["storm"]:
        return None
    return record["argv"][2], int(record["argv"][3])


def event_of(record: Record) -> tuple[str, int, int]:
    """By what a record that came twice is known."""
    return record["host"]["boot_id"], record["ring"], record["sequence"]


def settled(live: Live, patience: float = PATIENCE) -> dict[str, Any]:
    """The ledger, once nothing is in flight nor in the outbox."""

    def found() -> dict[str, Any] | None:
        ledger = live.ledger()
        return ledger if ledger["in_flight"] == ledger["in_outbox"] == 0 else None

    ledger: dict[str, Any] = eventually(found, "everything to be acknowledged", patience)
    return ledger
