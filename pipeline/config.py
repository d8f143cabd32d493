"""The configuration: what a person may set, from where, and what is said when it is wrong.

Flags win over environment variables (PROMISSORY_…, tables joined by __) over a TOML file over the defaults.
Everything below the command line gets one frozen `Config`; config/promissory.toml explains every key.
Sizes are bytes and durations seconds, however they were written ("16 MiB", "500 ms").
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pipeline.errors import UserError
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

__all__ = ["PREFIX", "Config", "default_ring_size", "load"]

PREFIX: Final = "PROMISSORY_"
BESIDE: Final = ("config", "debug")
"""Variables with our prefix that are no keys: where the file is, and whether to show tracebacks."""
FILE: Final = Path("/etc/promissory/promissory.toml")
"""Read when no file is named and this one is there."""


def default_ring_size(cpus: int) -> int:
    """Bytes of one CPU's ring, where nobody says."""
    return 16 * MiB if cpus <= 16 else 4 * MiB


# ---- the keys


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
    nice: Annotated[int, Field(ge=-20, le=19)] = -10
    """Its share of the processors (priority.py)."""
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


# ---- where values come from


@dataclass(frozen=True)
class Source:
    """One place that sets values, and how a key is spelled there."""

    values: Mapping[str, Any]
    spell: Callable[[tuple[str, ...]], str]

    def has(self, path: tuple[str, ...]) -> bool:
        table: Any = self.values
        for key in path:
            if not isinstance(table, Mapping) or key not in table:
                return False
            table = table[key]
        return True


def load(
    flags: Mapping[str, Any] | None = None,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Read the configuration. `flags` are top-level keys as the command line has them; None means not given.

    Raises UserError, status 2: unreadable file, unknown key (naming the nearest right one), wrong value.
    """
    environ = os.environ if environ is None else environ
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    sources = (
        Source(given, lambda path: f"--{path[0]}"),
        Source(_variables(environ), lambda path: PREFIX + "__".join(path).upper().replace(".", "_")),
        _file(file or (Path(environ[f"{PREFIX}CONFIG"]) if environ.get(f"{PREFIX}CONFIG") else None)),
    )
    merged: dict[str, Any] = {}
    for source in reversed(sources):
        merged = _merge(merged, source.values)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise UserError(_explain(error, sources), status=2) from None


def _variables(environ: Mapping[str, str]) -> dict[str, Any]:
    """PROMISSORY_RING__SIZE=… → {"ring": {"size": …}}."""
    values: dict[str, Any] = {}
    for name in sorted(environ):
        path = name.removeprefix(PREFIX).lower().split("__")
        if not name.startswith(PREFIX) or path[0] in BESIDE:
            continue
        table = values
        for key in path[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise UserError(f"{name}: {PREFIX}{key.upper()} is set as well; unset one of them", status=2)
        table[path[-1]] = environ[name]
    return values


def _file(path: Path | None) -> Source:
    """The file that was named, else the one of this host if there is one."""
    found = path or (FILE if FILE.exists() else None)
    if found is None:
        return Source({}, ".".join)
    try:
        values = tomllib.loads(found.read_text())
    except OSError as error:
        raise UserError(f"{found}: {error.strerror}; name a file that can be read", status=2) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{found} is no TOML: {error}", status=2) from None
    return Source(values, lambda key: f"{'.'.join(key)} in {found}")


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Table by table; what stands above wins."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


# ---- what is said when it is wrong


WANTED: Final = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "string": "a text",
    "path": "a path",
    "tuple": "a list",
    "dict": "a table",
    "model": "a table",
}


def _explain(error: ValidationError, sources: tuple[Source, ...]) -> str:
    """The first trouble in one line: the key as spelled where it was set, the value, what is wanted."""
    first = error.errors(include_url=False)[0]
    path = tuple(key for key in first["loc"] if isinstance(key, str))
    source = next((s for s in sources if s.has(path)), sources[-1])
    if first["type"] == "extra_forbidden":
        return f"unknown key {source.spell(path)}{_nearest(path, source.spell)}"
    value = "not good" if path[:1] == ("kafka",) else repr(first["input"])  # it may be a secret
    return f"{source.spell(path)} is {value}, wanted: {_wanted(first['type'], first)}"


def _wanted(kind: str, error: Mapping[str, Any]) -> str:
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "literal_error":
        return f"one of {error['ctx']['expected']}"
    return WANTED.get(kind.partition("_")[0]) or str(error["msg"]).removeprefix("Input should be ")


def _keys(model: type[BaseModel] = Config, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key there is, tables included."""
    for name, field in model.model_fields.items():
        yield (*above, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, (*above, name))


def _nearest(path: tuple[str, ...], spell: Callable[[tuple[str, ...]], str]) -> str:
    """The right key that is most like a wrong one: by its whole name, else by its last part."""
    whole = {".".join(key): key for key in _keys()}
    last = {key[-1]: key for key in whole.values()}
    for name, keys in ((".".join(path), whole), (path[-1], last)):
        match = get_close_matches(name, keys, 1)
        if match:
            return f"; did you mean {spell(keys[match[0]])}?"
    return f"; the keys are {', '.join(whole)}"
