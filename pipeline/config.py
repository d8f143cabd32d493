"""The configuration: what a person may set. Everything below the command line gets one frozen `Config`.

config/promissory.toml explains every key; configure.py is where values come from. Sizes are bytes and
durations seconds, however they were written ("16 MiB", "500 ms").
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pipeline.values import (
    EVERY,
    Cap,
    Cgroups,
    Events,
    GiB,
    KiB,
    Limit,
    MiB,
    Names,
    Patterns,
    Properties,
    Reserve,
    RingSize,
    Seconds,
    Share,
    Size,
    Text,
    Uids,
    items,
)

__all__ = ["Config", "default_ring_size"]


def default_ring_size(cpus: int) -> int:
    """Bytes of one CPU's ring, where nobody says."""
    return 16 * MiB if cpus <= 16 else 4 * MiB


class Table(BaseModel):
    """A table of keys: frozen, and closed to names that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Ring(Table):
    """One CPU's ring buffer."""

    size: RingSize = Field(default_factory=lambda: default_ring_size(os.sysconf("SC_NPROCESSORS_CONF")))


class Budget(Table):
    """Where a CPU's ring begins to ask whose a chunk is (bpf/budget.h); fractions."""

    reserve: Reserve = 0.125
    share: Share = 0.5


class Caps(Table):
    """The most that is taken of one variable value."""

    argv: Cap = 2 * MiB
    environment: Cap = 256 * KiB
    path: Cap = 64 * KiB


class Environment(Table):
    """Whether environments are taken, and the names whose values may be seen (shell patterns)."""

    enabled: bool = True
    allow: Names = (
        "PATH",
        "HOME",
        "SHELL",
        "USER",
        "LOGNAME",
        "LANG",
        "LANGUAGE",
        "LC_*",
        "TERM",
        "TZ",
        "PWD",
        "OLDPWD",
        "HOSTNAME",
        "DISPLAY",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "LD_AUDIT",
        "SUDO_USER",
        "SUDO_UID",
        "SSH_CONNECTION",
        "XDG_SESSION_ID",
    )


class Redact(Table):
    """Regular expressions: what they match on a command line is masked."""

    argv: Patterns = ()


class Kernel(Table):
    """Filters in the kernel; empty: everything is reported."""

    uids: Uids = ()
    cgroups: Cgroups = ()


class Memory(Table):
    """Which mappings are events: those that can be executed, or all."""

    all: bool = False


class Store(Table):
    """A store on disk: bytes that it may take."""

    limit: Size = 4 * GiB


class Outbox(Store):
    """Where events wait for the broker; a full one holds the others back, or loses its oldest."""

    full: Literal["block", "drop-oldest"] = "block"


class Shutdown(Table):
    """How long a run may take to end."""

    deadline: Seconds = 30.0


class Topic(Table):
    """What topics get that we create."""

    partitions: Annotated[int, Field(ge=1, le=10_000)] = 12
    max_record: Size = 8 * MiB


Fraction = Annotated[float, Field(gt=0, le=1)]


class Watch(Table):
    """From when on the pipeline finds something wrong with itself (watch.py)."""

    stall: Seconds = 10.0
    """Seconds for which a stage takes nothing though something waits."""
    rings: Annotated[tuple[Fraction, ...], BeforeValidator(items)] = (0.5, 0.9)
    """Parts of a ring that are taken."""
    outbox: Annotated[int, Field(ge=1)] = 3
    """Looks in a row at which the outbox had grown."""
    clock: Seconds = 0.1
    """Seconds by which the clock steps."""


class HostNames(Table):
    """What records say of this host; nil: its own answers."""

    id: Text = None
    name: Text = None
    labels: dict[str, str] = Field(default_factory=dict)


class Config(Table):
    """All settings of one run."""

    to: Text = None
    """A PLACE as place.py reads it; None: the local log in `state`."""
    state: Path = Path("/var/lib/promissory")
    pins: Path = Path("/sys/fs/bpf/promissory")
    user: Annotated[str, Field(min_length=1)] = "promissory"
    """Whom the pipeline runs as."""
    realtime: bool = True
    """Whether it goes before ordinary processes (priority.py)."""
    events: Events = ()
    """Kinds to report; `all`: what the host can give at any price; empty: every kind whose surface costs
    nothing to those who do not ask."""
    surface: Literal["auto", "lsm", "fexit", "tracepoint", "perf", "sys_exit", "audit"] = "auto"
    filter: Text = None
    duration: Limit = None
    quiet: bool = False
    expiry: Seconds = 0.5
    """How long an unfinished event may hold the others back, seconds."""
    assembly: Size = 64 * MiB
    """Bytes of unfinished events."""
    ring: Ring = Ring()
    budget: Budget = Budget()
    caps: Caps = Caps()
    environment: Environment = Environment()
    redact: Redact = Redact()
    kernel: Kernel = Kernel()
    memory: Memory = Memory()
    outbox: Outbox = Outbox()
    log: Store = Store()
    shutdown: Shutdown = Shutdown()
    topic: Topic = Topic()
    heartbeat: Seconds = 5.0
    """Seconds between two heartbeats, and two looks of self-watch."""
    watch: Watch = Watch()
    host: HostNames = HostNames()
    kafka: Properties = Field(default_factory=dict, repr=False)
    """librdkafka's own properties, by their names."""

    def names(self, kind: str) -> bool:
        """Whether `events` asks for a kind, whatever its price."""
        return kind in self.events or EVERY in self.events
