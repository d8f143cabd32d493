"""What can be collected by, for the comparison of what audited processes pay: promissory and its peers.

Each is a context manager that is ready, but not yet in force, when entered; `on()` puts it in force, again as
a context manager: so blocks with and without it stand close together. What `on()` gives is the process that
takes what is collected.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from tests.bench.idle import live
from tests.bench.least import Least
from tests.bench.slowdown import STORM_CPU, Switch, beside
from tests.live.run import SLOWER, Live, eventually

__all__ = ["CONNECTS_ALONE", "LEAST", "NOTHING", "OURS", "PEERS", "CannotError", "Peer", "promissory"]


BEGIN: Final = 60 * SLOWER
"""Seconds that a peer may take to begin, …"""
END: Final = 20 * SLOWER
"""… and to end."""


class CannotError(Exception):
    """A collector does not run on this host; its own words."""


Ready = Callable[[], AbstractContextManager[int]]
AUDITD: Final = Path("/etc/audit/auditd.conf")
SYSCALLS: Final = (
    "execve,execveat",
    "clone,clone3,fork,vfork",
    "exit_group",
    "connect,accept,accept4,bind,listen",
)
RULES: Final = [
    *(f"-a always,exit -F arch=b64 -S {calls} -k promissory-bench" for calls in SYSCALLS),
    # 4: PROT_EXEC, of mmap's and mprotect's third argument
    "-a always,exit -F arch=b64 -S mmap,mprotect -F a2&4 -k promissory-bench",
]
NO_CONTEXT: Final = "-a task,never"
"""Tasks made under this rule pay nothing for audit; without it every task pays once audit was enabled."""
EXECS: Final = 'tracepoint:syscalls:sys_enter_execve { printf("%d %s ", pid, comm); join(args->argv); }'
CONNECTS: Final = 'kprobe:tcp_connect { printf("%d %s\\n", pid, comm); }'


@dataclass(frozen=True)
class Peer:
    """One collector."""

    name: str
    storms: frozenset[str] | None
    """Those that it sees anything of; None: all."""
    lacks: str
    """What it does not collect, beside promissory."""
    needs: str
    """The command without which it cannot be measured, …"""
    package: str
    """… and Debian's package with it."""
    ready: Callable[[], AbstractContextManager[Ready]]
    compiles: bool = False
    """Each time that it is put in force."""
    fresh: bool = False
    """Whether each block needs a process of its own, made in force or not as the block is. Others have one
    process for all their blocks: a new one is noise."""


@contextmanager
def _nothing() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "infinity"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@contextmanager
def _least() -> Iterator[Ready]:
    with closing(Least(STORM_CPU)) as least:

        @contextmanager
        def on() -> Iterator[int]:
            with least.on(), _nothing() as pid:
                yield pid

        yield on


@contextmanager
def promissory() -> Iterator[tuple[Switch, int]]:
    """In force, with its default events: its programs, and the process that takes what they write."""
    with _attached("", "auto") as (run, switch), switch.on(), _running(run, "", "auto") as pid:
        yield switch, pid


def _promissory(events: str, surface: str) -> Callable[[], AbstractContextManager[Ready]]:
    """In force with all that is its own: a run holds perf buffers, too, and mappings pay for those."""

    @contextmanager
    def ready() -> Iterator[Ready]:
        with _attached(events, surface) as (run, switch):

            @contextmanager
            def on() -> Iterator[int]:
                with switch.on(), _running(run, events, surface) as pid:
                    yield pid

            yield on

    return ready


@contextmanager
def _attached(events: str, surface: str) -> Iterator[tuple[Live, Switch]]:
    with live() as run:
        done = run.command("attach", "--state", str(run.state), "--events", events, "--surface", surface)
        assert not done.returncode, done.stderr
        yield run, Switch(run)


@contextmanager
def _running(run: Live, events: str, surface: str) -> Iterator[int]:
    run.start("--surface", surface, events=events)
    beside(run)
    assert run.process
    yield run.process.pid
    assert not run.stop(), run.said()


@contextmanager
def _auditd() -> Iterator[Ready]:
    if "pid 0\n" not in _auditctl("-s"):
        raise CannotError("another audit daemon runs here, with rules of its own (service auditd stop)")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(AUDITD.parent, folder, dirs_exist_ok=True)
        settings = AUDITD.read_text().replace("/var/log/audit/audit.log", f"{folder}/audit.log")
        (Path(folder) / AUDITD.name).write_text(settings)
        daemon = subprocess.Popen(["auditd", "-n", "-s", "nochange", "-c", folder], stdout=subprocess.DEVNULL)
        eventually(lambda: f"pid {daemon.pid}\n" in _auditctl("-s"), "auditd to begin")
        _auditctl(*NO_CONTEXT.split())  # as after a block with its rules
        try:
            yield partial(_rules, daemon.pid)
        finally:
            daemon.terminate()
            daemon.wait()
            _auditctl("-e", "0")


@contextmanager
def _rules(pid: int) -> Iterator[int]:
    _auditctl("-D")
    for rule in RULES:
        _auditctl(*rule.split())
    _auditctl("-e", "1", "-b", "65536")
    try:
        yield pid
    finally:
        _auditctl("-D")
        _auditctl(*NO_CONTEXT.split())
        _auditctl("-e", "0")


def _auditctl(*arguments: str) -> str:
    done = subprocess.run(["auditctl", *arguments], capture_output=True, text=True, check=False)
    return done.stdout


def _command(*command: str, first: float = 3.0) -> Callable[[], AbstractContextManager[Ready]]:
    """A peer that is in force while its process lives. `first`: seconds that it may take to begin."""

    @contextmanager
    def on() -> Iterator[int]:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        programs = _programs()
        eventually(lambda: _programs() > programs or process.poll() is not None, command[0], BEGIN)
        time.sleep(first / 3)  # its other programs
        if process.poll() is not None:
            raise CannotError(_why(process.communicate()[1].decode().split("\n")))
        try:
            yield process.pid
            if process.poll() is not None:
                raise CannotError("it ended while it was measured")
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=END)
            except subprocess.TimeoutExpired:  # bpftrace, once in a while: its block is measured
                process.kill()
                process.communicate()

    return lambda: nullcontext(on)


def _why(said: Sequence[str]) -> str:
    """What a collector says of why it ended: the kernel's answer, where it is there. bpftrace begins with
    complaints that stop nothing.
    """
    answers = {os.strerror(number) for number in errno.errorcode}
    lines = [line for line in said if line.strip()] or ["nothing said"]
    return next((line for line in lines if line.rpartition(": ")[2] in answers), lines[-1])


def _programs() -> int:
    """BPF programs that are loaded."""
    done = subprocess.run(["bpftool", "prog", "list"], capture_output=True, text=True, check=True)
    return done.stdout.count("\n")


NOTHING: Final = Peer(
    "nothing, in both halves", None, "everything", "sleep", "coreutils", lambda: nullcontext(_nothing)
)
"""The control: what the method shows where nothing is collected."""
LEAST: Final = Peer(
    "the least that a BPF program could do",
    frozenset({"connect + accept", "mmap"}),
    "everything but that a connection was asked for and came about, or memory mapped, and when",
    "bpftool",
    "bpftool",
    _least,
)
CONNECTS_ALONE: Final = Peer(
    "promissory, connects alone",
    frozenset({"connect + accept"}),
    "all but connects, execs, forks and exits: what some peers collect, with all that a record has",
    "bpftool",
    "bpftool",
    _promissory("connect", "auto"),
)
"""What some peers collect, told to collect no more."""
OURS: Final[Sequence[Peer]] = (
    Peer("promissory", None, "", "bpftool", "bpftool", _promissory("", "auto")),
    Peer(
        "promissory, all events, by the end of system calls",
        None,
        "what no system call's end tells: modules, kernel text, symbols, cgroups, names that threads give "
        "themselves, audit records, the end of BPF programs",
        "bpftool",
        "bpftool",
        _promissory("all", "sys_exit"),
    ),
    CONNECTS_ALONE,
)
PEERS: Final[Sequence[Peer]] = (
    Peer(
        "auditd",
        None,
        "environments; arguments beyond 7,500 bytes of one; the port that the kernel chose; what it drops "
        "when its backlog is full is a number, not an interval",
        "auditd",
        "auditd",
        _auditd,
        # A task that was made before audit was enabled has no context for it, and never pays; one that was
        # made after pays when all rules are gone, too.
        fresh=True,
    ),
    Peer(
        "bcc execsnoop",
        frozenset({"exec"}),
        "all but execs; more than 60 arguments or 7,680 bytes of them; environments; files, namespaces, ids "
        "of processes; loss is a count on the terminal",
        "execsnoop",
        "libbpf-tools",
        _command("execsnoop"),
        compiles=True,
    ),
    Peer(
        "bcc tcpconnect",
        frozenset({"connect + accept"}),
        "all but TCP connects; accepts; failures; who the process is beyond pid and comm",
        "tcpconnect",
        "libbpf-tools",
        _command("tcpconnect"),
        compiles=True,
    ),
    Peer(
        "bpftrace, execs",
        frozenset({"exec"}),
        "all but pid, comm and 16 arguments of an execve that may yet fail",
        "bpftrace",
        "bpftrace",
        _command("bpftrace", "-e", EXECS),
        compiles=True,
    ),
    Peer(
        "bpftrace, connects",
        frozenset({"connect + accept"}),
        "all but pid and comm of TCP connects",
        "bpftrace",
        "bpftrace",
        _command("bpftrace", "-e", CONNECTS),
        compiles=True,
    ),
)
