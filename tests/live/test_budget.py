"""A flood fills rings that nobody reads: what is done beside it comes through, and what is refused is booked."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from pipeline.chunk import HIDDEN
from pipeline.config import load
from pipeline.kernel import bpf
from pipeline.kernel.layout import settings
from tests.live.groups import KINDS, UIDS, Group
from tests.live.run import PATIENCE, SLOWER, Live, Record
from tests.live.test_overflow import by_reason, quiet

pytestmark = pytest.mark.kernel

EVENTS = ("exec", "fork", "exit")
RING = 256 << 10
"""1,024 chunks of each CPU, …"""
FLOOD = 500
"""… and programs there that make five and more each."""
SLOWLY = 250
FEW = 6
"""Programs on each CPU that are not the flood's."""
CPUS = os.cpu_count() or 1


@dataclass
class Storm:
    """Programs on each CPU at once, in one group. Their shell becomes one that stays until it is ended."""

    shell: subprocess.Popen[bytes]
    executed: int

    @classmethod
    def run(cls, acts: bytes, group: Group, each: int, mark: str, pause: int = 0) -> Storm:
        lines = [f'"$0" storm {cpu} {each} {mark} {pause} &' for cpu in range(CPUS)]
        shell = group.start("/bin/sh", "-c", "\n".join((*lines, "wait", 'exec "$0" stay')), acts)
        assert shell.stdout
        for _ in range(CPUS):
            assert int(shell.stdout.readline()) == each
        return cls(shell, 1 + CPUS * (1 + each) + 1)

    def end(self) -> None:
        self.shell.communicate(timeout=PATIENCE)
        assert self.shell.returncode == 0


class Beside:
    """A run over small rings, and groups that do something beside each other."""

    def __init__(self, live: Live, acts: bytes, kind: str) -> None:
        self.live, self._acts, self._kind, self._groups = live, acts, kind, 0

    def storm(self, each: int, mark: str, pause: int = 0) -> Storm:
        """One in a group where nothing was done before."""
        self._groups += 1
        return Storm.run(self._acts, Group(self._kind, self._groups - 1), each, mark, pause)

    @contextmanager
    def unread(self) -> Iterator[None]:
        """Nobody reads the rings."""
        assert self.live.process
        self.live.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.live.process.send_signal(signal.SIGCONT)

    def budget(self, reserve: float, share: float) -> None:
        """Set it while programs are attached."""
        flags = {"ring": {"size": RING}, "budget": {"reserve": reserve, "share": share}}
        config = load({**flags, "kernel": {"uids": UIDS}, "environment": {"enabled": False}}, environ={})
        pin = bpf.get(self.live.pins / "map_settings")
        bpf.update(pin, bytes(4), settings(config, EVENTS))
        os.close(pin)

    def marked(self, mark: str) -> list[Record]:
        """The programs with this mark that are in the log."""
        return [r for r in self.live.log.read() if r["kind"] == "exec" and (r["argv"] or ())[2:3] == [mark]]


@dataclass
class Flooded:
    """What a flood and few programs after it left, while nobody read."""

    beside: Beside
    ledger: dict[str, Any]
    flood: Storm
    executed: int


@pytest.fixture(scope="module", params=KINDS)
def beside(request: pytest.FixtureRequest, make_live: Callable[..., Live], acts: bytes) -> Iterator[Beside]:
    uids = ",".join(map(str, UIDS))
    live = make_live(ring__size=str(RING), kernel__uids=uids, environment__enabled="false")
    live.start(events=",".join(EVENTS))
    yield Beside(live, acts, request.param)
    assert live.stop() == 0, live.said()
    assert live.ledger()["balanced"], live.ledger()


@pytest.fixture(scope="module")
def flooded(beside: Beside) -> Flooded:
    beside.budget(reserve=0.5, share=0.5)
    with beside.unread():
        flood = beside.storm(FLOOD, "flood")
        few = beside.storm(FEW, "few")
        few.end()
    return Flooded(beside, quiet(beside.live), flood, flood.executed + few.executed)


def test_the_others_come_whole(flooded: Flooded) -> None:
    few = flooded.beside.marked("few")
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


def test_who_was_refused_runs_something_that_nobody_heard_of(flooded: Flooded) -> None:
    """And its end, after the flood, says so."""
    flooded.flood.end()
    exec_id = flooded.beside.live.ended(flooded.flood.shell.pid)["process"]["exec_id"]
    assert exec_id & HIDDEN
    assert exec_id not in {r["id"] for r in flooded.beside.live.log.records}


def test_nothing_is_refused_when_somebody_reads(flooded: Flooded) -> None:
    """More than the rings hold, a little slower."""
    storm = flooded.beside.storm(SLOWLY, "slower", pause=round(2000 * SLOWER))
    storm.end()
    after = quiet(flooded.beside.live)
    for kind in EVENTS:
        assert by_reason(after, "losses", kind) == by_reason(flooded.ledger, "losses", kind)
    assert len(flooded.beside.marked("slower")) == CPUS * SLOWLY


@pytest.mark.parametrize(("reserve", "share"), [(0, 0.5), (0.5, 0)], ids=["nothing kept", "without a share"])
def test_without_it_the_others_are_lost(flooded: Flooded, reserve: float, share: float) -> None:
    mark = f"lost-{reserve}-{share}"
    flooded.beside.budget(reserve, share)
    with flooded.beside.unread():
        flood = flooded.beside.storm(FLOOD, "again")
        few = flooded.beside.storm(FEW, mark)
        few.end()
        flood.end()
    ledger = quiet(flooded.beside.live)
    assert ledger["balanced"]
    assert not flooded.beside.marked(mark)
    assert by_reason(ledger, "losses", "exec")["full"] > 100
