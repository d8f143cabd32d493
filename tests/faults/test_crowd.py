"""Row 5: more processes than anybody wants, and processors and clocks that change under way."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from pipeline.consume import consume
from tests.absent import absent
from tests.faults.conftest import Row
from tests.faults.results import times
from tests.faults.storms import UID, settled
from tests.live.run import Live, eventually

pytestmark = pytest.mark.kernel

KINDS = ("exec", "fork", "exit")
MOST = 100
"""Processes that a bomb may have at once."""
CGROUPS = Path("/sys/fs/cgroup")
QUIET: Any = {"stdout": subprocess.PIPE, "env": {}}
Terms = dict[str, dict[str, int]]


@pytest.fixture(scope="module")
def live(make_live: Callable[..., Live]) -> Iterator[Live]:
    live = make_live(kernel__uids=str(UID))
    live.start(events=",".join(KINDS))
    yield live
    assert live.stop() == 0, live.said()
    assert live.ledger()["balanced"]


@pytest.fixture(scope="module")
def bomb(ground: Path) -> bytes:
    program = ground / "bomb"
    source = Path(__file__).with_name("bomb.c")
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-static", source, "-o", program], check=True)
    return os.fsencode(program)


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A group that may have so many processes."""
    version_1 = CGROUPS / "pids"
    parent = version_1 if version_1.is_dir() else CGROUPS
    folder = parent / f"promissory-{os.getpid()}"
    try:
        if parent is CGROUPS:
            (parent / "cgroup.subtree_control").write_text("+pids")
        folder.mkdir()
        (folder / "pids.max").write_text(str(MOST))
    except OSError as error:
        absent(f"a control group with a limit of processes: {error}")
    yield folder
    eventually(lambda: not (folder / "cgroup.procs").read_text(), "the group's processes to end")
    folder.rmdir()


def during(live: Live, act: Callable[[], None]) -> tuple[dict[str, Any], Terms]:
    """The ledger after an act, and what the act added to each kind's terms; all of it stored or booked."""
    before = settled(live)["events"]
    act()
    ledger = settled(live, 120)
    added = {
        kind: {term: n - before[kind][term] for term, n in terms.items()}
        for kind, terms in ledger["events"].items()
        if kind in KINDS
    }
    assert ledger["balanced"], ledger
    for number, ring in ledger["rings"].items():
        assert ring["gaps"] == ring["drops"], number
        assert ring["unread"] == 0
    return ledger, added


async def executed_by(state: Path) -> set[str]:
    """Names of all processes that executed something."""
    async with consume(str(state)) as events:
        return {event["process"]["id"] async for event in events if event["kind"] == "exec"}


def seen(terms: dict[str, int]) -> int:
    """Events of ours: stored or lost."""
    return terms["acknowledged"] + terms["lost"]


@pytest.mark.parametrize("limit", ["limit of the user's", "control group"])
def test_a_fork_bomb(live: Live, bomb: bytes, row: Row, request: pytest.FixtureRequest, limit: str) -> None:
    seconds = times(2, 60)
    row("5 fork bomb", f"{seconds} s of a fork bomb: {MOST} processes at once, by a {limit}")
    if limit == "control group":
        cgroup = request.getfixturevalue("cgroup")
        enter = 'echo $$ >"$0/cgroup.procs" && exec setpriv --reuid="$1" --clear-groups "$2" 0 "$3"'
        command = ["sh", "-c", enter, cgroup, str(UID), bomb, str(seconds)]
        user = None
    else:
        command, user = [bomb, str(MOST), str(seconds)], UID
    said: list[int] = []

    def act() -> None:
        done = subprocess.run(command, user=user, stdout=subprocess.PIPE, check=True)
        said.extend(map(int, done.stdout.split()))

    _, added = during(live, act)
    forked, refused = said
    row.saw(
        forked=forked,
        refused_by_the_kernel=refused,
        stored=added["fork"]["acknowledged"],
        lost_and_booked=added["fork"]["lost"],
        unbooked=forked - seen(added["fork"]),
    )
    assert refused > 0, "the limit was met"
    assert forked > 10 * MOST
    assert seen(added["fork"]) == forked
    assert seen(added["exit"]) == forked + 1
    assert seen(added["exec"]) == 1


def test_short_lived_processes(live: Live, acts: bytes, row: Row) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    each = times(20_000, 1_000_000) // len(cpus)
    row("5 short-lived processes", f"{each * len(cpus):,} processes, each with a program of its own")

    def act() -> None:
        commands = [
            subprocess.Popen([acts, b"storm", *(b"%d" % n for n in (cpu, each)), b"short"], user=UID, **QUIET)
            for cpu in cpus
        ]
        assert [int(command.communicate()[0]) for command in commands] == [each] * len(cpus)

    before = trio.run(executed_by, live.state)
    ledger, added = during(live, act)
    names = trio.run(executed_by, live.state) - before
    executed = len(cpus) * (each + 1)
    row.saw(
        executed=executed,
        stored=added["exec"]["acknowledged"],
        lost_and_booked=added["exec"]["lost"],
        unbooked=executed - seen(added["exec"]),
        names_given_twice=added["exec"]["acknowledged"] - len(names),
    )
    assert seen(added["exec"]) == seen(added["exit"]) == executed
    assert seen(added["fork"]) == len(cpus) * each
    assert len(names) == added["exec"]["acknowledged"]
    assert not any(ledger["troubles"].values()), ledger["troubles"]
