"""A live pipeline has no privileges, and does its work all the same: from a tree and a bpffs that are root's
alone, to a broker that wants TLS and SCRAM.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from config.kafka.broker import HOME
from pipeline.kafka import present
from pipeline.place import Kafka
from tests.live import run
from tests.live.conftest import NUMBERS
from tests.live.run import PATIENCE, Live, eventually
from tests.live.witness import execute
from tests.secure import PASSWORD, Secure, guarded
from tests.test_privilege import UNPRIVILEGED, unprivileged

__all__ = ["guarded"]

pytestmark = pytest.mark.kernel
HOUSE = HOME.parent
SYS_ADMIN, AUDIT_CONTROL = 1 << 21, 1 << 30


def statuses(pid: int) -> dict[str, dict[str, str]]:
    """/proc/PID/status of every thread: by its name and number."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
        found[f"{status['Name']} {task.name}"] = status
    return found


def check_user(status: dict[str, str]) -> None:
    user = pwd.getpwnam("promissory")
    assert set(status["Uid"].split()) == {str(user.pw_uid)}
    assert set(status["Gid"].split()) == {str(user.pw_gid)}
    assert status["Groups"] == ""


@pytest.mark.vm
def test_every_thread_is_without_privileges(live: Live) -> None:
    assert live.process
    for status in statuses(live.process.pid).values():
        assert unprivileged(status) == UNPRIVILEGED
        check_user(status)
    assert live.pins.stat().st_mode & 0o777 == 0o700
    user = pwd.getpwnam("promissory").pw_uid
    for path in (live.pins, *live.pins.rglob("*"), live.state, *live.state.iterdir()):
        assert path.lstat().st_uid == user, path


@pytest.mark.vm
def test_its_deputy_has_two_capabilities_and_no_more(live: Live) -> None:
    assert live.process
    children = Path(f"/proc/{live.process.pid}/task/{live.process.pid}/children").read_text().split()
    if not children:
        pytest.skip("NOT TESTED: no source here needs a deputy")
    (deputy,) = map(int, children)
    (status,) = statuses(deputy).values()
    kept = dict.fromkeys(("CapPrm", "CapEff"), SYS_ADMIN | AUDIT_CONTROL)
    assert unprivileged(status) == {**UNPRIVILEGED, **kept}
    check_user(status)


def unvouched(live: Live) -> list[tuple[int, int]]:
    """Times for which nobody says what the kernel gave up of audit; that before the run is not among them."""
    live.log.read()
    found = [n for n in live.log.notices if (n.get("stage"), n.get("reason")) == ("audit", "no reader")]
    assert all(notice["count"] is None and notice["ring"] == 1022 for notice in found)
    return [(notice["since"], notice["until"]) for notice in found[1:]]


def more_beats(live: Live) -> None:
    """Wait for some heartbeats."""

    def count() -> int:
        live.log.read()
        return sum(notice["kind"] == "heartbeat" for notice in live.log.notices)

    before = count()
    eventually(lambda: count() > before + 2, "heartbeats")


def test_heartbeats_do_not_vouch_for_what_no_deputy_tells(make_live: Callable[..., Live]) -> None:
    """One that is stopped is late, and goes on; one that is killed is missed until the next run."""
    live = make_live(heartbeat="0.5")
    live.start(events="exec,exit,audit")
    assert live.process
    if live.kinds["audit"] != "audit" or (live.pins / "ring_records").exists():
        pytest.skip("NOT TESTED: audit needs no deputy here")
    children = Path(f"/proc/{live.process.pid}/task/{live.process.pid}/children").read_text().split()
    (deputy,) = map(int, children)

    more_beats(live)
    assert unvouched(live) == []
    os.kill(deputy, signal.SIGSTOP)
    eventually(lambda: len(unvouched(live)) > 2, "the time to be told")
    os.kill(deputy, signal.SIGCONT)
    eventually(lambda: "the deputy answers again" in live.said(), "it to go on")
    more_beats(live)
    late = unvouched(live)
    more_beats(live)
    assert unvouched(live) == late, "what it tells is vouched for again"

    os.kill(deputy, signal.SIGKILL)
    eventually(lambda: len(unvouched(live)) > len(late) + 2, "the time to be told")
    told = unvouched(live)
    assert all(after[0] <= before[1] for before, after in pairwise(told[len(late) :])), "without a hole"
    assert live.said().count("the deputy is gone, until `run` is started again") == 1
    assert "the deputy does not answer" in live.said()
    assert live.stop() == 0, live.said()
    assert live.ledger()["balanced"]


def test_what_it_may_not_open_is_one_line(
    make_live: Callable[..., Live], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a service that was given too little."""
    live = make_live()
    attached = live.command("attach", "--state", str(live.state), "--events", "exec,audit")
    assert attached.returncode == 0, attached.stderr
    if "audit (audit)" not in attached.stdout:
        pytest.skip("NOT TESTED: audit comes by BPF here")
    monkeypatch.setattr(run, "COMMAND", ("setpriv", "--bounding-set", "-audit_read", *run.COMMAND))
    done = live.command("run", "--state", str(live.state), "--events", "exec,audit", "--duration", "1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "promissory: error: audit's socket cannot be opened: Operation not permitted; it takes "
        "CAP_AUDIT_READ (CapabilityBoundingSet= of a service); or name --events without audit"
    )
    assert not (live.state / "errors.log").exists()


@pytest.fixture
def closed(ground: Path) -> Iterator[Path]:
    """A folder for root alone, with our tree, the interpreter's environment, and a bpffs in it."""
    folder = ground / "closed"
    with ExitStack() as stack:
        for name, mount in (
            ("house", ["--bind", str(HOUSE)]),
            ("environment", ["--bind", sys.prefix]),
            ("bpf", ["-t", "bpf", "-o", "mode=0700", "bpf"]),
        ):
            (folder / name).mkdir(parents=True)
            subprocess.run(["mount", *mount, str(folder / name)], check=True)
            stack.callback(subprocess.run, ["umount", "-l", str(folder / name)], check=True)
        folder.chmod(0o700)
        yield folder


@pytest.mark.kafka
def test_it_does_its_work_where_only_root_can_look(
    ground: Path, closed: Path, guarded: Secure, acts: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The password is not the broker's at first: events wait until it is, and nobody ever sees it."""
    monkeypatch.setattr(run, "COMMAND", (str(closed / "environment/bin/python"), "-m", "pipeline.cli"))
    monkeypatch.chdir(closed / "house")
    guarded.let_in("an0ther")
    keys = {**guarded.settings(closed / "password"), "topic__partitions": "1"}
    settings = {f"PROMISSORY_{key.upper()}": value for key, value in keys.items()}
    live = Live(ground / f"state-{next(NUMBERS)}", closed / "bpf" / "promissory", settings)
    try:
        ours = ("--filter", f"executable = '{acts.decode()}'")
        live.start("--to", f"kafka://{guarded.address()}/live", *ours, events="exec")
        assert live.process
        threads = statuses(live.process.pid)
        assert {"polars", "rdk:"} <= {name[:6] for name in threads} | {name[:4] for name in threads}
        for status in threads.values():
            assert unprivileged(status) == UNPRIVILEGED
        execute(acts, [b"acts", b"one"])
        eventually(lambda: live.ledger()["in_outbox"] > 0, "the outbox to take what the broker does not")
        command = Path(f"/proc/{live.process.pid}/cmdline").read_bytes()
        guarded.let_in(PASSWORD)
        eventually(lambda: live.ledger()["acknowledged"] > 0, "the broker to take it", 3 * PATIENCE)
        eventually(lambda: live.ledger()["in_outbox"] == 0, "the outbox to be empty")
        assert live.stop() == 0, live.said()
        assert live.ledger()["balanced"]
        assert list(live.pins.rglob("*")) == [], "nothing is attached any more"
    finally:
        live.clean()
    assert "the broker refuses the credentials; check `kafka.sasl.*`; events go to the outbox" in live.said()
    written = [path.read_bytes() for path in live.state.iterdir() if path.is_file()]
    assert all(PASSWORD.encode() not in text for text in (command, live.said().encode(), *written))
    assert "live.process" in present(Kafka(guarded.address(), "live"), guarded.login())[1]
