"""What a figure's module hands back, and how all of it is written: bench/*.json and docs/benchmarks*.md."""

from __future__ import annotations

import json
import operator
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal

__all__ = ["Figure", "Part", "Table", "figure", "machine", "tried", "write"]

ROOT: Final = Path(__file__).resolve().parents[2]
Relation = Literal["<=", ">=", "=="]
RELATIONS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
}


@dataclass(frozen=True)
class Figure:
    """One measured number beside its anchor."""

    figure: str
    what: str
    value: float
    unit: str
    anchor: str | None = None
    anchor_value: float | None = None
    ratio: float | None = None
    goal: str | None = None
    met: bool | None = None
    """None: no goal is set for it."""


def figure(
    name: str,
    what: str,
    value: float,
    unit: str,
    *,
    anchor: tuple[str, float] | None = None,
    ratio: float | None = None,
    goal: tuple[Relation, float] | None = None,
    of: Literal["value", "ratio"] = "value",
) -> Figure:
    """Judge a number. `goal` bounds the value, or the ratio to the anchor (value / anchor unless given)."""
    if anchor and ratio is None:
        ratio = value / anchor[1]
    met = None
    if goal:
        relation, bound = goal
        judged = ratio if of == "ratio" else value
        assert judged is not None
        met = RELATIONS[relation](judged, bound)
    return Figure(
        name,
        what,
        _round(value),
        unit,
        anchor[0] if anchor else None,
        _round(anchor[1]) if anchor else None,
        _round(ratio) if ratio is not None else None,
        f"{of if of == 'ratio' else unit} {goal[0]} {goal[1]:g}" if goal else None,
        met,
    )


def _round(value: float) -> float:
    """Four digits: more would be noise."""
    return float(f"{value:.4g}")


@dataclass(frozen=True)
class Table:
    """Numbers that explain figures."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]

    def lines(self) -> list[str]:
        """As Markdown."""
        cells = [list(self.header), ["---"] * len(self.header), *(map(_cell, row) for row in self.rows)]
        return ["", self.title, "", *(f"| {' | '.join(row)} |" for row in cells)]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)


@dataclass(frozen=True)
class Part:
    """What one module measured."""

    how: str
    """Its docstring: how it is measured."""
    figures: Sequence[Figure]
    tables: Sequence[Table] = field(default_factory=tuple)
    remarks: Sequence[str] = field(default_factory=tuple)


def tried(figures: Sequence[Figure], what: str) -> list[str]:
    """The remark on a missed goal: what was tried, each measured before and after in one run."""
    return [f"Goal missed. {' '.join(what.split())}"] if any(f.met is False for f in figures) else []


def machine() -> str:
    """This machine in one line."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in info.splitlines() if "model name" in line), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} CPUs ({model}), {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, load when it began {load:.1f}"
    )


def write(parts: Sequence[Part], where: str, took: float, name: str = "benchmarks") -> list[Path]:
    """Write both files: figures for programs, and a page for people."""
    figures = [figure for part in parts for figure in part.figures]
    folder = ROOT / "bench"
    folder.mkdir(exist_ok=True)
    plain = json.dumps([asdict(figure) for figure in figures], indent=1, ensure_ascii=False)
    results = folder / ("results.json" if name == "benchmarks" else f"{name}.json")
    page = ROOT / "docs" / f"{name}.md"
    results.write_text(plain + "\n")
    page.write_text(_document(parts, where, took, name))
    return [results, page]


ABOUT: Final[Mapping[str, str]] = {
    "benchmarks": "Written by `make bench` (`make bench-long` lets the memory figure run ten minutes).",
    "benchmarks-vm": "Written by `make vm-bench`: one of Debian's kernels under QEMU's software emulation,\n"
    "whose clock counts instructions, 4 ns for each ([testing.md](testing.md#the-matrix)): only ratios\n"
    "mean anything.",
}


def _document(parts: Sequence[Part], where: str, took: float, name: str) -> str:
    missed = [f for part in parts for f in part.figures if f.met is False]
    lines = [
        "# Benchmarks",
        "",
        ABOUT[name],
        "Machines are noisy: where a figure stands beside an anchor, both are from the same run, and the",
        "ratio counts.",
        "",
        f"Machine: {where}. The run took {took:.0f} s.",
        "",
        f"Missed goals: {'; '.join(f'{f.figure} {f.what}' for f in missed) or 'none'}.",
    ]
    for part in parts:
        title, _, text = part.how.strip().partition("\n")
        lines += ["", f"## {title}", *([text] if text else [])]
        lines += Table("", HEADER, [_row(figure) for figure in part.figures]).lines()[2:]
        for table in part.tables:
            lines += table.lines()
        lines += [line for remark in part.remarks for line in ("", remark)]
    return "\n".join(lines) + "\n"


HEADER: Final = ("", "what", "value", "anchor", "ratio", "goal", "met")


def _row(f: Figure) -> list[object]:
    anchor = f"{f.anchor}: {_cell(f.anchor_value)} {f.unit}" if f.anchor else None
    met = {True: "yes", False: "**no**", None: None}[f.met]
    return [f.figure, f.what, f"{_cell(f.value)} {f.unit}", anchor, f.ratio, f.goal, met]
