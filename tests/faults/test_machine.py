"""Row 5: a processor goes and comes back, and the clock is stepped. Inside virtual machines only: no test
takes a host's processor, or its time, from those who use it.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.conftest import Row
from tests.faults.storms import UID, Storms, mark_of, settled
from tests.live.run import PATIENCE, SLOWER, Live, Record, eventually
from tests.live.witness import execute

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.preempt,
    pytest.mark.skipif(
        SLOWER == 1, reason="NOT TESTED: a host's processors and clock are left alone: make vm-test"
    ),
]

ONLINE = Path("/sys/devices/system/cpu/cpu1/online")
EVENTS = "exec,fork,exit"
BOUND = 200
"""Execs of the storm whose processor goes: it lasts until somebody has read of its first ones."""
HOUR = 3600
HEARTBEAT = 0.5
STEPPED = "the clock stepped by"


@pytest.fixture(scope="module")
def live(make_live: Callable[..., Live]) -> Iterator[Live]:
    live = make_live(kernel__uids=str(UID), heartbeat=str(HEARTBEAT))
    live.start(events=EVENTS)
    yield live
    assert live.stop() == 0, live.said()
    assert live.ledger()["balanced"]


def stored(live: Live) -> list[Record]:
    """Execs of storms."""
    return [record for record in live.log.read() if mark_of(record)]


def offset() -> int:
    """ns from boottime to the time since the epoch."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def test_a_processor_goes_and_comes_back(live: Live, acts: bytes, row: Row) -> None:
    row("5 processor", "CPU 1 taken offline in a storm that was bound to it, and online again")
    eventually(ONLINE.exists, "a processor that can be taken away", 0)
    began = len(stored(live))
    try:
        with Storms(acts, each=40, pause=20_000, cpus=[0]) as other:
            bound = subprocess.Popen(
                [acts, b"storm", b"1", b"%d" % BOUND, b"bound", b"20000"], user=UID, stdout=subprocess.PIPE
            )
            eventually(lambda: len(mine(live, "bound")) > 5, "the storm to begin")
            ONLINE.write_text("0")
            assert os.sched_getaffinity(0) == {0}
            assert int(bound.communicate(timeout=3 * PATIENCE)[0]) == BOUND
    finally:
        ONLINE.write_text("1")
    after = subprocess.run(
        [acts, b"storm", b"1", b"20", b"back"], user=UID, stdout=subprocess.PIPE, check=True, timeout=PATIENCE
    )
    ledger = settled(live)
    cpus = [record["cpu"] for record in mine(live, "bound")]
    executed = len(other.executed) + BOUND + int(after.stdout)
    row.saw(executed=executed, missing=executed - (len(stored(live)) - began), lost=ledger["lost"])
    assert len(stored(live)) - began == executed
    assert [int(record["argv"][3]) for record in mine(live, "bound")] == list(range(BOUND))
    assert cpus == sorted(cpus, reverse=True), "from CPU 1 to CPU 0, and not back"
    assert set(cpus) == {0, 1}
    assert {record["cpu"] for record in mine(live, "back")} == {1}
    assert ledger["balanced"]
    assert ledger["lost"] == 0


def mine(live: Live, mark: str) -> list[Record]:
    return [record for record in stored(live) if record["argv"][2] == mark]


def steps_told(live: Live) -> list[float]:
    """Seconds of each step that self-watch has told."""
    return [float(step) for step in re.findall(rf"{STEPPED} (\S+) s$", live.said(), re.MULTILINE)]


@contextmanager
def stepped(seconds: int) -> Iterator[None]:
    """Another time of day; in the end the true one again."""
    true = offset()
    time.clock_settime_ns(time.CLOCK_REALTIME, time.time_ns() + seconds * 10**9)
    try:
        yield
    finally:
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        time.clock_settime_ns(time.CLOCK_REALTIME, now + true)


@pytest.mark.parametrize("seconds", [HOUR, -HOUR], ids=["forwards", "backwards"])
def test_the_clock_is_stepped(live: Live, acts: bytes, row: Row, seconds: int) -> None:
    row("5 clock", f"the clock stepped by {seconds:+,} s, and back, between execs")
    offsets, before = [], len(steps_told(live))

    def act() -> Record:
        time.sleep(3 * HEARTBEAT)  # self-watch has looked
        done = execute(acts, [b"acts", b"clock"], before=lambda: os.setuid(UID))
        record = live.exec_of(done)
        offsets.append(offset())
        return record

    first = act()
    with stepped(seconds):
        second = act()
    third = act()
    records = [first, second, third]
    places = [live.log.records.index(record) for record in records]
    errors = [
        record["time"] - record["boottime"] - there for record, there in zip(records, offsets, strict=True)
    ]
    ledger, steps = settled(live), steps_told(live)[before:]
    row.saw(
        steps_reported=len(steps),
        furthest_from_the_clock=f"{max(map(abs, errors)) / 1e6:.1f} ms",
        lost=ledger["lost"],
    )
    assert places == sorted(places)
    assert [r["boottime"] for r in records] == sorted(r["boottime"] for r in records)
    assert max(map(abs, errors)) < SLOWER * 1e9
    assert second["time"] - first["time"] == pytest.approx(seconds * 1e9, abs=HOUR / 10 * 1e9)
    assert steps == pytest.approx([seconds, -seconds], abs=SLOWER), "as many, and as far"
    told = [notice for notice in live.log.notices if notice["kind"] == "heartbeat"]
    assert any(STEPPED in finding for notice in told for finding in notice["watch"])
    untils = [notice["until"] for notice in told]
    assert untils == sorted(untils), "what is claimed goes by the kernel's clock"
    assert ledger["balanced"]
