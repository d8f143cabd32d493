"""F5: what audited processes pay

Probes attached by `promissory attach`, a `promissory run` on the other CPU that takes their events. A
storm on one CPU, from one process that stays, runs in short blocks, by turns with the programs attached and
detached (the pinned programs' links are opened and closed; all else stays as it is); each pair of blocks
gives one difference, and the median of all pairs counts, with the interval that holds the true median with
95 %.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from pipeline.kernel import bpf, pins
from pipeline.kernel.attempt import LOG
from pipeline.kernel.compiler import attach
from pipeline.kernel.generation import Place, name_of, place_of
from pipeline.kernel.manifest import Manifest
from pipeline.schema import by_name
from tests.bench.idle import DEFAULT, live
from tests.bench.loads import Load, Loads
from tests.bench.pairs import Pairs
from tests.bench.programs import Programs, Spent
from tests.bench.result import Figure, Part, Table, figure, tried
from tests.live.run import Live

__all__ = ["ENVIRONMENT", "STORM_CPU", "Switch", "beside", "measure"]

STORM_CPU: Final = 0
PIPELINE_CPU: Final = 1
PAIRS: Final = 150
BLOCK: Final = 0.05
"""Seconds: what else the machine does lasts longer, and then stands in both halves of a pair."""
ENVIRONMENT: Final = {f"VARIABLE_{n:02}": "v" * 36 for n in range(61)}
"""3 KB."""
TRIED: Final = """
The table says which program takes it. Done before this run, each measured by the same statistics: plain
loads for probe reads wherever the verifier knows the pointer (fork −35 %, exit −50 %, exec −30 %), paths
walked by plain loads without a tail call.
"""
FIRST: Final = 200
"""Cycles that tell how long one takes."""
SAMPLE: Final = 2000
"""Cycles under the kernel's statistics."""


class Switch:
    """Programs that the loader pinned, attached and detached at will."""

    def __init__(self, run: Live) -> None:
        manifest = Manifest.read(run.state)
        assert manifest, "nothing is attached"
        for path in run.pins.glob("link_*"):
            path.unlink()
        self._folder, self._log = run.pins, run.state / LOG
        self._programs = {place: bpf.get(run.pins / f"entry_{name_of(place)}") for place in _taps(manifest)}
        self.programs = Programs(sorted(run.pins.glob("entry_*")))

    @contextmanager
    def on(self) -> Iterator[None]:
        """Attached while inside, and pinned: a `run` that begins there finds all as it was."""
        links = {
            f"link_{name_of(place)}": attach(place[1], fd, self._log) for place, fd in self._programs.items()
        }
        pins.put(self._folder, links)
        try:
            yield
        finally:
            for name, link in links.items():
                (self._folder / name).unlink()
                os.close(link)


def _taps(manifest: Manifest) -> dict[Place, None]:
    """Every hook that has a link of its own."""
    places: dict[Place, None] = {}
    for hook in manifest.hooks:
        surface = by_name()[hook.event].surface(hook.surface) if hook.works else None
        if surface:
            places |= dict.fromkeys(place_of(hook.event, name) for name in (*surface.hooks, *surface.before))
    return places


def measure(pairs: int = PAIRS) -> Part:
    """All storms."""
    with Loads() as loads:
        dynamic = loads.load("fork", "/bin/true", cpu=STORM_CPU, environ=ENVIRONMENT)
        static = loads.load("vfork", loads.nothing, cpu=STORM_CPU)
        figures, table = _default(dynamic, static, pairs)
        calls = {
            "getppid": loads.load("call", cpu=STORM_CPU),
            "open + close": loads.load("file", cpu=STORM_CPU),
        }
        figures += _failing(calls, pairs)
    return Part(__doc__ or "", figures, [table], tried(figures, TRIED))


def _default(dynamic: Load, static: Load, pairs: int) -> tuple[list[Figure], Table]:
    with _attached(DEFAULT) as switch:
        figures = []
        found = _pairs(switch, dynamic, pairs)
        more, low, high = found.percent
        cycle = f"a cycle: {found.base / 1000:.0f} µs; {low:.1f} to {high:.1f} %"
        what = f"fork + exec + exit of a dynamic program, 3 KB environment ({cycle})"
        figures.append(figure("F5", what, more, "%", goal=("<=", 2)))
        found = _pairs(switch, static, pairs)
        low, high = (edge / 1000 for edge in found.within)
        what = f"vfork + exec + exit of a minimal static program ({low:.1f} to {high:.1f} µs)"
        base = ("a cycle", found.base / 1000)
        figures.append(figure("F5", what, found.more / 1000, "µs per cycle", anchor=base, goal=("<=", 5)))
        with switch.on():
            spent = [switch.programs.spent(partial(load.run, SAMPLE)) for load in (dynamic, static)]
    dynamics, statics = spent
    rows = [(program, *_per_cycle(dynamics[program]), *_per_cycle(statics[program])) for program in dynamics]
    together = ("together", sum(row[1] for row in rows), "", sum(row[3] for row in rows), "")
    header = ("program", "dynamic, ns per cycle", "runs", "static, ns per cycle", "runs")
    return figures, Table(
        "The kernel's own BPF statistics (some 50 ns of each run are their own):", header, [*rows, together]
    )


def _failing(calls: Mapping[str, Load], pairs: int) -> list[Figure]:
    """exec_failed taxes every system call."""
    figures = []
    with _attached(f"{DEFAULT},exec_failed") as switch:
        for name, load in calls.items():
            found = _pairs(switch, load, pairs)
            low, high = found.within
            what = f"with exec_failed: {name} ({low:.0f} to {high:.0f} ns)"
            figures.append(figure("F5", what, found.more, "ns", anchor=(name, found.base)))
    return figures


@contextmanager
def _attached(events: str) -> Iterator[Switch]:
    with live() as run:
        done = run.command("attach", "--state", str(run.state), "--events", events)
        assert not done.returncode, done.stderr
        run.start(events=events)
        beside(run)
        yield Switch(run)
        run.stop()


def beside(run: Live) -> None:
    """Keep a pipeline off the storms' CPU."""
    assert run.process
    for task in Path(f"/proc/{run.process.pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {PIPELINE_CPU} & os.sched_getaffinity(0))


def _pairs(switch: Switch, load: Load, pairs: int) -> Pairs:
    """On and off by turns, each first as often as the other."""
    found = Pairs([], [])
    with load.stay() as block:
        times = max(1, int(BLOCK * 1e9 / block(FIRST)))
        for number in range(pairs):
            for on in (number % 2 == 0, number % 2 == 1):
                if on:
                    with switch.on():
                        found.on.append(block(times))
                else:
                    found.off.append(block(times))
    return found


def _per_cycle(spent: Spent) -> tuple[float, float]:
    return spent.ns / SAMPLE, spent.runs / SAMPLE
