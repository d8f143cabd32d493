"""A record as one line of JSON: exactly its keys; bytes that are no UTF-8 become {"base64": "…"}."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import msgpack

__all__ = ["fields_to_json", "record_to_json"]


def record_to_json(value: bytes) -> str:
    """A record as it is stored, as one line (without its end). Raises ValueError: it is no record."""
    return fields_to_json(msgpack.unpackb(value, strict_map_key=False))


def fields_to_json(fields: Any) -> str:
    """A decoded record, as one line (without its end)."""
    return json.dumps(fields, default=_bytes, ensure_ascii=False, separators=(",", ":"))


def _bytes(value: object) -> dict[str, str]:
    if not isinstance(value, bytes):
        raise TypeError(f"a record holds no {type(value).__name__}")
    return {"base64": b64encode(value).decode()}
