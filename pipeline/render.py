"""Records as text for eyes: one line per event, aligned, coloured where there is a terminal.

Takes records as they are stored (decoded msgpack maps), from a topic, the local log or the live view. What a
process chose (names, arguments) cannot disturb the terminal;
what did not arrive whole is marked, ⟨argv: lost …⟩.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final

from rich.cells import cell_len, set_cell_size

__all__ = ["Part", "escape", "line", "plain", "size"]

Record = Mapping[str, Any]
Part = tuple[str, str]
"""A piece of a line and its rich style ("" for none)."""

CUT: Final = " ⟨view cut⟩"
"""Ends a line of which the terminal shows only a part: the record has it all."""
NARROWEST: Final = 32
"""Columns that an event's own text gets on the narrowest terminal."""
KIND_STYLES: Final = {
    "exec": "bold green",
    "exec_failed": "bold red",
    "fork": "cyan",
    "exit": "blue",
    "process": "dim",
}
MARK: Final = "bold black on yellow"
PLAIN_WORD: Final = frozenset("@%+=:,./-_")
"""What may stand in an argument beside letters and digits without quotes, as in a shell."""


def line(record: Record, width: int | None = None, *, dated: bool = True) -> list[Part]:
    """One event as the parts of one line.

    `width` is the terminal's, in columns; None: nothing is cut. `dated` adds the day to the time.
    """
    process = record["process"]
    kind = str(record["kind"])
    start: list[Part] = [
        (f"{_time(record['time'], dated)} ", "dim"),
        (f"{kind:<11} ", KIND_STYLES.get(kind, "bold")),
        (f"{_or_unknown(process['pid']):>7} ", ""),
        (_column(_user(process), 9), "magenta"),
        (_column(escape(process["comm"] or ""), 16), ""),
    ]
    marks: list[Part] = [(f" ⟨{mark}⟩", MARK) for mark in _marks(record)]
    body = BODIES.get(kind, _other)(record)
    if width is None:
        return [*start, *body, *marks]
    room = width - sum(cell_len(text) for text, _ in (*start, *marks))
    return [*start, *_cut(body, max(room, NARROWEST)), *marks]


def plain(parts: Iterable[Part]) -> str:
    """A line without colours."""
    return "".join(text for text, _ in parts)


def escape(text: str | bytes) -> str:
    """Text of which nothing can move a cursor, begin a line or hide.

    Such characters, bytes that are not UTF-8 and the backslash itself are written as Python writes them.
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


# ---- the columns that all events have


def _time(ns: int, dated: bool) -> str:
    """Local time to the millisecond."""
    seconds, rest = divmod(ns, 10**9)
    when = datetime.fromtimestamp(seconds)
    return f"{when:{'%Y-%m-%d ' if dated else ''}%H:%M:%S}.{rest // 10**6:03}"


def _user(process: Record) -> str:
    name = process.get("user")
    return escape(name) if name else _or_unknown(process["uid"])


def _column(text: str, width: int) -> str:
    """Text in a column, and a space after it. Names that are longer end in a mark."""
    if cell_len(text) > width:
        text = set_cell_size(text, width - 1) + "…"
    return set_cell_size(text, width) + " "


def _or_unknown(value: object) -> str:
    return "?" if value is None else str(value)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as surrogateescape keeps it
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


# ---- what each kind says


def _exec(record: Record) -> Iterator[Part]:
    yield escape(record.get("executable") or "?"), "bold"
    if record.get("interpreter"):
        yield f" (for {escape(record.get('path') or '?')})", ""
    yield from _arguments(record)


def _exec_failed(record: Record) -> Iterator[Part]:
    number = record["errno"]
    yield escape(record.get("path") or "?"), "bold"
    if number is not None:
        yield f" {errno.errorcode.get(number, number)} ({os.strerror(number)})", "red"
    yield from _arguments(record)


def _arguments(record: Record) -> Iterator[Part]:
    arguments: Sequence[str | bytes] | None = record.get("argv")
    if arguments is None:
        return
    yield " ", ""
    for argument in arguments:
        yield f" {_quote(argument)}", ""


def _quote(argument: str | bytes) -> str:
    """An argument so that one can see where it begins and ends."""
    text = escape(argument)
    if text and all(c.isalnum() or c in PLAIN_WORD for c in text):
        return text
    return "'" + text.replace("'", "\\'") + "'"


def _fork(record: Record) -> Iterator[Part]:
    child = record["child"]
    yield f"→ {_or_unknown(child['pid'])}", "bold"
    if child["ns_pid"] != child["pid"]:
        yield f" ({_or_unknown(child['ns_pid'])} in its namespace)", ""


def _exit(record: Record) -> Iterator[Part]:
    number = record["signal"]
    if number:
        yield _signal(number), "bold red"
        if record["core"]:
            yield " (core dumped)", "red"
    else:
        yield f"exit {_or_unknown(record['code'])}", "yellow" if record["code"] else ""


@cache
def _signal(number: int) -> str:
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"


def _other(record: Record) -> Iterator[Part]:
    """A kind that has no text of its own yet: its own fields as they are."""
    common = {"schema", "kind", "time", "boottime", "host", "cpu", "ring", "sequence", "id", "surface"}
    for key, value in record.items():
        if key not in common | {"process", "unsettled"}:
            yield f"{key}={escape(str(value))} ", ""


BODIES: Final[Mapping[str, Callable[[Record], Iterator[Part]]]] = {
    "exec": _exec,
    "process": _exec,
    "exec_failed": _exec_failed,
    "fork": _fork,
    "exit": _exit,
}


# ---- marks


def _marks(record: Record) -> Iterator[str]:
    for flag in ("memfd", "deleted", "chrooted"):
        if record.get(flag):
            yield flag
    for name, how in (record.get("unsettled") or {}).items():
        yield f"{name}: {_unsettled(how)}"


def _unsettled(how: Record) -> str:
    """E.g. "lost 2 chunks, 1.2 of 2.0 MiB"."""
    state = str(how["state"])
    if how.get("chunks"):
        state += f" {len(how['chunks'])} chunk{'s' * (len(how['chunks']) != 1)}"
    have, of = how["have"], how["of"]
    if of is None:
        return f"{state}, {size(have)} of unknown"
    return f"{state}, {size(have, beside=max(of, 1))} of {size(of)}"


def _cut(body: Iterable[Part], room: int) -> Iterator[Part]:
    """As much of a text as there is room for; the rest is not even made."""
    kept: list[Part] = []
    used = 0
    for text, style in body:
        # A column shows at least one character, so what is longer need not be measured.
        wide = cell_len(text[: room + 1])
        if used + wide > room:
            kept.append((text, style))
            yield from _shorten(kept, room - len(CUT))
            yield CUT, MARK
            return
        kept.append((text, style))
        used += wide
    yield from kept


def _shorten(parts: Iterable[Part], room: int) -> Iterator[Part]:
    for text, style in parts:
        wide = cell_len(text[: room + 1])
        if wide > room:
            yield set_cell_size(text[: room + 1], room), style
            return
        yield text, style
        room -= wide
