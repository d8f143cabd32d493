"""Programs that overlap: many processes of one CPU cause events whose programs run long.

Where the kernel may preempt a program of fexit, it skips the next task's run of the same one, and counts it.
What was not skipped must be whole, and its own.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.kernel import bpf
from tests.live.host import need_tracing
from tests.live.run import Live, eventually
from tests.live.witness import libc

pytestmark = [pytest.mark.kernel, pytest.mark.preempt]

KINDS = ("mmap", "bpf_load", "bpf_unload", "ksymbol")
EVENTS = ",".join(("exec", "fork", "exit", *KINDS))
PROCESSES, ROUNDS = 6, 60
DEEP = 400
"""Folders above a mapped file: each costs its program a step."""
READ_EXECUTE = mmap.PROT_READ | mmap.PROT_EXEC


@pytest.fixture(scope="module")
def overlapping(make_live: Callable[..., Live]) -> Iterator[Live]:
    need_tracing()
    live = make_live()
    live.start(events=EVENTS)
    assert {live.kinds[kind] for kind in KINDS} <= {"lsm", "fexit"}
    yield live
    assert live.stop() == 0, live.said()
    assert live.ledger()["balanced"], live.ledger()


def storm(path: Path, number: int) -> None:
    """Map a file of our own and load BPF programs of our own, again and again."""
    os.sched_setaffinity(0, {0})
    file = os.open(path, os.O_RDONLY)
    for _ in range(ROUNDS):
        address = libc.mmap(None, mmap.PAGESIZE, READ_EXECUTE, mmap.MAP_PRIVATE, file, 0)
        libc.munmap(ctypes.c_void_p(address), mmap.PAGESIZE)
        os.close(bpf.load_program(bpf.RAW_TRACEPOINT, bpf.NOTHING, f"storm_{number}"))


def test_what_the_kernel_skips_is_in_the_books_and_all_else_is_whole(
    overlapping: Live, tmp_path: Path
) -> None:
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    paths, pids = [], []
    for number in range(PROCESSES):
        folder = tmp_path.joinpath(str(number), *["x"] * DEEP)
        folder.mkdir(parents=True)
        paths.append(folder / "file")
        paths[-1].write_bytes(bytes(mmap.PAGESIZE))
    for number, path in enumerate(paths):
        pids.append(os.fork())
        if not pids[-1]:
            try:
                storm(path, number)
                os._exit(0)
            finally:
                os._exit(98)
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
        overlapping.ended(pid)

    skipped = Counter[str]()
    lost = Counter[str]()
    for entry in overlapping.ledger()["losses"]:
        (skipped if entry["reason"] == "skipped" else lost)[entry["kind"]] += entry["count"]
    assert skipped == misses(overlapping)
    print(f"skipped by the kernel: {dict(skipped)}, lost for other reasons: {dict(lost)}")

    for number, (pid, path) in enumerate(zip(pids, paths, strict=True)):
        for record in overlapping.log.of(pid, "mmap"):
            assert (record["path"], record["inode"]) == (str(path), path.stat().st_ino)
        names = {r["name"].rpartition("_prog_")[2] for r in overlapping.log.of(pid, "bpf_load", "bpf_unload")}
        assert names <= {f"storm_{number}"}
        symbols = {r["name"].partition("_storm_")[2] for r in overlapping.log.of(pid, "ksymbol")}
        assert symbols <= {str(number)}
    for kind in KINDS:
        seen = sum(len(overlapping.log.of(pid, kind)) for pid in pids)
        each = 2 if kind == "ksymbol" else 1
        done = PROCESSES * ROUNDS * each
        assert done - skipped[kind] - lost[kind] <= seen <= done, kind
    eventually(lambda: overlapping.joins() == 0, "all joins to end")


def test_the_kernel_skips(overlapping: Live) -> None:
    """Where it may be preempted anywhere: otherwise the test above shows nothing."""
    if " preempt=full" not in Path("/proc/cmdline").read_text():
        pytest.skip("NOT TESTED: this kernel was not told to be preempted anywhere (preempt=full)")
    assert misses(overlapping).total() > 0


def misses(live: Live) -> Counter[str]:
    """What the kernel itself counts, per kind: bpftool's word on every entry that is pinned."""
    found = Counter[str]()
    for pin in live.pins.glob("entry_*"):
        kind = pin.name.removeprefix("entry_").partition("-")[0]
        kind = "connect_done" if kind == "sock_state" else kind
        found[kind] += shown(pin).get("recursion_misses", 0)
    return +found


def shown(pin: Path) -> dict[str, Any]:
    said = subprocess.run(
        ["bpftool", "-j", "prog", "show", "pinned", str(pin)], capture_output=True, check=True
    )
    answer: dict[str, Any] = json.loads(said.stdout)
    return answer
