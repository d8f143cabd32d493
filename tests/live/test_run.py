"""A run begins, is killed, goes on, ends; what is attached stays or goes as it should."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.kernel.manifest import Manifest
from pipeline.privilege import ROOTS
from tests.live.run import Live, Record, eventually, json_lines
from tests.live.witness import execute

pytestmark = pytest.mark.kernel


def storm(acts: bytes, mark: bytes, count: int = 300, pause: int = 1000) -> subprocess.Popen[bytes]:
    """Marked and numbered execs, one each millisecond or so."""
    return subprocess.Popen(
        [acts, b"storm", b"0", b"%d" % count, mark, b"%d" % pause], stdout=subprocess.PIPE
    )


def executed(running: subprocess.Popen[bytes]) -> int:
    """How many the storm executed."""
    said = running.communicate(timeout=60)[0]
    assert running.returncode == 0
    return int(said)


def marked(records: list[Record], mark: str) -> list[Record]:
    """The execs of a storm. Of others the arguments may be lost."""
    execs = [(r, r["argv"] or [""]) for r in records if r["kind"] == "exec"]
    return [r for r, argv in execs if argv[0] == "storm" and argv[2:3] == [mark]]


def numbers(records: list[Record]) -> list[int]:
    """Their numbers, each once, in the order in which they came first."""
    return list(dict.fromkeys(int(r["argv"][3]) for r in records))


def place(record: Record) -> tuple[str, int, int]:
    return record["host"]["boot_id"], record["ring"], record["sequence"]


def programs(pins: Path) -> set[int]:
    """Ids of the programs that are pinned there."""
    found = set()
    for pin in pins.glob("gen-*/program_*"):
        done = subprocess.run(
            ["bpftool", "-j", "prog", "show", "pinned", str(pin)], capture_output=True, check=True, env=TOOLS
        )
        found.add(json.loads(done.stdout)["id"])
    return found


def loaded() -> set[int]:
    """Ids of all programs in this kernel."""
    done = subprocess.run(["bpftool", "-j", "prog", "show"], capture_output=True, check=True, env=TOOLS)
    return {program["id"] for program in json.loads(done.stdout)}


TOOLS = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}


def test_killed_and_run_again(make_live: Callable[..., Live], acts: bytes) -> None:
    live = make_live()
    live.start(events="exec,exit")
    running = storm(acts, b"killed", 600)
    for _ in range(3):
        time.sleep(0.15)
        live.stop(signal.SIGKILL)
        time.sleep(0.05)
        assert live.ledger()["balanced"], "while nobody runs"
        live.start(events="exec,exit")
    count = executed(running)
    last = running.pid
    live.ended(last)
    found = marked(live.log.read(), "killed")
    assert numbers(found) == list(range(count))
    assert len({place(r) for r in found}) == count
    assert live.stop() == 0
    ledger = live.ledger()
    assert ledger["balanced"]
    assert ledger["lost"] == 0
    # What a killed run had attached stays for the next one.
    assert programs(live.pins) <= loaded()
    assert live.command("detach", "--state", str(live.state)).stdout == "detached\n"


def test_attach_then_run_then_detach(make_live: Callable[..., Live], acts: bytes) -> None:
    live = make_live()
    attached = live.command("attach", "--state", str(live.state), "--events", "exec,fork,exit")
    assert attached.returncode == 0, attached.stderr
    assert "exec (tracepoint)" in attached.stdout
    own = programs(live.pins)
    links = {p.name.partition("-")[0] for p in live.pins.glob("link_*")}
    assert links == {"link_exec", "link_exit", "link_fork"}
    assert len(own) >= 6
    assert own <= loaded()
    assert live.pins.stat().st_mode & 0o777 == 0o700

    count = executed(storm(acts, b"before", 100, 0))
    live.start(events="exec,fork,exit")
    assert programs(live.pins) == own, "what is attached is what was asked for"
    count_live = executed(storm(acts, b"during", 100, 0))
    eventually(lambda: len(marked(live.log.read(), "during")) == count_live, "all of the storm")
    assert numbers(marked(live.log.read(), "before")) == list(range(count))
    assert live.stop() == 0
    assert own <= loaded()

    count_after = executed(storm(acts, b"after", 100, 0))
    between = live.ledger()
    assert between["balanced"]
    assert between["in_flight"] > count_after
    live.start(events="exec,exit")
    assert "handed over" in live.said(), "this run asks for other events"
    assert list(live.kinds) == ["exec", "exit"]
    eventually(lambda: len(marked(live.log.read(), "after")) == count_after, "what came in between")
    assert live.stop() == 0
    forks = [record for record in live.log.read() if record["kind"] == "fork"]
    ledger = live.ledger()
    assert ledger["balanced"]
    assert len(forks) == ledger["events"]["fork"]["acknowledged"], "those from before the hand-over too"
    assert {record["surface"] for record in forks} == {"tracepoint"}
    assert ledger["lost"] == 0

    assert live.command("detach", "--state", str(live.state)).stdout == "detached\n"
    assert not live.pins.exists()
    eventually(lambda: not own & loaded(), "the kernel to free the programs")
    again = live.command("detach", "--state", str(live.state))
    assert "nothing was attached" in again.stdout


def test_check_comes_before_the_first_run(make_live: Callable[..., Live]) -> None:
    """As whoever is new here does it: what root's commands leave in the folder is in nobody's way."""
    live = make_live()
    for command in ("check", "detach"):
        live.command(command, "--state", str(live.state))
    assert {path.name for path in live.state.iterdir()} == ROOTS
    live.start(events="exec,exit")
    assert live.stop() == 0, live.said()


def test_a_run_that_attached_detaches_at_its_end(make_live: Callable[..., Live], acts: bytes) -> None:
    live = make_live()
    live.start(events="exec,exit")
    own = programs(live.pins)
    second = live.command("run", "--state", str(live.state), "--duration", "1")
    assert second.returncode == 1
    assert "another `promissory run`" in second.stderr
    assert len(second.stderr.splitlines()) == 1

    act = execute(acts, [b"acts", b"one"])
    live.ended(act.pid)
    while_live = live.command("ledger", "--state", str(live.state), "--json")
    assert while_live.returncode == 0, while_live.stdout
    count = executed(storm(acts, b"last", 200, 0))
    assert live.stop() == 0
    found = marked(live.log.read(), "last")
    assert numbers(found) == list(range(count)), "what was executed before the end is in the log at the end"

    assert not live.pins.exists()
    eventually(lambda: not own & loaded(), "the kernel to free the programs")
    ended = live.command("ledger", "--state", str(live.state), "--json")
    assert ended.returncode == 0
    ledger = json.loads(ended.stdout)
    assert ledger["balanced"]
    assert ledger["in_flight"] == ledger["in_outbox"] == 0
    assert ledger["attempted"] > json.loads(while_live.stdout)["attempted"]
    assert ledger["acknowledged"] == len(live.log.read())
    assert "ledger: balanced" in live.said()

    tail = live.command("tail", str(live.state), "--from-start", "--format", "json")
    assert tail.returncode == 0, tail.stderr
    lines = list(json_lines(tail.stdout))
    assert len(lines) == len(live.log.records)
    assert [place(r) for r in lines] == [place(r) for r in live.log.records]
    assert set(lines[0]) == set(live.log.records[0])

    # Numbers of a new attachment are others, and its books begin anew.
    live.start(events="exec,exit")
    live.exec_of(execute(acts, [b"acts", b"one"]))
    assert live.stop() == 0
    places = [place(r) for r in live.log.read()]
    assert len(places) > len(lines)
    assert len(set(places)) == len(places)
    assert live.ledger()["acknowledged"] == len(places) - len(lines)


def test_a_surface_that_this_host_has_not(make_live: Callable[..., Live]) -> None:
    live = make_live()
    asked = ("--events", "exec", "--surface", "audit")
    done = live.command("run", "--state", str(live.state), *asked, "--duration", "1")
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert "cannot give exec (it has no surface audit)" in error
    assert "promissory check" in error
    assert not live.pins.exists()
    assert os.path.exists(live.state)


def test_what_has_a_price_goes_when_nobody_names_it_any_more(make_live: Callable[..., Live]) -> None:
    """Not an error: else an upgrade that finds out a surface's price could not take over what is attached."""
    live = make_live()
    for events in ("all", "", "exec"):
        done = live.command("attach", "--state", str(live.state), *(("--events", events) if events else ()))
        assert done.returncode == 0, done.stderr
        manifest = Manifest.read(live.state)
        assert manifest
        kinds = {hook.event for hook in manifest.hooks if hook.works}
        assert "exec" in kinds
        assert events == "all" or not [hook for hook in manifest.hooks if hook.works and hook.cost]
    assert live.command("detach", "--state", str(live.state)).returncode == 0


def test_a_cgroup_filter_needs_version_2(make_live: Callable[..., Live]) -> None:
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        pytest.skip("NOT TESTED: this host has version 2 of control groups")
    live = make_live(kernel__cgroups="1")
    done = live.command("run", "--state", str(live.state), "--duration", "1")
    assert done.returncode != 0
    assert "cgroup" in done.stderr
    assert not live.pins.exists()
