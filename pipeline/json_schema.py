"""JSON Schema of records, from the schemas and the table of derived keys: `promissory schema json NAME`
prints it.

Reads record.py and schema.py; nothing of the pipeline's flow passes through here.
"""

from __future__ import annotations

from typing import Any, Final

from pipeline.record import ANCESTRY, DERIVED, entities
from pipeline.schema import TYPES, Schema

__all__ = ["json_schema"]

_TEXT: Final = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {"base64": {"type": "string", "contentEncoding": "base64"}},
            "required": ["base64"],
            "additionalProperties": False,
        },
    ]
}
_INTEGER: Final = {"type": "integer"}
_TYPES: Final[dict[str, dict[str, Any]]] = {
    **{name: {"type": kind} for name, (_, _, kind) in TYPES.items()},
    "tag": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
    "i64": _INTEGER,
    "comm": _TEXT,
    "text": _TEXT,
    "bytes": _TEXT,
    "audit": {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"type": {"type": "string"}, "fields": {"type": "object"}},
            "required": ["type", "fields"],
        },
    },
    "strings": {"type": "array", "items": _TEXT},
    "map": {"type": "object"},
    "ancestry": {
        "type": "array",
        "maxItems": ANCESTRY + 1,
        "items": {
            "type": ["object", "null"],
            "properties": {"exec_id": _INTEGER, "executable": {"anyOf": [*_TEXT["anyOf"], {"type": "null"}]}},
            "required": ["exec_id", "executable"],
        },
    },
}


def json_schema(schema: Schema) -> dict[str, Any]:
    """Draft 2020-12, of a kind's records as JSON lines show them: bytes that are not UTF-8 are {"base64": …}.

    Versions only ever add, so further keys are allowed.
    """
    root: dict[str, Any] = {"type": "object"}
    for item in DERIVED:
        _put(root, item.path, _described(item.type, item.meaning, item.nil), required=not item.optional)
    for field in schema.fields:
        meaning = f"{field.meaning} ({field.unit})" if field.unit else field.meaning
        _put(root, field.path, _described(field.type, meaning, schema.may_be_nil(field)))
    for path, (start, _) in entities(schema).items():
        nil = any(field.name == start and schema.may_be_nil(field) for field in schema.fields)
        _put(root, (*path, "id"), _described("text", "a process's id: see process.id", nil))
    for promise in schema.promises:
        _put(root, (promise.name,), _described(promise.type, promise.meaning, True))
    root["properties"]["schema"]["const"] = schema.title
    root["properties"]["kind"]["const"] = schema.name
    root["properties"]["unsettled"] |= _unsettled(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": schema.title,
        "description": schema.summary,
        **root,
    }


def _described(kind: str, meaning: str, nil: bool) -> dict[str, Any]:
    entry = _TYPES[kind]
    if nil and "type" in entry:
        entry = entry | {"type": [entry["type"], "null"]}
    elif nil:
        entry = {"anyOf": [*entry["anyOf"], {"type": "null"}]}
    return {"description": meaning, **entry}


def _put(
    root: dict[str, Any], path: tuple[str, ...], entry: dict[str, Any], *, required: bool = True
) -> None:
    """Put an entry where its path says; what a table said first stands."""
    for at, key in enumerate(path):
        last = at == len(path) - 1
        child = root.setdefault("properties", {}).setdefault(key, entry if last else {"type": "object"})
        if (required or not last) and key not in root.setdefault("required", []):
            root["required"].append(key)
        root = child


def _unsettled(schema: Schema) -> dict[str, Any]:
    how = {
        "type": "object",
        "properties": {
            "state": {"enum": ["capped", "lost", "fault", "expired"]},
            "have": _INTEGER,
            "of": {"type": ["integer", "null"]},
            "chunks": {"type": "array", "items": _INTEGER},
        },
        "required": ["state", "have", "of", "chunks"],
    }
    return {
        "properties": {promise.name: how for promise in schema.promises},
        "additionalProperties": False,
        "minProperties": 1,
    }
