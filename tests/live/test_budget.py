"""A flood fills rings that nobody reads: what is done beside it comes, and what is refused is booked."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from pipeline.chunk import HIDDEN
from tests.live.groups import CPUS, EVENTS, KINDS, UIDS, Beside, Storm
from tests.live.run import Live
from tests.live.test_overflow import by_reason, quiet

pytestmark = [pytest.mark.kernel, pytest.mark.preempt]  # a host may have cgroups of the first version alone

FLOODED = ",".join((*EVENTS, "connect"))
RING = 256 << 10
"""Bytes: 1,024 chunks of each CPU, …"""
FLOOD = 300
"""… and programs there that make five and more each."""
BURST, BURSTS = 25, 10
CONNECT = "! 2>/dev/null : </dev/tcp/127.0.0.1/1"
FEW = 6
"""Programs on each CPU that are not the flood's."""


@dataclass
class Flooded:
    """What a flood and few programs after it left, while nobody read."""

    beside: Beside
    ledger: dict[str, Any]
    flood: Storm
    few: Storm
    executed: int


@pytest.fixture(scope="module", params=KINDS)
def beside(request: pytest.FixtureRequest, make_live: Callable[..., Live], acts: bytes) -> Iterator[Beside]:
    uids = ",".join(map(str, UIDS))
    live = make_live(ring__size=str(RING), kernel__uids=uids, environment__enabled="false")
    live.start(events=FLOODED)
    yield Beside(live, acts, request.param)
    assert live.stop() == 0, live.said()
    assert live.ledger()["balanced"], live.ledger()


@pytest.fixture(scope="module")
def flooded(beside: Beside) -> Flooded:
    beside.budget(reserve=0.5, share=0.5)
    with beside.unread():
        flood = beside.storm(FLOOD)
        executed = flood.executed()
        few = beside.storm(FEW)
        executed += few.executed()
        few.end()
        connecting = subprocess.run(["/bin/bash", "-c", CONNECT], user=UIDS[-1], check=False, env={})
        assert connecting.returncode == 0
    return Flooded(beside, quiet(beside.live), flood, few, executed + 1)


def test_the_others_come_whole(flooded: Flooded) -> None:
    few = flooded.beside.came(flooded.few)
    assert sorted(int(r["argv"][3]) for r in few) == sorted([*range(FEW)] * CPUS)
    assert not [r for r in few if "unsettled" in r]
    for record in few:
        pid, exec_id = record["process"]["pid"], record["id"]
        (ended,) = flooded.beside.live.log.of(pid, "exit")
        assert ended["process"]["exec_id"] == exec_id
    forked = {r["child"]["pid"] for r in flooded.beside.live.log.read() if r["kind"] == "fork"}
    assert {r["process"]["pid"] for r in few} <= forked


def test_what_is_refused_is_booked(flooded: Flooded) -> None:
    ledger = flooded.ledger
    assert ledger["balanced"]
    for kind in EVENTS:
        assert by_reason(ledger, "losses", kind).keys() == {"budget"}
        assert by_reason(ledger, "losses", kind)["budget"] > 100
    terms = ledger["events"]["exec"]
    assert terms["acknowledged"] + terms["lost"] == flooded.executed
    assert len([r for r in flooded.beside.live.log.read() if r["kind"] == "exec"]) == terms["acknowledged"]
    for number in range(CPUS):
        ring = ledger["rings"][str(number)]
        assert ring["chunks_read"] + ring["gaps"] == ring["chunks_attempted"]
        assert ring["gaps"] == ring["drops"]


def test_other_kinds_find_no_space_in_what_is_kept(flooded: Flooded) -> None:
    """The connection is lost, and has a gap; the program that tried it came."""
    assert by_reason(flooded.ledger, "losses", "connect").keys() == {"full"}
    execs = [r for r in flooded.beside.live.log.read() if r["kind"] == "exec"]
    assert len([r for r in execs if r["process"]["uid"] == UIDS[-1]]) == 1


def test_who_was_refused_runs_something_that_nobody_heard_of(flooded: Flooded) -> None:
    """And its end, after the flood, says so."""
    flooded.flood.end()
    exec_id = flooded.beside.live.ended(flooded.flood.shell.pid)["process"]["exec_id"]
    assert exec_id & HIDDEN
    assert exec_id not in {r["id"] for r in flooded.beside.live.log.records}


def test_nothing_is_refused_when_somebody_keeps_up(flooded: Flooded) -> None:
    """More than the rings hold, and never so much at once that it is not read before they are full."""
    for _ in range(BURSTS):
        storm = flooded.beside.storm(BURST)
        storm.executed()
        storm.end()
        after = quiet(flooded.beside.live)
        assert len(flooded.beside.came(storm)) == CPUS * BURST
    for kind in EVENTS:
        assert by_reason(after, "losses", kind) == by_reason(flooded.ledger, "losses", kind)


@pytest.mark.parametrize(("reserve", "share"), [(0, 0.5), (0.5, 0)], ids=["nothing kept", "without a share"])
def test_without_it_the_others_are_lost(flooded: Flooded, reserve: float, share: float) -> None:
    flooded.beside.budget(reserve, share)
    with flooded.beside.unread():
        for each in (FLOOD, FEW):
            storm = flooded.beside.storm(each)
            storm.executed()
            storm.end()
    ledger = quiet(flooded.beside.live)
    assert ledger["balanced"]
    assert not flooded.beside.came(storm)
    assert by_reason(ledger, "losses", "exec")["full"] > 100
