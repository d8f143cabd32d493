"""What bpf/budget.h tells apart: storms of programs, each in a group of its own, while nobody reads."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

from pipeline.configure import load
from pipeline.kernel import bpf
from pipeline.kernel.layout import cgroup_known, settings
from pipeline.kernel.manifest import Manifest
from pipeline.kernel.pins import generation
from tests.live.run import PATIENCE, Live, Record

__all__ = ["CPUS", "EVENTS", "FORKS", "KINDS", "PROGRAMS", "UIDS", "Beside", "Storm"]

KINDS: Final = ("cgroup",) if cgroup_known() else ("session", "user")
"""What groups are told apart by, here."""
UIDS: Final = range(61_236, 61_300)
"""Nobody else's: with the kernel's filter by uid, all that is not filtered was made here."""
EVENTS: Final = ("exec", "fork", "exit")
CPUS: Final = os.cpu_count() or 1
PROGRAMS: Final = '"$0" storm {cpu} {each} marked &'
"""Processes that each execute a program."""
FORKS: Final = "(i=0; while [ $i -lt {each} ]; do (:); i=$((i + 1)); done; echo {each}) &"
"""Processes that only end."""
CGROUPS: Final = Path("/sys/fs/cgroup")


@dataclass
class Storm:
    """Programs on each CPU at once, and the shell that began them, which then becomes one that stays."""

    shell: subprocess.Popen[bytes]
    each: int
    gid: int
    """Of all its processes, and of no others."""
    cgroup: Path | None

    def executed(self) -> int:
        """How many programs that was, when all is done, the shell's two among them."""
        assert self.shell.stdout
        for _ in range(CPUS):
            assert int(self.shell.stdout.readline()) == self.each
        return 2 + CPUS * (1 + self.each)

    def end(self) -> None:
        """End the one that stays."""
        self.shell.communicate(timeout=PATIENCE)
        assert self.shell.returncode == 0
        if self.cgroup:
            self.cgroup.rmdir()


class Beside:
    """A run, and groups of a kind that do something beside each other."""

    def __init__(self, live: Live, acts: bytes, kind: str) -> None:
        self.live, self._acts, self._kind = live, acts, kind
        self._numbers = count()

    def storm(self, each: int, environment: Collection[str] = (), line: str = PROGRAMS) -> Storm:
        """So many programs on each CPU, in a group where nothing was done before; or another `line` of shell,
        which has to say `each` at its end.
        """
        number = next(self._numbers)
        cgroup = None
        if self._kind == "cgroup":
            cgroup = CGROUPS / f"promissory-test-{os.getpid()}-{number}"
            cgroup.mkdir()
        lines = [line.format(cpu=cpu, each=each) for cpu in range(CPUS)]
        shell = subprocess.Popen(
            ["/bin/sh", "-c", "\n".join((*lines, "wait", 'exec "$0" stay')), self._acts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict.fromkeys(environment, "v" * 36),
            preexec_fn=partial(self._enter, UIDS[number], cgroup),
        )
        return Storm(shell, each, UIDS[number], cgroup)

    def _enter(self, number: int, cgroup: Path | None) -> None:
        if cgroup:
            (cgroup / "cgroup.procs").write_text("0")
        if self._kind == "session":
            Path("/proc/self/loginuid").write_text(str(UIDS[0]))
        os.setgroups([])
        os.setgid(number)
        os.setuid(number if self._kind == "user" else UIDS[0])

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
        flags = {"budget": {"reserve": reserve, "share": share}, "kernel": {"uids": tuple(UIDS)}}
        manifest = Manifest.read(self.live.state)
        assert manifest
        folder = generation(self.live.pins, manifest.generation)
        pin = bpf.get(folder / "map_settings")
        bpf.update(pin, bytes(4), settings(load(flags, environ={}), self.live.kinds))
        os.close(pin)
        self.live.books()["ask"] = 0

    def came(self, storm: Storm) -> list[Record]:
        """The execs of a storm's programs that are in the log, also those that came without arguments."""
        shell = storm.shell.pid
        execs = (r for r in self.live.log.read() if r["kind"] == "exec" and r["process"]["gid"] == storm.gid)
        return [r for r in execs if shell not in (r["process"]["pid"], r["process"]["parent"]["pid"])]
