"""The fixed part of records: all of one kind, for which the same fields are nil, have the same bytes but
for numbers.

So it is a template, filled by whole columns. `encode` keeps one per kind and mask, and appends what varies
in length: the end of the map `process` (names.BLOCK), then fields that are texts, then the promises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgpack
import numpy as np

from pipeline.answers import Host
from pipeline.chunk import PERF_RING, ring_of
from pipeline.event import Array, Ints
from pipeline.record import IDENTITY, entities, identity
from pipeline.schema import VARYING, Field, Schema
from pipeline.stages.names import BLOCK, pack

__all__ = ["HEADER", "Numbers", "Path", "Template", "header", "nilable"]

Path = tuple[str, ...]

# How a number of each type stands in msgpack: its marker, and the bytes after it. Integers keep their full
# width.
_FORMATS: Final[dict[str, tuple[bytes, str]]] = {
    "u8": (b"\xcc", "u1"),
    "u16": (b"\xcd", ">u2"),
    "u32": (b"\xce", ">u4"),
    "u64": (b"\xcf", ">u8"),
    "i32": (b"\xd2", ">i4"),
    "i64": (b"\xd3", ">i8"),
    "bool": (b"", "u1"),
}
_FALSE: Final = 0xC2
"""msgpack's false; true is the next."""
HEADER: Final = 3
"""Bytes of the map header that every record begins with."""
PARENT: Final = ("process", "parent")


def header(keys: int) -> bytes:
    """The header of a record with so many keys: always the wide one, so that it can be exchanged."""
    return b"\xde" + keys.to_bytes(2, "big")


def nilable(schema: Schema) -> list[Path]:
    """What may be nil in the fixed part, in the order of the bits of a mask."""
    return [("cpu",), PARENT, *(field.path for field in _unknowable(schema))]


def _unknowable(schema: Schema) -> list[Field]:
    return [field for field in schema.fields if field.nil is not None and field.type not in VARYING]


class Numbers:
    """What the fixed parts of one kind are filled with, and which of it is nil."""

    def __init__(self, schema: Schema) -> None:
        self._dtype = schema.dtype
        self._fields = [(field.path, field.name) for field in schema.fields]
        self._bools = [(field.path, field.name) for field in schema.fields if field.type == "bool"]
        self._unknown = [(field.name, field.nil or 0) for field in _unknowable(schema)]
        self._bits = 1 << np.arange(len(nilable(schema)))
        self._processes = entities(schema)

    def __call__(self, heads: Array, clock: int) -> tuple[dict[Path, Array], Ints]:
        """The numbers of n events by their paths in the record; and (n,): which of `nilable` are nil, as
        bits."""
        view = heads.view(self._dtype)
        time, ring = heads["time"], ring_of(heads["id"])
        found = {path: view[name] for path, name in self._fields}
        found["time",], found["boottime",] = time + clock, time
        found["cpu",], found["ring",] = ring, ring
        found["sequence",], found["id",] = heads["sequence"], heads["id"]
        for path, name in self._bools:
            found[path] = (view[name] != 0) + np.uint8(_FALSE)
        starts = np.concatenate([view[start] for start, _ in self._processes.values()])
        ids = identity(starts, np.concatenate([view[pid] for _, pid in self._processes.values()]))
        for at, path in enumerate(self._processes):
            found[*path, "id"] = ids[at * len(heads) : (at + 1) * len(heads)]
        nil = np.empty((len(self._bits), len(heads)), bool)
        np.greater_equal(ring, PERF_RING, out=nil[0])
        np.equal(view["parent_pid"], 0, out=nil[1])
        for bit, (name, number) in enumerate(self._unknown, 2):
            np.equal(view[name], number, out=nil[bit])
        return found, self._bits @ nil


class Template:
    """One kind's fixed part with one set of fields nil."""

    def __init__(self, schema: Schema, host: Host, surface: str | None, mask: int) -> None:
        self._bytes = bytearray()
        self._slots: dict[Path, tuple[str, int]] = {}
        self._boot = host.boot_id.encode()
        hidden = schema.hidden(surface)
        self._nil = {path for bit, path in enumerate(nilable(schema)) if mask >> bit & 1}
        self._nil |= {field.path for field in schema.fields if field.name in hidden}
        # A process whose start is unknown has no id.
        self._nil |= {(*path, "id") for path in entities(schema) if (*path, "start") in self._nil}
        tree = _tree(schema, host, surface)
        self.keys = len(tree) + len(schema.words) + len(schema.promises)
        """Keys of a record without `redacted` and `unsettled`."""
        self._bytes += header(self.keys)
        self._map((), tree)
        self._names = [".".join(path) for path in self._slots]
        self._dtype = np.dtype(
            {
                "names": self._names,
                "formats": [form for form, _ in self._slots.values()],
                "offsets": [offset for _, offset in self._slots.values()],
                "itemsize": len(self._bytes),
            }
        )
        self._row = np.frombuffer(bytes(self._bytes), np.uint8)
        end = self._slots.get(("process", "id"), ("", 0))[1] + IDENTITY
        first = end - IDENTITY - 1 - len(self._boot)
        if ("process", "id") in self._nil:
            first = self._bytes.index(self._boot)
            end = first + len(self._boot)
        self.key = slice(first, end)
        """Where a record's key stands in its bytes: the process's id; where that is unknown, the boot's."""

    def fill(self, values: Mapping[Path, Array], rows: slice | Ints) -> list[bytes]:
        """The fixed parts of the events that `rows` picks out of their Numbers."""
        filled = np.empty((len(values["id",][rows]), len(self._row)), np.uint8)
        filled[:] = self._row
        view = filled.view(self._dtype).reshape(-1)
        for path, name in zip(self._slots, self._names, strict=True):
            view[name] = values[path][rows]
        found: list[bytes] = filled.view(f"V{len(self._row)}").reshape(-1).tolist()
        return found

    def _map(self, prefix: Path, tree: Mapping[str, Any]) -> None:
        for key, leaf in tree.items():
            path = (*prefix, key)
            self._bytes += pack(key)
            if path in self._nil:
                self._bytes += pack(None)
            elif isinstance(leaf, dict):
                later = len(BLOCK) if path == PARENT[:1] else 0
                self._bytes += msgpack.Packer().pack_map_header(len(leaf) + later)
                self._map(path, leaf)
            elif isinstance(leaf, bytes):
                self._bytes += leaf
            elif leaf == "identity":
                prelude = self._boot + b"-"
                self._bytes += bytes((0xD9, len(prelude) + IDENTITY)) + prelude
                self._slot(path, f"V{IDENTITY}")
            else:
                marker, form = _FORMATS[leaf]
                self._bytes += marker
                self._slot(path, form)

    def _slot(self, path: Path, form: str) -> None:
        self._slots[path] = (form, len(self._bytes))
        self._bytes += bytes(np.dtype(form).itemsize)


def _tree(schema: Schema, host: Host, surface: str | None) -> dict[str, Any]:
    """The record's maps down to its leaves: the name of a number's type, `identity`, or bytes that never
    change.

    The event's own keys stand before `process`, and `parent` at the end of that: what follows the fixed
    part, names and promises, is then the end of each open map.
    """
    tree: dict[str, Any] = {
        "schema": pack(schema.title),
        "kind": pack(schema.name),
        "time": "i64",
        "boottime": "i64",
        "host": pack(
            {"id": host.id, "name": host.name, "boot_id": host.boot_id, "labels": dict(host.labels)}
        ),
        "cpu": "u16",
        "ring": "u16",
        "sequence": "i64",
        "id": "u64",
        "surface": pack(surface),
    }
    process: dict[str, Any] = {}
    for path in entities(schema):
        _within(process if path[0] == "process" else tree, path)["id"] = "identity"
    for field in schema.fields:
        if field.type not in VARYING:
            _within(process if field.path[0] == "process" else tree, field.path[:-1])[field.path[-1]] = (
                field.type
            )
    inner = process["process"]
    parent = inner.pop("parent")
    return tree | {"process": inner | {"parent": parent | {"executable": b""}}}


def _within(tree: dict[str, Any], path: Path) -> dict[str, Any]:
    for key in path:
        tree = tree.setdefault(key, {})
    return tree
