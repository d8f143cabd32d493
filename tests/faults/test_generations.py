"""Row 6: another generation of programs takes over while execs go on, and each is stored once; a loader that
is killed leaves nothing in the way.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pipeline.kernel import bpf
from pipeline.kernel.manifest import Manifest
from tests.faults.conftest import Row
from tests.faults.results import times
from tests.faults.storms import UID, Storms, mark_of, settled
from tests.live.run import PATIENCE, Live, eventually

pytestmark = pytest.mark.kernel

FIRST, SECOND = "exec,exit", "exec,fork,exit,cgroup"
PAUSE = 300
"""µs between two execs on one CPU."""
KINDS = {
    "link": ("link_*",),
    "prog": ("entry_*", "gen-*/program_*"),
    "map": ("map_*", "slot_*", "gen-*/map_*"),
}
"""What bpftool lists → pins of such."""


def attach(live: Live, events: str) -> str:
    done = live.command("attach", "--state", str(live.state), "--events", events)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hand_overs_under_load(make_live: Callable[..., Live], acts: bytes, row: Row) -> None:
    often = times(2, 100)
    row(
        "6 upgrade", f"{often} hand-overs under a live `run`, in a storm of numbered execs; kinds come and go"
    )
    live = make_live(kernel__uids=str(UID))
    live.start(events=FIRST)
    with Storms(acts, pause=PAUSE) as storms:
        for number in range(1, often + 1):
            said = attach(live, SECOND if number % 2 else FIRST)
            assert said.startswith(f"handed over, generation {number + 1}: exec")
    ledger = settled(live, 3 * PATIENCE)
    assert live.stop() == 0, live.said()
    records = live.log.read()
    marked = [record for record in records if mark_of(record)]
    marks, ids = {mark_of(record) for record in marked}, {record["id"] for record in marked}
    ends = [record["process"]["exec_id"] for record in records if record["kind"] == "exit"]
    forks = [record for record in records if record["kind"] == "fork"]
    row.saw(
        executed=len(storms.executed),
        missing=len(storms.executed - marks),
        doubles=len(marked) - len(marks),
        exits_missing=len(ids - set(ends)),
        lost_in_ledger=ledger["lost"],
        ledger="balanced" if ledger["balanced"] else "NOT BALANCED",
    )
    assert marks == storms.executed
    assert len(marked) == len(marks), "each once"
    assert sorted(end for end in ends if end in ids) == sorted(ids), "and each has one end"
    assert {record["surface"] for record in forks} == {"tracepoint"}, "of a kind that came later"
    assert ledger["balanced"], ledger
    assert ledger["lost"] == ledger["in_flight"] == 0
    assert not live.pins.exists(), "a run that attached detaches, whatever generation it is"


def test_a_loader_that_is_killed(make_live: Callable[..., Live], acts: bytes, row: Row) -> None:
    often = times(2, 60)
    row("6 loader killed", f"{often} × SIGKILL of a loader at random instants, in a storm of numbered execs")
    seed = int(os.environ.get("FAULTS_SEED", random.randrange(1 << 32)))
    row.say(f"FAULTS_SEED={seed}")
    chance = random.Random(seed)
    live = make_live(kernel__uids=str(UID))
    begin = time.monotonic()
    attach(live, FIRST)
    takes = time.monotonic() - begin
    held = objects(live.pins)
    live.start(events=FIRST)
    killed = 0
    with Storms(acts, pause=PAUSE) as storms:
        for number in range(often):
            killed += kill(live, SECOND if number % 2 else FIRST, chance.uniform(0.2, 1) * takes)
            for kind, ids in objects(live.pins).items():
                held[kind] |= ids
        attach(live, SECOND)
    ledger = settled(live, 3 * PATIENCE)
    assert live.stop() == 0, live.said()
    marked = [record for record in live.log.read() if mark_of(record)]
    marks = {mark_of(record) for record in marked}
    assert live.command("detach", "--state", str(live.state)).stdout == "detached\n"
    left = 0
    for kind, ids in held.items():
        eventually(partial(are_gone, kind, ids), f"every {kind} to be freed")
        left += len(ids & loaded(kind))
    row.saw(
        killed=killed,
        executed=len(storms.executed),
        missing=len(storms.executed - marks),
        doubles=len(marked) - len(marks),
        objects_left=left,
        seed=str(seed),
    )
    assert not live.pins.exists()
    assert marks == storms.executed
    assert len(marked) == len(marks)
    assert ledger["balanced"], ledger
    assert ledger["lost"] == 0


def kill(live: Live, events: str, after: float) -> bool:
    """Kill a loader that hands over so many seconds after its start. False: it had ended before."""
    command = [sys.executable, "-m", "pipeline.cli", "attach", "--state", str(live.state), "--events", events]
    with (
        (live.state / "killed").open("ab") as output,
        subprocess.Popen(
            command, env=live.environment(), stdout=output, stderr=output, start_new_session=True
        ) as loader,
    ):
        try:
            return bool(loader.wait(after))
        except subprocess.TimeoutExpired:
            os.killpg(loader.pid, signal.SIGKILL)
    assert Manifest.read(live.state), "what is attached stays"
    return True


def objects(pins: Path) -> dict[str, set[int]]:
    """Numbers of all that is pinned, by what bpftool calls it."""
    found: dict[str, set[int]] = {}
    for kind, patterns in KINDS.items():
        found[kind] = set()
        for path in [path for pattern in patterns for path in pins.glob(pattern)]:
            fd = bpf.get(path)
            found[kind].add(bpf.object_id(fd))
            os.close(fd)
    return found


def are_gone(kind: str, ids: set[int]) -> bool:
    return not ids & loaded(kind)


def loaded(kind: str) -> set[int]:
    """Numbers of all of a kind that this kernel holds."""
    done = subprocess.run(["bpftool", "-j", kind, "show"], capture_output=True, check=True)
    return {each["id"] for each in json.loads(done.stdout)}
