"""What bpf/budget.h tells apart: a process that enters a group of its own, with all its children."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from pipeline.kernel.layout import cgroup_known

__all__ = ["KINDS", "UIDS", "Group"]

KINDS = ("cgroup",) if cgroup_known() else ("session", "user")
"""What groups are told apart by, here."""
UIDS = tuple(range(61_236, 61_246))
"""Nobody else's: with the kernel's filter by uid, all that is not filtered was made here."""
CGROUPS = Path("/sys/fs/cgroup")
NUMBERS = count()


@dataclass(frozen=True)
class Group:
    """One of a kind, by its number."""

    kind: str
    number: int

    @property
    def uid(self) -> int:
        """Whom its processes run as."""
        return UIDS[self.number if self.kind == "user" else 0]

    def start(self, *command: bytes | str, environ: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Run a command inside. It may be run by a shell that starts others: they are all in it."""
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(pair.split("=", 1) for pair in environ),
            preexec_fn=self._enter(),
        )

    def _enter(self) -> Callable[[], None]:
        folder = CGROUPS / f"promissory-test-{os.getpid()}-{self.number}"
        if self.kind == "cgroup":
            folder.mkdir(exist_ok=True)

        def enter() -> None:
            if self.kind == "cgroup":
                (folder / "cgroup.procs").write_text("0")
            elif self.kind == "session":
                Path("/proc/self/loginuid").write_text(str(self.uid))
            os.setgroups([])
            os.setgid(self.uid)
            os.setuid(self.uid)

        return enter
