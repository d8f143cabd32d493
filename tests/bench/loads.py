"""Programs that put a load on the kernel, compiled for the run."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Block", "Load", "Loads"]

HERE = Path(__file__).parent

Block = Callable[[int], float]
"""How often → ns of one."""


@dataclass(frozen=True)
class Load:
    """One load, on one CPU."""

    command: Sequence[str]
    environ: Mapping[str, str]

    def __str__(self) -> str:
        return " ".join(self.command)

    def start(self, times: int) -> subprocess.Popen[str]:
        """Begin to do it so many times, in a process of its own."""
        reading, writing = os.pipe()  # not Popen's: nobody else has to close it for the load to end
        os.write(writing, f"{times}\n".encode())
        os.close(writing)
        try:
            return self._begin(reading)
        finally:
            os.close(reading)

    def run(self, times: int) -> float:
        """Do it so many times in a process of its own; ns of one."""
        load = self.start(times)
        said, _ = load.communicate()
        self._check(load)
        return float(said)

    @contextmanager
    def stay(self) -> Iterator[Block]:
        """The same by one process for all blocks. Each new one has its own addresses, colours of pages, and
        places in hash tables: several per cent of a cycle, for the whole of a block.
        """
        with self._begin(subprocess.PIPE) as load:

            def block(times: int) -> float:
                assert load.stdin
                assert load.stdout
                print(times, file=load.stdin, flush=True)
                said = load.stdout.readline()
                assert said, f"{self} ended early"
                return float(said)

            yield block
        self._check(load)

    def _begin(self, stdin: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command, env=dict(self.environ), stdin=stdin, stdout=subprocess.PIPE, text=True
        )

    def _check(self, load: subprocess.Popen[str]) -> None:
        assert not load.returncode, f"{self} ended with {os.waitstatus_to_exitcode(load.returncode)}"


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

    def load(self, name: str, *program: str, cpu: int = 0, environ: Mapping[str, str] | None = None) -> Load:
        """One of those in load.c."""
        return Load(["taskset", "-c", str(cpu), self._load, name, *program], environ or {})
