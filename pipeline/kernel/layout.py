"""What loader and pipeline agree on: names of pins, and the maps' bytes as bpf/chunk.h and bpf/identity.h
have them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from pipeline.chunk import OWN_RINGS, PERF_RING
from pipeline.config import Config
from pipeline.event import Array
from pipeline.schema import KINDS, by_name

__all__ = [
    "AREA_SIZE",
    "BOOKS",
    "FILTERED",
    "IDENTITY",
    "IDENTITY_KEY",
    "LOST",
    "OURS",
    "OWN",
    "OWN_COUNTERS",
    "OWN_ROWS",
    "OWN_SIZE",
    "RECORDS",
    "TEST",
    "TICK",
    "Identity",
    "books_view",
    "cgroup_known",
    "cpus",
    "row_of",
    "settings",
    "start_ticks",
    "stat",
    "wanted",
]

_KIND: Final = np.dtype(
    [
        ("attempted", "<i8"),
        ("lost_full", "<i8"),
        ("lost_call", "<i8"),
        ("lost_slot", "<i8"),
        ("lost_budget", "<i8"),
        ("expired", "<i8"),
        ("filtered_self", "<i8"),
        ("filtered_test", "<i8"),
        ("filtered_uid", "<i8"),
        ("filtered_cgroup", "<i8"),
        ("filtered_kind", "<i8"),
    ]
)
BOOKS: Final = np.dtype(
    [
        ("sequence", "<i8"),
        ("start", "<i8"),
        ("drops", "<i8"),
        ("no_ring", "<i8"),
        ("hidden", "<i8"),
        ("identity_full", "<i8"),
        ("cut_calls", "<i8"),
        ("joins", "<i8"),
        ("ask", "<i8"),
        ("followed", "<i8"),
        ("kinds", _KIND, (KINDS,)),
    ]
)
"""struct books: one ring's counters in the kernel."""

OWN_ROWS: Final = len(OWN_RINGS)
"""Rows of rings that the pipeline fills itself."""
OWN_COUNTERS: Final = ("received", "lost", "away", "away_ns")
"""What their rows count besides: records received, and lost as the kernel reports it (of unknown kind);
intervals without a reader, and their sum in ns."""
OWN: Final = np.dtype(
    [
        ("sequence", "<i8"),
        ("start", "<i8"),
        ("drops", "<i8"),
        *((name, "<i8") for name in OWN_COUNTERS),
        ("seen", "<i8"),  # when its reader looked last, ns since boot
        ("none", "<i8", (2,)),
        ("kinds", _KIND, (KINDS,)),
    ]
)
"""Such a row: as long as the others, with other words where BPF programs count what cannot happen here."""
assert OWN.itemsize == BOOKS.itemsize
OWN_SIZE: Final = 4 * 1024 * 1024
"""Bytes of such a ring, at most."""
RECORDS: Final = "ring_records"
"""Pin of the ring in which audit records wait (bpf/audit.c); its row in the books is behind all others."""
LOST: Final = {
    "lost_full": ("ring", "full"),
    "lost_call": ("kernel", "tail call"),
    "lost_slot": ("kernel", "scratch"),
    "lost_budget": ("kernel", "budget"),
    "expired": ("kernel", "expired"),
}
"""Counter → (stage, reason) of events that the kernel lost."""
FILTERED: Final = {
    "filtered_self": "self",
    "filtered_test": "self-test",
    "filtered_uid": "uid",
    "filtered_cgroup": "cgroup",
    "filtered_kind": "events",
}
"""Counter → reason of events that the kernel filtered."""

AREA_SIZE: Final = 512 * 1024
"""Bytes of the pinned checkpoint (sinks/checkpoint.py)."""
CPUS: Final = Path("/sys/devices/system/cpu")

OURS: Final = 1
TEST: Final = 2
TICK: Final = 10_000_000
"""ns: starts of processes are compared in ticks, which is what /proc shows."""
IDENTITY_KEY: Final = struct.Struct("=QQ")
"""start in ticks, pid."""
IDENTITY: Final = struct.Struct("=QQQ")
"""exec id (0: unknown), flags, 0."""
WHOLE: Final = 1024
"""In how many parts the kernel divides a ring, and what is free of it."""
_SETTINGS: Final = struct.Struct("=QQQIIIIIIII")


@dataclass(frozen=True, slots=True)
class Identity:
    """A process as the kernel's map keys it."""

    pid: int
    start: int
    """Ticks since boot."""

    @property
    def key(self) -> bytes:
        """The key in `identities`."""
        return IDENTITY_KEY.pack(self.start, self.pid)

    def plain(self) -> dict[str, int]:
        """For the loader's request."""
        return asdict(self)


def start_ticks(pid: int) -> int:
    """When a process started, ticks since boot."""
    return int(stat(f"/proc/{pid}")[1][19])


def stat(folder: Path | str) -> tuple[bytes, list[bytes]]:
    """The name of a process or thread, by its folder in /proc, and the fields of its stat file from the third
    on. The name may hold anything.
    """
    with open(f"{folder}/stat", "rb", buffering=0) as file:
        text = file.read(1 << 12)
    end = text.rindex(b")")
    return text[text.index(b"(") + 1 : end], text[end + 2 :].split()


def cpus(which: Literal["present", "possible"]) -> list[int]:
    """Numbers of the CPUs that are present (each gets a ring), or that could ever be plugged in."""
    found: list[int] = []
    for part in (CPUS / which).read_text().strip().split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def cgroup_known() -> bool:
    """Whether processes live in version-2 cgroups. Under version 1 the id that the kernel gives is always the
    root's.
    """
    return os.path.exists("/sys/fs/cgroup/cgroup.controllers")


def settings(config: Config, kinds: Collection[str]) -> bytes:
    """struct settings for a configuration; `kinds` are those to report."""
    mask = sum(1 << by_name()[kind].number for kind in kinds)
    return _SETTINGS.pack(
        mask,
        ceil(config.budget.reserve * WHOLE),
        ceil(config.budget.share * WHOLE),
        config.environment.enabled,
        bool(config.kernel.uids),
        bool(config.kernel.cgroups),
        cgroup_known(),
        config.caps.path,
        config.caps.argv,
        config.caps.environment,
        config.memory.all,
    )


def row_of(ring: int, entries: int) -> int:
    """The row of a ring in the kernel's books, where CPUs have `entries` of them."""
    return ring if ring < PERF_RING else entries + ring - PERF_RING


def books_view(memory: Any, entries: int) -> Array:
    """The kernel's counters as an array of BOOKS, live: a row per CPU, and OWN_ROWS behind them."""
    return np.frombuffer(memory, BOOKS, entries + OWN_ROWS)


def wanted(config: Config) -> list[str]:
    """The kinds to report: those asked for, or all that have a surface which costs nothing to others."""
    if config.events:
        return [kind for kind in by_name() if config.names(kind)]
    return [kind for kind, schema in by_name().items() if any(not s.cost for s in schema.surfaces)]
