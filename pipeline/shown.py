"""Single values as text for eyes: what a process chose cannot disturb the terminal.

For lines (render.py, bodies.py) and findings (check.py); imports nothing of ours.
"""

from __future__ import annotations

__all__ = ["Part", "escape", "size", "unknown"]

Part = tuple[str, str]
"""A piece of a line and its rich style ("" for none)."""


def escape(text: str | bytes) -> str:
    """Text of which nothing can move a cursor, begin a line or hide.

    Such characters, bytes that are not UTF-8 (\\xff) and the backslash itself are written as Python does it.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(c if c.isprintable() and c != "\\" else _escaped(c) for c in text)


def size(number: int, beside: int = 0) -> str:
    """Bytes for eyes. `beside`: the larger number next to it, whose unit both have."""
    unit, name = next(
        (
            (u, n)
            for u, n in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
            if max(number, beside) >= u
        ),
        (1, "B"),
    )
    text = f"{number}" if unit == 1 else f"{number / unit:.1f}"
    return text if beside else f"{text} {name}"


def unknown(value: object) -> str:
    """A value, or a question mark for what is not known."""
    return "?" if value is None else str(value)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as surrogateescape keeps it
        return f"\\x{code - 0xDC00:02x}"
    if 0x80 <= code <= 0xFF:  # a character: Python would write it like the byte
        return f"\\u{code:04x}"
    return character.encode("unicode_escape").decode()
