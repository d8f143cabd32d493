"""Events as schemas/*.toml describe them: the one place that says what an event's fields are.

From a `Schema` come the C struct that a BPF program fills (`c_header`), the numpy dtype that reads the
same bytes (`Schema.dtype`), the record's keys (`Field.path`) and the JSON Schema (`json_schema`).

A head's payload (chunk.py) is laid out as a C compiler would do it: common fields, the kind's own fields,
one {of, have} pair per promise, and then room for the promises' data when all of it fits there.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.chunk import PAYLOAD, STRIDE

__all__ = [
    "COMMON",
    "KINDS",
    "VARYING",
    "Field",
    "Promise",
    "Schema",
    "SchemaError",
    "Surface",
    "by_name",
    "by_number",
    "families",
    "load",
]

FOLDER: Final = Path(__file__).resolve().parent.parent / "schemas"
KINDS: Final = 32
"""Room for kinds in the kernel's books and in every array indexed by kind; numbers: 1 to KINDS - 1."""

# type name -> (C type, numpy type, JSON type)
TYPES: Final = {
    "u8": ("__u8", "u1", "integer"),
    "bool": ("__u8", "u1", "boolean"),
    "u16": ("__u16", "<u2", "integer"),
    "i32": ("__s32", "<i4", "integer"),
    "u32": ("__u32", "<u4", "integer"),
    "u64": ("__u64", "<u8", "integer"),
    "comm": ("char", "V16", "string"),
    "ip": ("struct ip", "V20", "string"),
    "tag": ("__u8", "V8", "string"),
}
ALIGNED: Final = {"comm": 1, "ip": 4, "tag": 1}
"""Where C aligns a type otherwise than to its size."""
VARYING: Final = frozenset(ALIGNED)
"""Types whose values are texts of varying length in the record."""
KEYS: Final = ("number", "version", "family", "ecs", "ocsf", "abstract", "always", "needs")
PROMISE_TYPES: Final = ("text", "bytes", "strings", "audit")


class SchemaError(Exception):
    """A schema file that cannot be used; the text names the file and what to mend."""


@dataclass(frozen=True, slots=True)
class Surface:
    """One way to get an event: where the kernel is tapped, by which BPF programs or which source."""

    name: str
    """lsm, fexit, tracepoint, perf, sys_exit, audit or proc."""
    hooks: Mapping[str, str] = field(default_factory=dict)
    """TYPE/HOOK → program that makes the event. TYPE: lsm, fentry, fexit, raw_tp (a raw tracepoint), sys_exit
    (the end of one system call). Empty: a source of the pipeline's own (perf, audit, proc) reads it."""
    before: Mapping[str, str] = field(default_factory=dict)
    """TYPE/HOOK → program that only remembers something for those of `hooks`."""
    optional: tuple[str, ...] = ()
    """Those of both that a kernel may lack (32-bit system calls)."""
    parts: tuple[str, ...] = ()
    """Programs that those of `hooks` go on to by tail calls: `calls_KIND.call(ctx, CALL_PART)`. The kernel
    wants all that share a table to be of one type and for functions with one signature: for each other
    signature among `hooks` the loader makes another table."""
    without: tuple[str, ...] = ()
    """Fields and promises that this surface does not show: nil in its records."""
    blind: str = ""
    """What happens unseen by it."""
    cost: str = ""
    """Why it is off unless asked for; empty: it is on by default."""

    @property
    def notes(self) -> str:
        """What there is to know before one relies on it."""
        said = {"nil": ", ".join(self.without), "unseen": self.blind, "off unless asked for": self.cost}
        return "; ".join(f"{what}: {text}" for what, text in said.items() if text)


@dataclass(frozen=True, slots=True)
class Field:
    """A fixed-size value in the head."""

    name: str
    type: str
    meaning: str
    path: tuple[str, ...]
    """Where it stands in the record: ("process", "pid") is record["process"]["pid"]."""
    nil: int | None = None
    """The number that says "unknown"; such a value is nil in the record."""
    unit: str = ""
    ecs: str = ""
    ocsf: str = ""


@dataclass(frozen=True, slots=True)
class Promise:
    """A variable-size value. Its {of, have} pair is in the head, its data in the head or in later chunks."""

    name: str
    type: str
    """text (one str), bytes, strings (NUL-terminated, an array in the record), or audit (records of the audit
    system as text, parsed in the record)."""
    cap: str
    """The configuration key under `caps` that bounds it."""
    meaning: str
    empty: str = ""
    """"nil": a promise of no bytes is nil in the record, not an empty text."""
    redact: str = ""
    """The redaction that it goes through: argv or environment; empty: none."""
    ecs: str = ""
    ocsf: str = ""


@dataclass(frozen=True)
class Schema:
    """One kind of event."""

    name: str
    summary: str
    fields: tuple[Field, ...]
    promises: tuple[Promise, ...] = ()
    number: int = 0
    version: int = 1
    family: str = ""
    surfaces: tuple[Surface, ...] = ()
    ecs: str = ""
    ocsf: str = ""
    abstract: bool = field(default=False)
    always: bool = False
    """Attached also when nobody asks for it: it keeps identities and exec ids true."""
    needs: str = ""
    """A kind that is attached beside it, from whichever surface: it ends what that one begins."""

    @property
    def title(self) -> str:
        """What a record says in `schema`: "exec/1"."""
        return f"{self.name}/{self.version}"

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The payload of this kind's head as numpy sees it in a chunk (chunk.HEADER can be viewed so).

        A promise NAME is a pair NAME_of, NAME_have (bytes; u32 each). `room` is what data the head holds.
        The fields of chunk.HEADER are not repeated: a kind may have a field `flags` of its own.
        """
        names: list[str] = []
        formats: list[np.dtype[Any]] = []
        offsets: list[int] = []
        at = STRIDE - PAYLOAD
        for item in self.fields:
            kind = np.dtype(TYPES[item.type][1])
            at += -at % ALIGNED.get(item.type, kind.itemsize)
            names.append(item.name)
            formats.append(kind)
            offsets.append(at)
            at += kind.itemsize
        at += -at % 4
        for promise in self.promises:
            for part in ("of", "have"):
                names.append(f"{promise.name}_{part}")
                formats.append(np.dtype("<u4"))
                offsets.append(at)
                at += 4
        if at > STRIDE:
            raise SchemaError(
                f"schemas/{self.name}.toml: the head is {at - STRIDE} bytes too long; "
                "make a field smaller or turn it into a promise"
            )
        names.append("room")
        formats.append(np.dtype((np.uint8, (STRIDE - at,))))
        offsets.append(at)
        return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": STRIDE})

    @property
    def room(self) -> int:
        """How many bytes of promise data fit into the head."""
        return int(self.dtype["room"].itemsize)

    @property
    def words(self) -> tuple[Field, ...]:
        """Fields of this kind's own that are texts of varying length in the record."""
        return tuple(f for f in self.fields if f.type in VARYING and f not in COMMON)

    def surface(self, name: str | None) -> Surface | None:
        """The entry of this kind for a surface, or None."""
        return next((s for s in self.surfaces if s.name == name), None)

    def hidden(self, surface: str | None) -> frozenset[str]:
        """Names of the fields and promises that a surface does not show."""
        entry = self.surface(surface)
        return frozenset(entry.without if entry else ())

    def may_be_nil(self, field: Field) -> bool:
        """Whether records may have nil for a field: unknown, none, or not shown by their surface."""
        is_hidden = any(field.name in surface.without for surface in self.surfaces)
        return field.nil is not None or field.type == "ip" or is_hidden


def load(folder: Path = FOLDER) -> dict[str, Schema]:
    """Read every schema of a folder; name → Schema, in order of their numbers."""
    raw: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.toml")):
        try:
            raw[path.stem] = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise SchemaError(f"{path}: {error}") from None
    schemas = [_build(name, raw) for name in raw]
    for schema in schemas:
        _check(schema)
    concrete = [s for s in schemas if not s.abstract]
    numbers = [s.number for s in concrete]
    if len(set(numbers)) != len(numbers) or not set(numbers) <= set(range(1, KINDS)):
        raise SchemaError(f"{folder}: kinds need numbers of their own from 1 to {KINDS - 1}, got {numbers}")
    return {s.name: s for s in sorted(concrete, key=lambda s: s.number)}


def _build(name: str, raw: dict[str, dict[str, Any]], heirs: tuple[str, ...] = ()) -> Schema:
    table = raw[name]
    try:
        fields, promises = _inherited(table, raw, (*heirs, name))
        for entry in table.get("fields", ()):
            fields.append(_field(entry))
        for entry in table.get("promises", ()):
            if entry["type"] not in PROMISE_TYPES:
                raise SchemaError(f"promise {entry['name']}: type is one of {', '.join(PROMISE_TYPES)}")
            promises.append(Promise(**entry))
        if table["name"] != name:
            raise SchemaError(f'name = "{table["name"]}" is not the name of the file')
        return Schema(
            name=name,
            summary=table["summary"],
            fields=tuple(fields),
            promises=tuple(promises),
            surfaces=tuple(_surface(entry) for entry in table.get("surfaces", ())),
            **{k: table[k] for k in KEYS if k in table},
        )
    except KeyError as error:
        raise SchemaError(f"schemas/{name}.toml: the key {error} is missing") from None
    except (TypeError, SchemaError) as error:
        raise SchemaError(f"schemas/{name}.toml: {error}") from None


def _check(schema: Schema) -> None:
    """What only the whole of a schema shows."""
    paths = [f.path for f in schema.fields] + [(p.name,) for p in schema.promises]
    names = [f.name for f in schema.fields] + [p.name for p in schema.promises]
    for what, found in (("name", names), ("place in the record", [".".join(path) for path in paths])):
        twice = sorted({each for each in found if found.count(each) > 1})
        if twice:
            raise SchemaError(f"schemas/{schema.name}.toml: the {what} {', '.join(twice)} is taken twice")
    deep = [f.name for f in schema.fields if f.type in ("ip", "tag") and len(f.path) > 1]
    if deep:
        raise SchemaError(f"schemas/{schema.name}.toml: {', '.join(deep)}: an ip or a tag has no `in`")
    for surface in schema.surfaces:
        unknown = sorted(set(surface.without) - set(names))
        if unknown:
            raise SchemaError(
                f"schemas/{schema.name}.toml: {surface.name} is without {', '.join(unknown)}: no such field"
            )
    _ = schema.dtype  # raises SchemaError if the head is too long


def _inherited(
    table: dict[str, Any], raw: dict[str, dict[str, Any]], heirs: tuple[str, ...]
) -> tuple[list[Field], list[Promise]]:
    """What a schema takes over: from the one it extends, which has the common block, or from that block."""
    if table.get("abstract"):
        return [], []
    name = table.get("extends", "common")
    if name not in raw:
        raise SchemaError(f"extends: there is no schemas/{name}.toml")
    if name in heirs:
        raise SchemaError(f"extends: {' → '.join((*heirs, name))} goes round in a circle")
    parent = _build(name, raw, heirs)
    without = set(table.get("without", ()))
    return (
        [f for f in parent.fields if f.name not in without],
        [p for p in parent.promises if p.name not in without],
    )


def _surface(entry: dict[str, Any]) -> Surface:
    lists: dict[str, Any] = {
        key: tuple(entry[key]) for key in ("optional", "parts", "without") if key in entry
    }
    return Surface(**{**entry, **lists})


def _field(entry: dict[str, Any]) -> Field:
    if entry["type"] not in TYPES:
        raise SchemaError(f"field {entry['name']}: type is one of {', '.join(TYPES)}")
    values = dict(entry)
    values["path"] = tuple(values.pop("in", values["name"]).split("."))
    return Field(**values)


@cache
def by_name() -> dict[str, Schema]:
    """The project's own schemas by name."""
    return load()


@cache
def by_number() -> dict[int, Schema]:
    """The project's own schemas by the kind's number in a chunk."""
    return {s.number: s for s in by_name().values()}


@cache
def families() -> dict[str, tuple[Schema, ...]]:
    """Family (the end of a topic's name) → its kinds."""
    found: dict[str, list[Schema]] = {}
    for schema in by_name().values():
        found.setdefault(schema.family, []).append(schema)
    return {name: tuple(kinds) for name, kinds in found.items()}


COMMON: Final = _build("common", {"common": tomllib.loads((FOLDER / "common.toml").read_text())}).fields
"""The fields that every kind's head begins with, at the same offsets."""
