"""`make bench`: every figure, one after another; results go to bench/results.json and docs/benchmarks.md.

`python -m tests.bench [--long] [NAME…]`: names of modules here (drain, produce, …) measure only these,
and write nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from tests.bench import (
    drain,
    idle,
    latency,
    memory,
    outbox,
    overhead,
    perf,
    produce,
    slowdown,
    spread,
    sustain,
)
from tests.bench.result import Figure, Part, machine, write

MODULES = {
    "drain": drain.measure,
    "sustain": sustain.measure,
    "produce": produce.measure,
    "outbox": outbox.measure,
    "idle": idle.measure,
    "slowdown": slowdown.measure,
    "overhead": overhead.measure,
    "latency": latency.measure,
    "memory": memory.measure,
    "spread": spread.measure,
    "perf": perf.measure,
}
BPFFS: Final = Path("/sys/fs/bpf")


def main() -> int:
    """Measure and write; the exit status says whether everything could be measured."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measure promissory on this machine.")
    parser.add_argument("--long", action="store_true", help="let the memory figure run for ten minutes")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only some of: {', '.join(MODULES)}")
    parser.add_argument(
        "--report", default="", help="write what was measured under this name, also if it is not all"
    )
    options = parser.parse_args()
    if unknown := set(options.names) - set(MODULES):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}")
    if strays := sorted(BPFFS.glob("promissory*")):
        parser.error(
            f"other probes are attached and would be measured too: {', '.join(map(str, strays))}; "
            "promissory detach, or, where a test left them, remove that folder"
        )
    where, begin = machine(), time.monotonic()
    print(where)
    chosen: dict[str, Callable[[], Part]] = {**MODULES, "memory": partial(memory.measure, options.long)}
    parts = [_part(name, chosen[name]) for name in options.names or MODULES]
    measured = [part for part in parts if part]
    report = options.report or ("" if options.names else "benchmarks")
    if report and len(measured) == len(parts):
        print("written:", *write(measured, where, time.monotonic() - begin, report))
    return int(len(measured) < len(parts))


def _part(name: str, measure: Callable[[], Part]) -> Part | None:
    begin = time.monotonic()
    try:
        part = measure()
    except Exception:  # the other figures can still be had
        traceback.print_exc()
        print(f"{name}: could not be measured", file=sys.stderr)
        return None
    print(f"\n{part.how.strip().partition(chr(10))[0]} ({time.monotonic() - begin:.0f} s)")
    for figure in part.figures:
        print(_line(figure))
    for table in part.tables:
        print(*table.lines()[1:], sep="\n")
    print(*part.remarks, sep="\n", end="\n" if part.remarks else "", flush=True)
    return part


def _line(f: Figure) -> str:
    anchor = f"; {f.anchor}: {f.anchor_value:g}, ratio {f.ratio:g}" if f.anchor else ""
    goal = f"; goal {f.goal}: {'met' if f.met else 'MISSED'}" if f.goal else ""
    return f"  {f.figure}  {f.what}: {f.value:g} {f.unit}{anchor}{goal}"


if __name__ == "__main__":
    sys.exit(main())
