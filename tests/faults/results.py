"""What fault tests saw: kept as JSON, and made into docs/faults.md; nothing in that page is written by hand.

    a test's `row` (conftest.py) → .faults/ → `--write` (__main__.py) → bench/faults.json → docs/faults.md

Each result says in which form it was had: the short one, or the long one (`FAULTS=long`).
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

__all__ = ["KEPT", "LONG", "PAGE", "Figure", "Result", "fresh", "keep", "kept", "page", "times"]

HOUSE: Final = Path(__file__).resolve().parents[2]
FRESH: Final = HOUSE / ".faults"
"""A file for each test of the last runs: machines of several kernels may write at once."""
KEPT: Final = HOUSE / "bench" / "faults.json"
PAGE: Final = HOUSE / "docs" / "faults.md"
LONG: Final = os.environ.get("FAULTS") == "long"
Figure = int | float | str

TITLES: Final = {
    "1": "SIGKILL at any instant",
    "2": "The broker",
    "3": "The disk",
    "4": "Ring overflow",
    "5": "Processors, clocks, storms of processes",
    "6": "Two at once, and upgrades under load",
    "7": "Chunks that no program wrote",
    "8": "Each part for itself",
}
HEAD: Final = """# Faults

Every way of losing events that could be made, and what was seen. Made by `make fault-test` (minutes) and
`make fault-test-long` (hours), which run `tests/faults`; never written by hand.
"""


def times(short: int, long: int) -> int:
    """How often, in the form that is run."""
    return long if LONG else short


@dataclass
class Result:
    """One test's row: what was done, what was seen, and where."""

    row: str
    """Its number in the issue, and a word or two."""
    did: str
    test: str
    figures: dict[str, Figure] = field(default_factory=dict)
    passed: bool = False
    form: str = "long" if LONG else "short"
    kernel: str = field(default_factory=platform.release)
    commit: str = field(default_factory=lambda: _commit())
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())

    def write(self) -> None:
        """Leave it for `--write`."""
        FRESH.mkdir(exist_ok=True)
        name = re.sub(r"[^\w.]+", "-", f"{self.test}-{self.form}-{self.kernel}")
        (FRESH / f"{name}.json").write_text(json.dumps(asdict(self)))


def fresh() -> list[Result]:
    """What the last runs left."""
    return [Result(**json.loads(path.read_text())) for path in FRESH.glob("*.json")]


def kept() -> list[Result]:
    """What the page tells."""
    return [Result(**values) for values in json.loads(KEPT.read_text())] if KEPT.exists() else []


def keep(new: Iterable[Result]) -> None:
    """Take new results in place of all that were had in the same form on the same kernel."""
    new = list(new)
    again = {(result.form, result.kernel) for result in new}
    results = [result for result in kept() if (result.form, result.kernel) not in again] + new
    results.sort(key=lambda r: (r.row, r.test, r.kernel, r.form))
    KEPT.write_text(json.dumps([asdict(result) for result in results], indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(page(results))


def page(results: Iterable[Result]) -> str:
    """docs/faults.md."""
    results = list(results)
    parts = [HEAD]
    for number, title in TITLES.items():
        lines = [_line(result) for result in results if result.row.split()[0] == number]
        if lines:
            head = ["| done | seen | form | kernel | commit, date |", "| --- | --- | --- | --- | --- |"]
            parts.append("\n".join([f"## {number}. {title}\n", *head, *lines, ""]))
    return "\n".join(parts)


def _line(result: Result) -> str:
    seen = ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in result.figures.items())
    outcome = seen if result.passed else f"**FAILED** {seen}".strip()
    cells = (result.did, outcome, result.form, result.kernel, f"{result.commit}, {result.date}")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _plain(value: Figure) -> str:
    return value if isinstance(value, str) else f"**{value:,}**"


def _commit() -> str:
    """What was tested; a + says that something was changed since."""
    command = ["git", "-c", "safe.directory=*", "describe", "--always", "--exclude=*", "--dirty=+"]
    done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no git"
