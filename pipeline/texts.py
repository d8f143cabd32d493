"""Fixed-size fields whose values are texts: names of threads, IP addresses, tags.

Between the head chunks, which hold their bytes, and all that shows them: the filter's columns, encode.
"""

from __future__ import annotations

import socket
from typing import Final

from pipeline.event import Array
from pipeline.promises import text
from pipeline.schema import Field

__all__ = ["texts", "word"]

NAMELESS: Final = b"\0\xff"
"""How the bytes of an unknown comm begin (schemas/common.toml)."""
VERSION: Final = 4
"""Bytes before those of an address: which IP it is."""


def word(kind: str, data: bytes) -> str | bytes | None:
    """A value of type comm, ip or tag; None: there is none, or it is unknown."""
    if kind == "comm":
        return None if data.startswith(NAMELESS) else text(data.partition(b"\0")[0])
    if kind == "tag":
        return data.hex()
    version, address = int.from_bytes(data[:VERSION], "little"), data[VERSION:]
    if version == 4:
        return socket.inet_ntop(socket.AF_INET, address[:4])
    return socket.inet_ntop(socket.AF_INET6, address) if version == 6 else None


def texts(field: Field, values: Array) -> list[str | bytes | None]:
    """A column of such values: (n,) of the field's bytes."""
    return [word(field.type, bytes(value)) for value in values.tolist()]
