"""Bytes as a record shows them: text where they are valid UTF-8, else the bytes. Imports nothing of ours."""

from __future__ import annotations

__all__ = ["strings", "text"]


def text(data: bytes) -> str | bytes:
    """As a record holds text: str where it is valid UTF-8, else the bytes."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def strings(data: bytes) -> list[str | bytes]:
    """NUL-terminated strings; a last one without its NUL was cut, and stays."""
    if data[-1:] == b"\0":
        data = data[:-1]
    elif not data:
        return []
    try:
        return data.decode().split("\0")  # type: ignore[return-value]
    except UnicodeDecodeError:
        return [text(part) for part in data.split(b"\0")]
