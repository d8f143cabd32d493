"""The record: what other people's programs rely on, as one table beside the schemas.

A record is a msgpack map with string keys. Its keys are an event's fields (`Field.path`), its promises by
name, and what `DERIVED` lists: the keys that no schema file has because the pipeline works them out.
`stages/template.py` writes records in this layout; `json_schema.py` describes them; `columns.py` gives
their values to filters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.event import Array
from pipeline.schema import Schema

__all__ = [
    "ANCESTRY",
    "DERIVED",
    "IDENTITY",
    "Derived",
    "entities",
    "identity",
    "process_id",
]

ANCESTRY: Final = 16
"""How many ancestors a record names at most."""
TICK: Final = 10**7
"""ns per tick of a process's start in its id: /proc knows it no better, and ids from there must agree."""
IDENTITY: Final = 21
"""Characters of a process's id after `boot_id-`: twelve of its start, a dash, eight of its pid."""


@dataclass(frozen=True, slots=True)
class Derived:
    """A key of the record that the pipeline works out."""

    path: tuple[str, ...]
    type: str
    """A field's type (schema.TYPES), or: i64, text, strings, map, ancestry."""
    meaning: str
    nil: bool = False
    """It may be nil: unknown, or as the meaning says."""
    optional: bool = False
    """The key may be absent."""
    column: str = ""
    """Its name in a filter; empty: not to be filtered by."""


DERIVED: Final = (
    Derived(("schema",), "text", "name and version of the event's schema: `exec/1`"),
    Derived(("kind",), "text", "name of the event's schema", column="kind"),
    Derived(
        ("time",),
        "i64",
        "ns since the epoch: boottime and the clock's offset when it was read",
        column="time",
    ),
    Derived(("boottime",), "i64", "ns since boot, by the kernel's clock", column="boottime"),
    Derived(("host", "id"), "text", "hash of the machine id that only promissory uses, or as configured"),
    Derived(("host", "name"), "text", "the host's name", column="host"),
    Derived(("host", "boot_id"), "text", "the boot: 32 hexadecimal digits"),
    Derived(("host", "labels"), "map", "text → text, from the configuration"),
    Derived(
        ("cpu",),
        "u16",
        "CPU that it happened on; nil where surface is `proc`, `perf` or `audit`",
        nil=True,
        column="cpu",
    ),
    Derived(("ring",), "u16", "ring that its head came through", column="ring"),
    Derived(("sequence",), "i64", "number of its head in that ring", column="sequence"),
    Derived(("id",), "u64", "the event's id, unique for one boot", column="id"),
    Derived(("surface",), "text", "where the kernel was tapped", nil=True, column="surface"),
    Derived(
        ("process", "id"),
        "text",
        "boot id, start in 10 ms ticks, pid: unique over hosts and boots; the record's key. nil where the "
        "start is unknown: the key is then the boot id",
        nil=True,
        column="process_id",
    ),
    Derived(
        ("process", "parent"),
        "map",
        "the parent; nil where it is the kernel itself (pid 0), or unknown",
        nil=True,
    ),
    Derived(
        ("process", "parent", "id"),
        "text",
        "the parent's id, made like process.id",
        nil=True,
        column="parent_id",
    ),
    Derived(
        ("process", "parent", "executable"),
        "text",
        "path of the program that the parent runs; nil: unknown",
        nil=True,
        column="parent_executable",
    ),
    Derived(("process", "user"), "text", "name of the real user, from local files", nil=True, column="user"),
    Derived(
        ("process", "group"), "text", "name of the real group, from local files", nil=True, column="group"
    ),
    Derived(
        ("process", "container"),
        "text",
        "id of the container (64 hexadecimal digits; for LXC a name) by its cgroup; nil: none, or unknown",
        nil=True,
        column="container",
    ),
    Derived(
        ("process", "unit"),
        "text",
        "innermost systemd unit by its cgroup; nil: none, or unknown",
        True,
        column="unit",
    ),
    Derived(
        ("process", "executable"),
        "text",
        "path of the program that the process runs, by exec_id; nil: unknown",
        nil=True,
        column="executable",
    ),
    Derived(
        ("process", "ancestry"),
        "ancestry",
        f"{{exec_id, executable}} of the parent, its parent, and so on, at most {ANCESTRY}; "
        "a nil at the end: what stands above is unknown or not shown",
    ),
    Derived(
        ("redacted",), "strings", "promises in which a pattern of redact.argv masked something", optional=True
    ),
    Derived(
        ("unsettled",),
        "map",
        "promise → {state, have, of, chunks}: bytes that arrived, true size (nil: unknown), missing chunks; "
        "absent when every promise is complete",
        optional=True,
    ),
)


def entities(schema: Schema) -> dict[tuple[str, ...], tuple[str, str]]:
    """The maps of a record that are a process, and so have an `id`: path → names of its start and pid
    fields."""
    names = {field.path: field.name for field in schema.fields}
    return {
        path[:-1]: (name, names[*path[:-1], "pid"])
        for path, name in names.items()
        if path[-1] == "start" and (*path[:-1], "pid") in names
    }


def process_id(boot_id: str, start: int, pid: int) -> str:
    """The id of a process; `start` in ns since boot."""
    return f"{boot_id}-{start // TICK:012x}-{pid:08x}"


_IDENTITY: Final = np.dtype([("high", ">u8"), ("low", ">u4"), ("dash", "u1"), ("pid", ">u8")])
assert _IDENTITY.itemsize == IDENTITY


def identity(start: Array, pid: Array) -> Array:
    """What follows `boot_id-` in the ids of n processes: (n,) of V21, ASCII."""
    ticks = start // TICK
    words = np.empty((3, len(ticks)), np.uint64)
    words[0], words[1], words[2] = ticks >> 16, ticks & 0xFFFF, pid
    digits = _hexadecimal(words)
    found = np.empty(len(ticks), _IDENTITY)
    found["high"], found["low"], found["dash"], found["pid"] = digits[0], digits[1], ord("-"), digits[2]
    return found.view(f"V{IDENTITY}")


def _hexadecimal(words: Array) -> Array:
    """The eight digits of 32-bit numbers, as the eight bytes of u64: a number spread out, one byte per
    digit."""
    for shift, mask in ((16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F)):
        words = (words | words << np.uint64(shift)) & np.uint64(mask)
    # A digit above 9 carries into the next half byte when 6 is added; a to f stand 39 behind 9 in ASCII.
    letters = (words + np.uint64(0x0606060606060606)) >> np.uint64(4) & np.uint64(0x0101010101010101)
    return words + np.uint64(0x3030303030303030) + letters * np.uint64(39)
