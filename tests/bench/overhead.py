"""F9: what storms pay, beside other collectors

Storms of exec, fork, connections (connect and accept over loopback), executable mappings, and open (a call
without an event) on one CPU, by turns without anything and with one collector in force: three short blocks
with it, of which the median counts, are compared with three without it, just before or just after. One
process per storm does all blocks of a collector (auditd's: one each, for who is older than its rules never
pays). Medians of the pairs, in per cent of the time without, and the interval that holds the true median with
95 %. The first line of the table is the method measured by itself: pairs in which nothing is collected; the
second what any collector by BPF pays there: a program that counts, and writes empty chunks that nobody reads.
promissory runs with its default events, its pipeline on the other CPU, and begins anew in each pair: a run
holds perf buffers, for which others pay. auditd has rules for the same system calls. The dearest fallback has
its own line: it taxes every call, and is never on by default. Some peers collect connects alone, and so does
promissory in a line of its own, told to. In an emulated machine time is the number of instructions that were
executed, 4 ns for each: intervals are narrow there, and caches play no part. Whoever takes what a collector
collects stands still during its blocks, or what he executes would count too, and takes it between them; and a
static program is run, for its files are this host's.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final, Literal

from tests.bench.collectors import CONNECTS_ALONE, LEAST, NOTHING, OURS, PEERS, CannotError, Peer, promissory
from tests.bench.loads import Block, Load, Loads
from tests.bench.pairs import Pairs
from tests.bench.programs import Spent
from tests.bench.result import Figure, Part, Table, figure, tried
from tests.bench.slowdown import ENVIRONMENT, STORM_CPU
from tests.live.run import SLOWER

__all__ = ["measure"]

PAIRS: Final = (24, 0.03) if SLOWER == 1 else (3, 0.07)
"""How many, and the seconds of a block: short ones, so that what else the machine does stands in both."""
COMPILING: Final = (8 if SLOWER == 1 else 2, 0.07)
"""Of a peer that compiles anew each time that it is put in force, which takes a machine a minute."""
BLOCKS: Final = 3
"""In each half of a pair; their median counts."""
FIRST: Final = 100
"""Cycles that tell how long one takes."""
REST: Final = 0.1 if SLOWER == 1 else 0.2 * SLOWER
"""Seconds before each storm, in both halves of a pair: for a collector to be done with what it got."""
GOAL: Final[tuple[Literal["<="], float]] = ("<=", 2)
"""Per cent, …"""
EXEMPT: Final = ("exec", "fork")
"""… but for these, whose goal is F5's."""
SAMPLE: Final = 1000
"""Cycles under the kernel's statistics."""
TRIED: Final = """
The table of programs says what takes it, and "the least" what there is to win. Where mappings come from
perf's side-band (no program to trace them is allowed) the kernel writes the path of every one: what that
takes by itself, with nobody who reads, stands below under "Perf". Done before this run: perf's bells
switched off while their reader is awake for long (mmap +23 → +18 %); one program at a socket's change of
state, not three (connect + accept 12.5 → 9 %), sockets read by plain loads or at once, and no look for a
connection under way where there is none (inside 6.12, instructions counted: +10.1 → +6.9 %); namespace off
unless asked for where it comes from perf (fork −25 %).
"""

ALL: Final = (NOTHING, LEAST, *OURS, *PEERS)
Storm = Callable[[], float]
"""ns of one cycle, by a few blocks."""
Result = Mapping[str, Pairs]
"""By storm: without the collector, and with it."""


def measure() -> Part:
    """Every collector that is here; what is missing is said."""
    with Loads() as loads:
        program = "/bin/true" if SLOWER == 1 else loads.nothing
        storms = {
            "exec": loads.load("fork", program, cpu=STORM_CPU, environ=ENVIRONMENT),
            "fork": loads.load("fork", cpu=STORM_CPU),
            "connect + accept": loads.load("connection", cpu=STORM_CPU),
            "mmap": loads.load("map", cpu=STORM_CPU),
            "open": loads.load("file", cpu=STORM_CPU),
        }
        found: dict[str, Result] = {}
        absent = []
        for peer in ALL:
            print(f"… {peer.name}", file=sys.stderr, flush=True)
            try:
                found[peer.name] = _measure(peer, storms, *(COMPILING if peer.compiles else PAIRS))
            except CannotError as error:
                absent.append(f"{peer.name} was not measured: {error}")
        programs = _programs(storms)
    here = [peer for peer in ALL if peer.name in found]
    figures = _figures(found)
    rows = [
        (peer.name, *(_said(found[peer.name].get(storm)) for storm in storms), peer.lacks) for peer in here
    ]
    title = f"Per cent more than nothing (Linux {platform.release()}, {os.cpu_count()} CPUs):"
    table = Table(title, ("collector", *storms, "what it does not collect"), rows)
    return Part(__doc__ or "", figures, [table, programs], [*absent, *tried(figures, TRIED)])


def _measure(peer: Peer, loads: Mapping[str, Load], pairs: int, seconds: float) -> Result:
    if not shutil.which(peer.needs):
        raise CannotError(f"`{peer.needs}` is not installed (apt-get install {peer.package})")
    mine = {name: load for name, load in loads.items() if peer.storms is None or name in peer.storms}
    found = {name: Pairs([], []) for name in mine}
    with ExitStack() as stack, peer.ready() as on:
        storms = {
            name: _storm(load.run if peer.fresh else stack.enter_context(load.stay()), seconds)
            for name, load in mine.items()
        }
        for number in range(pairs):
            if number % 2 == 0:
                _without(storms, found)
            with on() as taker:
                _under(taker, storms, found)
            if number % 2:
                _without(storms, found)
    return found


def _storm(block: Block, seconds: float) -> Storm:
    times = max(1, int(seconds * 1e9 / block(FIRST)))
    return lambda: statistics.median(block(times) for _ in range(BLOCKS))


def _without(storms: Mapping[str, Storm], found: Result) -> None:
    for name, storm in storms.items():
        time.sleep(REST)
        found[name].off.append(storm())


def _under(taker: int, storms: Mapping[str, Storm], found: Result) -> None:
    for name, storm in storms.items():
        time.sleep(REST)
        with _aside(taker):
            found[name].on.append(storm())


@contextmanager
def _aside(taker: int) -> Iterator[None]:
    """Where all is emulated, whoever takes what is collected stands still meanwhile: the clock counts all
    processors' instructions.
    """
    if SLOWER == 1:
        yield
        return
    os.kill(taker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(taker, signal.SIGCONT)


def _programs(storms: Mapping[str, Load]) -> Table:
    with promissory() as (switch, taker), _aside(taker):
        spent = {name: switch.programs.spent(partial(storm.run, SAMPLE)) for name, storm in storms.items()}
    rows = [
        (program.removeprefix("entry_"), *(_cost(spent[storm][program]) for storm in storms))
        for program in spent[next(iter(storms))]
    ]
    title = (
        "What each program of promissory's takes: ns of a run × runs in a cycle, by the kernel's own "
        "statistics (some 50 ns of each run are their own):"
    )
    return Table(title, ("program", *storms), rows)


def _cost(spent: Spent) -> str:
    return f"{spent.ns / spent.runs:,.0f} × {spent.runs / SAMPLE:.3g}" if spent.runs else ""


def _figures(found: Mapping[str, Result]) -> list[Figure]:
    """promissory's own lines: beside each goal, the peer that does best."""
    figures = []
    for storm, pairs in found[OURS[0].name].items():
        more, low, high = pairs.percent
        what = f"{storm} (a cycle: {pairs.base / 1000:.1f} µs; {low:.1f} to {high:.1f} %)"
        bound = None if storm in EXEMPT else GOAL
        figures.append(figure("F9", what, more, "%", goal=bound))
        for ours in (OURS[0], CONNECTS_ALONE):
            figures += _beside(found, storm, ours)
    return figures


def _beside(found: Mapping[str, Result], storm: str, ours: Peer) -> list[Figure]:
    others = [(found[p.name][storm].percent[0], p.name) for p in PEERS if storm in found.get(p.name, ())]
    if not others or storm not in found.get(ours.name, ()):
        return []
    best, name = min(others)
    more = found[ours.name][storm].percent[0]
    return [figure("F9", f"{storm}: {ours.name}, less {name}", more - best, "% of a cycle", goal=("<=", 0))]


def _said(result: Pairs | None) -> str:
    if result is None:
        return "sees none"
    more, low, high = result.percent
    return f"{more:+.1f} ({low:.1f} to {high:.1f})"
