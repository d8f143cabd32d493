"""Row 4: nobody reads, rings overflow; what the stream says of its loss is what a list of our own says."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.chunk import STRIDE
from pipeline.kernel import bpf
from pipeline.kernel.layout import BOOKS, OWN_ROWS, books_view
from pipeline.kernel.manifest import Manifest
from pipeline.kernel.ring import RingMemory
from tests.faults.conftest import Row
from tests.faults.results import times
from tests.faults.storms import UID
from tests.live.run import Live, Record, eventually
from tests.live.test_overflow import by_reason, quiet
from tests.told import kinds_lost, numbers_lost

pytestmark = pytest.mark.kernel

EACH = 120
"""Execs on each CPU while nobody reads."""
BEFORE = 4
"""Chunks of fork, exec and exit without what is put into argv."""


@dataclass(frozen=True)
class Exec:
    """One of our own list: when it was, ns since boot, at the earliest and at the latest."""

    cpu: int
    pid: int
    since: int
    until: int


class Rings:
    """The kernel's side of an attachment, looked at without the pipeline."""

    def __init__(self, live: Live) -> None:
        manifest = Manifest.read(live.state)
        assert manifest
        self._memory = {
            number: RingMemory.of_map(bpf.get(live.pins / f"ring_{number}"), size)
            for number, size in manifest.rings.items()
            if number < manifest.entries
        }
        entries = manifest.entries
        memory = bpf.map_memory(bpf.get(live.pins / "map_books"), (entries + OWN_ROWS) * BOOKS.itemsize)
        self._books = books_view(memory, entries)

    def counters(self) -> dict[int, int]:
        """Ring → its next number."""
        return {number: int(self._books["sequence"][number]) for number in self._memory}

    def unread(self) -> dict[int, set[int]]:
        """Ring → the numbers that stand in it."""
        found = {}
        for number, memory in self._memory.items():
            first, end = int(memory.consumer[0]), int(memory.producer[0])
            at = first % memory.size // STRIDE
            found[number] = set(memory.chunks["sequence"][at : at + (end - first) // STRIDE].tolist())
        return found

    def drops(self) -> dict[int, int]:
        """Ring → numbers for which there was no room."""
        return {number: int(self._books["drops"][number]) for number in self._memory}


@contextmanager
def stopped(live: Live) -> Iterator[None]:
    """Nobody reads."""
    assert live.process
    live.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        live.process.send_signal(signal.SIGCONT)


def execs(acts: bytes, folder: Path, padding: int) -> list[Exec]:
    """Execute programs on each CPU at once; who was when."""
    argument = b"x" * padding

    def child(cpu: int, file: Path) -> None:
        with file.open("w") as out:
            os.setresuid(UID, UID, UID)
            os.sched_setaffinity(0, {cpu})
            for _ in range(EACH):
                since = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                pid = os.posix_spawn(acts, [b"listed", b"", argument], {})
                os.waitpid(pid, 0)
                print(cpu, pid, since, time.clock_gettime_ns(time.CLOCK_BOOTTIME), file=out)

    files = {cpu: folder / f"cpu-{cpu}" for cpu in sorted(os.sched_getaffinity(0))}
    pids = []
    for cpu, file in files.items():
        pid = os.fork()
        if not pid:
            try:
                child(cpu, file)
                os._exit(0)
            finally:
                os._exit(98)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * len(pids)
    lines = [line.split() for file in files.values() for line in file.read_text().splitlines()]
    return [Exec(*map(int, line)) for line in lines]


def of(live: Live, one: Exec) -> list[Record]:
    """Exec events of that pid: one may have served twice."""
    return live.log.of(one.pid, "exec")


def inside(one: Exec, notices: list[Record]) -> bool:
    """Whether an exec can lie in an interval of loss: of its CPU's ring, or of what the budget refused."""
    return any(
        loss["kind"] == "loss"
        and (loss["ring"] == one.cpu or (loss["reason"] == "budget" and "exec" in loss["kinds"]))
        and loss["since"] <= one.until
        and loss["until"] >= one.since
        for loss in notices
    )


@pytest.mark.parametrize(
    ("size", "reserve"),
    [("64 KiB", "0"), ("256 KiB", "0"), ("256 KiB", "0.125"), ("1 MiB", "0")],
    ids=["64 KiB", "256 KiB", "256 KiB, reserve", "1 MiB"],
)
def test_every_exec_is_stored_or_inside_an_interval_of_loss(
    make_live: Callable[..., Live], acts: bytes, tmp_path: Path, row: Row, size: str, reserve: str
) -> None:
    rounds = times(2, 30)
    kept = f", of which {float(reserve):.1%} are kept for heads" if float(reserve) else ""
    row("4 overflow", f"{rounds} × SIGSTOP of the reader while programs fill rings of {size}{kept}")
    live = make_live(
        ring__size=size,
        budget__reserve=reserve,
        kernel__uids=str(UID),
        environment__enabled="false",
        heartbeat="0.2",
    )
    live.start(events="exec,fork,exit")
    rings = Rings(live)
    chunks = int(size.split()[0]) * (1024 if size.endswith("KiB") else 1 << 20) // STRIDE
    padding = max(0, 3 * chunks // 2 // EACH - BEFORE) * 208
    listed: list[Exec] = []
    missing: dict[int, set[int]] = {number: set() for number in rings.counters()}
    for _ in range(rounds):
        ledger = quiet(live)
        before = rings.counters()
        with stopped(live):
            listed += execs(acts, tmp_path, padding)
            there = rings.unread()
            for number, end in rings.counters().items():
                missing[number] |= set(range(before[number], end)) - there[number]
    ledger = quiet(live)
    told = eventually(lambda: live.log.read() and _told(live, missing), "heartbeats to tell what is missing")
    assert live.stop() == 0, live.said()
    notices = live.log.notices
    stored = {one for one in listed if any(one.since < r["boottime"] < one.until for r in of(live, one))}
    lost = [one for one in listed if one not in stored]
    unknown = [one for one in lost if not inside(one, notices)]
    budget = by_reason(ledger, "losses", "exec").get("budget", 0)
    row.saw(
        executed=len(listed),
        stored=len(stored),
        not_whole=sum("unsettled" in r for r in live.log.records),
        outside_of_intervals=len(unknown),
        chunks_lost=sum(map(len, missing.values())),
        gaps=sum(ledger["rings"][str(number)]["gaps"] for number in missing),
        drops=sum(rings.drops().values()),
        refused_by_budget=budget,
        loss_records=sum(notice["kind"] == "loss" for notice in notices),
    )
    assert told == {number: numbers for number, numbers in missing.items() if numbers}
    for number, numbers in missing.items():
        assert ledger["rings"][str(number)]["gaps"] == rings.drops()[number] == len(numbers)
    assert all(len(numbers) > EACH // 4 for numbers in missing.values())
    assert unknown == []
    assert len(lost) == ledger["events"]["exec"]["lost"] > 0
    assert kinds_lost(notices)["kernel", "budget", "exec"] == budget
    assert ledger["balanced"]
    # An event whose head came says itself which of its parts did not.
    heads = {(r["ring"], r["sequence"]) for r in live.log.records}
    assert not heads & {(number, lost) for number, numbers in missing.items() for lost in numbers}


def _told(live: Live, missing: dict[int, set[int]]) -> dict[int, set[int]] | None:
    """What loss records say is missing, once they say as much as there is."""
    found = numbers_lost(live.log.notices)
    return found if sum(map(len, found.values())) >= sum(map(len, missing.values())) else None
