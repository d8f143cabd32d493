"""The programs that a machine's loader will ask for, compiled here: LLVM takes fifteen times as long inside.

Which these are, the loader itself says, over that kernel's BTF in place of this one's; nothing is loaded.
What it asks for besides, because the kernel refused something, is compiled inside.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from pipeline.configure import load
from pipeline.kernel import btf, chooser, compiler
from pipeline.kernel.compiler import Compiled
from pipeline.kernel.manifest import Hook
from pipeline.kernel.source import Choice
from tests.vm.kernels import MATRIX
from tests.vm.machine import CPUS

__all__ = ["main"]

ALL: Final = {"events": "all"}
PIDS: Final = 32_768
"""The kernel's own pid_max, which nobody raises inside."""


class Attempt:
    """As the loader's, but only compiled: all of it works."""

    def __init__(self, config: Any, cpus: Collection[int], entries: int, choice: Choice) -> None:
        Compiled(
            rings=CPUS,
            processes=PIDS,
            arguments=config.caps.argv + config.caps.environment,
            log=config.state / "log",
            choice=choice,
        )
        self.choice = choice

    def tap(self, *_: object) -> list[Hook]:
        """Every surface of the choice."""
        return [Hook(kind, surface.name, {}, True, "") for kind, surface in self.choice.items()]

    def drop(self, *_: object) -> None:
        """Nothing is attached."""

    def close(self) -> None:
        """Nothing is open."""


def main(name: str, marker: str) -> None:
    """Compile for a kernel of the matrix what tests with a marker, or the benchmark, will want."""
    types = btf.Btf(MATRIX[name].types.read_bytes())
    replaced: Any = chooser, btf, compiler
    replaced[0].Attempt = Attempt
    replaced[1].running = lambda: types
    replaced[2]._load = lambda *_: os.open(os.devnull, os.O_RDONLY)  # nothing is refused, …
    replaced[2]._are_called = lambda _: marker != "lsm"
    with tempfile.TemporaryDirectory() as folder:
        state = {"state": Path(folder), "pins": Path(folder) / "pins"}
        for asked in _asked(marker):
            found = chooser.Chooser(load({**state, **asked}, environ={}))
            hooks = found.try_all()[1]
            if asked == ALL and marker == "vm":
                found.matrix(hooks)


def _asked(marker: str) -> list[dict[str, str]]:
    """What tests with a marker attach, or the benchmark."""
    if marker == "preempt":
        from tests.faults import test_machine
        from tests.live import test_budget, test_preempt

        return [{"events": each.EVENTS} for each in (test_preempt, test_machine)] + [
            {"events": test_budget.FLOODED}
        ]
    if marker == "bench":
        return [{}, {"events": "all", "surface": "sys_exit"}, {"events": "connect"}]
    from tests.live import test_audit

    return [ALL, *([test_audit.KEPT] if marker == "vm" else [])]


if __name__ == "__main__":
    main(*sys.argv[1:])
