"""Every field of the events that are about processes, in one event of each kind, on every kernel."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.live.compare import TICK, Within, same, who
from tests.live.run import SLOWER, Live
from tests.live.witness import Act, execute, spoken

pytestmark = [pytest.mark.kernel, pytest.mark.vm]

CLONE_SETTID, CLONE_CLEARTID = 0x1000000, 0x200000
ENVIRONMENT = [b"PATH=/bin", b"MARK=hunter2", b"EMPTY="]
SHOWN = ["PATH=/bin", "MARK=***", "EMPTY=***"]
TICKS = 0.06 * SLOWER
"""Seconds by which the kernel's ticks may be wrong, and that the end itself takes, after its event."""


def program(live: Live, pid: int | None = None) -> int:
    """Id of the event that started what this process, or another, runs."""
    started: int = live.log.of(pid or os.getpid(), "exec", "process")[-1]["id"]
    return started


def running(path: Path, of: Path = Path("/proc/self")) -> dict[str, Any]:
    """What a process says of the file that it runs and of itself, by another way than its events."""
    found = os.stat(path)
    ids = {name: int((of / name).read_text()) for name in ("loginuid", "sessionid")}
    known = {name: None if id == 0xFFFFFFFF else id for name, id in ids.items()}
    names = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
    return {
        "executable": str(path),
        "inode": found.st_ino,
        "device": found.st_dev,
        "loginuid": known["loginuid"],
        "session": known["sessionid"],
        **{f"namespaces.{name}": os.stat(of / "ns" / name).st_ino for name in names},
        "memfd": False,
        "deleted": False,
        "chrooted": False,
    }


@pytest.fixture
def told(tmp_path: Path) -> tuple[Callable[[], None], Callable[[], Mapping[str, Any]]]:
    """For `before`: a child of other users writes down who it is; and what it wrote."""
    path = tmp_path / "told"

    def become() -> None:
        os.chdir("/usr")
        os.setresgid(54322, 54323, 54323)
        os.setresuid(54321, 0, 0)
        spoken(path, who)()

    return become, lambda: json.loads(path.read_text())


Told = tuple[Callable[[], None], Callable[[], Mapping[str, Any]]]


def test_exec(live: Live, acts: bytes, tmp_path: Path, told: Told) -> None:
    script = tmp_path / "script"
    script.write_bytes(b"#!" + acts + b" flag\n")
    script.chmod(0o755)
    become, said = told
    record = live.exec_of(execute(os.fsencode(script), [b"-", b"a", b""], ENVIRONMENT, before=become))
    argv = [acts.decode(), "flag", str(script), "a", ""]
    expected = {
        **said(),
        "process.exec_id": record["id"],
        "process.parent.exec_id": program(live),
        "process.comm": "script",
        **running(Path(acts.decode())),
        "euid": 0,
        "egid": 54323,
        "argc": len(argv),
        "envc": len(ENVIRONMENT),
        "cwd": "/usr",
        "path": str(script),
        "interpreter": acts.decode(),
        "script_inode": script.stat().st_ino,
        "argv": argv,
        "environment": SHOWN,
    }
    same(record, expected)


def test_exec_failed(live: Live, told: Told) -> None:
    become, said = told
    act = execute(b"/nonexistent/program", [b"zero", b""], ENVIRONMENT, before=become)
    assert os.waitstatus_to_exitcode(act.status) == errno.ENOENT
    live.ended(act.pid)
    found = live.log.of(act.pid, "exec_failed")
    if not found:
        assert "exec_failed" not in live.kinds
        return
    expected = {
        **said(),
        "process.exec_id": program(live),
        "process.parent.exec_id": program(live),
        **running(Path(os.path.realpath("/proc/self/exe"))),
        "errno": errno.ENOENT,
        "euid": 0,
        "egid": 54323,
        "argc": 2,
        "envc": len(ENVIRONMENT),
        "cwd": "/usr",
        "path": "/nonexistent/program",
        "interpreter": None,
        "argv": ["zero", ""],
        "environment": SHOWN,
    }
    same(found[0], expected)


def test_fork(live: Live, acts: bytes) -> None:
    first = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    act = execute(acts, [b"x"])
    last = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    live.ended(act.pid)
    (record,) = [r for r in live.log.of(os.getpid(), "fork") if r["child"]["pid"] == act.pid]
    assert first <= record["child"]["start"] <= last
    expected = {
        **who(),
        "process.exec_id": program(live),
        "process.parent.exec_id": program(live, os.getppid()),
        "child.start": Within(first // TICK, last // TICK),
        "child.pid": act.pid,
        "child.ns_pid": act.pid,
        "flags": CLONE_SETTID | CLONE_CLEARTID,
    }
    same(record, expected)


def test_exit(live: Live, acts: bytes, told: Told) -> None:
    become, said = told
    act = execute(acts, [b"acts", b"work", b"80"], before=become)
    used = act.rusage.ru_utime + act.rusage.ru_stime
    expected = {
        **said(),
        "process.exec_id": program_of(live, act),
        "process.parent.exec_id": program(live),
        "process.comm": "acts",
        "utime": about(act.rusage.ru_utime),
        "stime": about(act.rusage.ru_stime),
        "runtime": about(used),
        "code": os.waitstatus_to_exitcode(act.status),
        "signal": 0,
        "core": False,
    }
    same(live.ended(act.pid), expected)


def program_of(live: Live, act: Act) -> int:
    live.ended(act.pid)
    return program(live, act.pid)


def about(seconds: float) -> Within:
    """CPU time as the kernel says it, in ns."""
    return Within((seconds - TICKS) * 1e9, (seconds + TICKS) * 1e9)


def test_process(live: Live) -> None:
    (record,) = live.log.of(os.getpid(), "process")
    own = Path("/proc/self")
    argv = (own / "cmdline").read_bytes().removesuffix(b"\0").split(b"\0")
    environment = (own / "environ").read_bytes().removesuffix(b"\0").split(b"\0")
    names = [entry.partition("=")[0] for entry in record["environment"]]
    assert names == [os.fsdecode(entry.partition(b"=")[0]) for entry in environment]
    expected = {
        **who(),
        "process.exec_id": record["id"],
        "process.parent.exec_id": program(live, os.getppid()),
        **running(Path(os.path.realpath(own / "exe"))),
        "euid": os.geteuid(),
        "egid": os.getegid(),
        "argc": len(argv),
        "envc": len(environment),
        "cwd": os.getcwd(),
        "argv": [os.fsdecode(one) for one in argv],
        "environment": record["environment"],
    }
    same(record, expected)
