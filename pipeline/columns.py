"""The columns that a filter may use: one table, and two ways to fill them, from a batch and from stored
records.

`COLUMNS` is what `run`, `tail` and `replay` share. A column is null for an event whose kind does not have
it, where the value is unknown, and where its promise is unsettled. Text that is not UTF-8 is shown with
U+FFFD for what is not. Environments are redacted before a filter sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pipeline.answers import Host
from pipeline.chunk import PERF_RING, ring_of
from pipeline.event import Array, Batch, Ints, settle
from pipeline.promises import extents, pick, value
from pipeline.record import DERIVED, entities, identity
from pipeline.redact import Redaction
from pipeline.schema import VARYING, Field, Promise, Schema, by_name, by_number
from pipeline.texts import texts

__all__ = ["COLUMNS", "Column", "Columns", "of_records", "surface_of"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column."""

    name: str
    type: str
    """i64, u64, bool, text or strings."""
    meaning: str
    paths: tuple[tuple[str, ...], ...]
    """Where a record has it: the first of these that the record has."""


_WIDTH: Final = {
    "bool": "bool",
    "u64": "u64",
    "text": "text",
    "bytes": "text",
    "comm": "text",
    "ip": "text",
    "tag": "text",
    "strings": "strings",
}


def _columns() -> dict[str, Column]:
    found: dict[str, Column] = {}

    def add(name: str, type: str, meaning: str, *paths: tuple[str, ...]) -> None:
        if (known := found.get(name)) is not None:
            paths = (*paths, *(path for path in known.paths if path not in paths))
            type = "u64" if {type, known.type} == {"i64", "u64"} else type
        found[name] = Column(name, type, meaning, paths)

    for item in DERIVED:
        if item.column:
            add(item.column, _WIDTH.get(item.type, "i64"), item.meaning, item.path)
    for schema in by_name().values():
        for field in schema.fields:
            times = field.type == "u64" and field.unit.startswith("ns")
            add(field.name, "i64" if times else _WIDTH.get(field.type, "i64"), field.meaning, field.path)
        for path in entities(schema):
            add(f"{path[-1]}_id", "text", f"id of the {path[-1]}, made like process_id", (*path, "id"))
        for promise in schema.promises:
            if promise.type in _WIDTH:
                add(promise.name, _WIDTH[promise.type], promise.meaning, (promise.name,))
    return found


COLUMNS: Final = _columns()
"""Name → Column. Where an event has a promise of the name (`executable`), that is meant, and not the
process's."""


def surface_of(schema: Schema, surfaces: Mapping[str, str]) -> str | None:
    """Where a kind is tapped: as the loader says, or the only place that there is."""
    only = schema.surfaces[0].name if len(schema.surfaces) == 1 else None
    return surfaces.get(schema.name, only)


def of_records(names: Iterable[str], records: Collection[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns of decoded records."""
    return {name: [_of_record(COLUMNS[name], record) for record in records] for name in names}


def _of_record(column: Column, record: Mapping[str, Any]) -> Any:
    for path in column.paths:
        if path[0] in record.get("unsettled", ()):
            return None
        found: Any = record
        for key in path:
            if not isinstance(found, Mapping) or key not in found:
                break
            found = found[key]
        else:
            return _shown(found)
    return None


def _shown(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return [_shown(item) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class _Look:
    """Events of one kind in a batch."""

    schema: Schema
    batch: Batch
    rows: Ints
    heads: Array
    view: Array

    @property
    def topmost(self) -> Array:
        """Events whose process has no parent but the kernel: their records have none either."""
        return np.asarray(self.view["parent_pid"] == 0)


class Columns:
    """Columns of batches, as a run's records will have them."""

    def __init__(self, host: Host, surfaces: Mapping[str, str], redaction: Redaction) -> None:
        self._host = host
        self._surfaces = surfaces
        self._redaction = redaction
        self._derived: dict[tuple[str, ...], Callable[[_Look], list[Any]]] = {
            ("kind",): lambda look: [look.schema.name] * len(look.rows),
            ("time",): lambda look: (look.heads["time"] + look.batch.clock).tolist(),
            ("boottime",): lambda look: look.heads["time"].tolist(),
            ("host", "name"): lambda look: [self._host.name] * len(look.rows),
            ("cpu",): lambda look: _nulled(ring_of(look.heads["id"]), ring_of(look.heads["id"]) >= PERF_RING),
            ("ring",): lambda look: ring_of(look.heads["id"]).tolist(),
            ("sequence",): lambda look: look.heads["sequence"].tolist(),
            ("id",): lambda look: look.heads["id"].tolist(),
            ("surface",): lambda look: [surface_of(look.schema, self._surfaces)] * len(look.rows),
            ("process", "user"): lambda look: [o.owner.user for o in _column(look, "origin")],
            ("process", "group"): lambda look: [o.owner.group for o in _column(look, "origin")],
            ("process", "container"): lambda look: [o.owner.container for o in _column(look, "origin")],
            ("process", "unit"): lambda look: [o.owner.unit for o in _column(look, "origin")],
            ("process", "executable"): lambda look: [_shown(p.executable) for p in _column(look, "program")],
            ("process", "parent", "executable"): lambda look: [
                _shown(o.lineage.executable) for o in _column(look, "origin")
            ],
        }

    def of_batch(self, names: Iterable[str], batch: Batch) -> dict[str, list[Any]]:
        """Columns of an enriched batch, one value per event."""
        looks = [
            _Look(schema, batch, rows, heads, heads.view(schema.dtype))
            for number, schema in by_number().items()
            if len(rows := np.flatnonzero(batch.heads["kind"] == number))
            for heads in (pick(batch.heads, rows),)
        ]
        return {name: self._one(COLUMNS[name], batch, looks) for name in names}

    def _one(self, column: Column, batch: Batch, looks: list[_Look]) -> list[Any]:
        found = np.full(len(batch), None, object)
        for look in looks:
            values = self._values(column, look)
            if values is not None:
                found[look.rows] = np.fromiter(values, object, len(values))
        return found.tolist()

    def _values(self, column: Column, look: _Look) -> list[Any] | None:
        schema = look.schema
        processes = entities(schema)
        hidden = schema.hidden(surface_of(schema, self._surfaces))
        for path in column.paths:
            if (promise := next((p for p in schema.promises if (p.name,) == path), None)) is not None:
                return None if promise.name in hidden else self._promise(promise, look)
            if (field := next((f for f in schema.fields if f.path == path), None)) is not None:
                return None if field.name in hidden else _field(field, look)
            if path in self._derived:
                return self._derived[path](look)
            if path[-1] == "id" and path[:-1] in processes:
                return self._id(path[:-1], processes[path[:-1]], look)
        return None

    def _id(self, path: tuple[str, ...], names: tuple[str, str], look: _Look) -> list[Any]:
        start, pid = names
        ids = identity(look.view[start], look.view[pid]).tolist()
        found = [f"{self._host.boot_id}-{id.decode()}" for id in ids]
        unknown = _unknown(look.schema, start, look.view)
        if path[-1] == "parent":
            unknown |= look.topmost
        return _nulled(np.array(found, object), unknown)

    def _promise(self, promise: Promise, look: _Look) -> list[Any]:
        at = look.schema.promises.index(promise)
        ends, whole = extents(look.batch, look.schema, look.rows, look.heads)
        stream = look.batch.stream.data
        found: list[Any] = []
        for row, complete, start, end in zip(
            look.rows.tolist(), whole.tolist(), ends[:, at].tolist(), ends[:, at + 1].tolist(), strict=True
        ):
            if not complete:
                batch = look.batch
                how = settle(look.schema, batch.heads[row], int(batch.size[row]), batch.holes.get(row))
                complete = how[promise.name][1].state == "complete"
            data = value(promise, bytes(stream[start:end]), self._redaction)[0] if complete else None
            found.append(_shown(data))
        return found


def _column(look: _Look, name: str) -> list[Any]:
    found: list[Any] = look.batch.columns[name][look.rows].tolist()
    return found


def _field(field: Field, look: _Look) -> list[Any]:
    values = look.view[field.name]
    if field.type in VARYING:
        return [_shown(value) for value in texts(field, values)]
    unknown = _unknown(look.schema, field.name, look.view)
    if field.type == "bool":
        values = values != 0
    if field.path[:2] == ("process", "parent"):
        unknown |= look.topmost
    return _nulled(values, unknown)


def _unknown(schema: Schema, name: str, view: Array) -> Array:
    """Which of n heads do not know a field."""
    nil = next(field.nil for field in schema.fields if field.name == name)
    return np.zeros(len(view), bool) if nil is None else np.asarray(view[name] == nil)


def _nulled(values: Array, unknown: Array) -> list[Any]:
    found: list[Any] = values.tolist()
    for at in np.flatnonzero(unknown).tolist():
        found[at] = None
    return found
