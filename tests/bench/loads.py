"""Programs that put a load on the kernel, compiled for the run."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Loads"]

HERE = Path(__file__).parent


class Loads:
    """`with Loads() as loads:` compiles load.c and nothing.c into a folder that goes at the end."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="promissory-bench-")
        self.nothing = str(Path(self._folder.name) / "nothing")
        """A static program that only ends."""
        self._load = str(Path(self._folder.name) / "load")

    def __enter__(self) -> Self:
        build = ["gcc", "-O2", "-Wall", "-Werror", "-static"]
        subprocess.run([*build, str(HERE / "load.c"), "-o", self._load], check=True)
        bare = ["-nostdlib", "-ffreestanding", "-no-pie", "-fno-pie"]
        subprocess.run([*build, *bare, str(HERE / "nothing.c"), "-o", self.nothing], check=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def start(
        self, name: str, times: int, *program: str, cpu: int = 0, environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Begin a load on one CPU."""
        return subprocess.Popen(
            ["taskset", "-c", str(cpu), self._load, name, str(times), *program],
            env=dict(environ or {}),
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, name: str, times: int, *program: str, cpu: int = 0, environ: Mapping[str, str] | None = None
    ) -> float:
        """Do it so many times on one CPU; ns of one."""
        load = self.start(name, times, *program, cpu=cpu, environ=environ)
        said, _ = load.communicate()
        assert not load.returncode, f"load {name} ended with {os.waitstatus_to_exitcode(load.returncode)}"
        return float(said)
