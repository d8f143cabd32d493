"""What programs take, by the kernel's own statistics."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["Programs", "Spent"]

STATISTICS: Final = Path("/proc/sys/kernel/bpf_stats_enabled")


@dataclass(frozen=True)
class Spent:
    """What one program took. Some 50 ns of each run are the statistics' own."""

    ns: int = 0
    runs: int = 0


class Programs:
    """Programs that are pinned, by the names of their pins."""

    def __init__(self, pins: Iterable[Path]) -> None:
        self._names = {_bpftool("show", "pinned", str(pin))["id"]: pin.name for pin in pins}

    def spent(self, load: Callable[[], object]) -> dict[str, Spent]:
        """Program → what it took while the load ran."""
        with _counted():
            before = self._spent()
            load()
            after = self._spent()
        return {
            name: Spent(after[name].ns - before[name].ns, after[name].runs - before[name].runs)
            for name in before
        }

    def _spent(self) -> Mapping[str, Spent]:
        return {
            self._names[program["id"]]: Spent(program.get("run_time_ns", 0), program.get("run_cnt", 0))
            for program in _bpftool("list")
            if program["id"] in self._names
        }


@contextmanager
def _counted() -> Iterator[None]:
    before = STATISTICS.read_text()
    STATISTICS.write_text("1")
    try:
        yield
    finally:
        STATISTICS.write_text(before)


def _bpftool(*arguments: str) -> Any:
    done = subprocess.run(["bpftool", "-j", "prog", *arguments], capture_output=True, check=True)
    return json.loads(done.stdout)
