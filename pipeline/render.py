"""Records as text for eyes: one line each, aligned, coloured where there is a terminal.

Takes records as they are stored (decoded msgpack maps), from a topic, the local log or the live view. What a
process chose (names, arguments) cannot disturb the terminal;
what did not arrive whole is marked, ⟨argv: lost …⟩.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final

from rich.cells import cell_len, set_cell_size

from pipeline.bodies import Record, body
from pipeline.notices import LOSS, NOTICES
from pipeline.shown import Part, escape, size, unknown

__all__ = ["line", "plain"]

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
    "mmap": "dim",
    "mprotect": "bold",
    "module_load": "bold magenta",
    "bpf_load": "bold magenta",
    "kernel_text": "bold magenta",
}
MEASURED: Final = 4
"""Characters per column that are looked at: accents take none of their own."""
MARK: Final = "bold black on yellow"
ALARM: Final = "bold white on red"


def line(record: Record, width: int | None = None, *, dated: bool = True) -> list[Part]:
    """One event as the parts of one line.

    `width` is the terminal's, in columns; None: nothing is cut. `dated` adds the day to the time.
    """
    kind = str(record["kind"])
    if kind in NOTICES:
        text, style = (_loss(record), ALARM) if kind == LOSS else (_heartbeat(record), "dim")
        return [(f"{_time(record['time'], dated)} ", "dim"), (f"{kind:<14} ", style), (text, style)]
    process = record["process"]
    start: list[Part] = [
        (f"{_time(record['time'], dated)} ", "dim"),
        (f"{kind:<14} ", KIND_STYLES.get(kind, "bold")),
        (f"{unknown(process['pid']):>7} ", ""),
        (_column(_user(process), 9), "magenta"),
        (_column(escape(process["comm"] or ""), 16), ""),
    ]
    marks: list[Part] = [(f" ⟨{mark}⟩", MARK) for mark in _marks(record)]
    if width is None:
        return [*start, *body(record), *marks]
    room = width - sum(cell_len(text) for text, _ in (*start, *marks))
    return [*start, *_cut(body(record), max(room, NARROWEST)), *marks]


def plain(parts: Iterable[Part]) -> str:
    """A line without colours."""
    return "".join(text for text, _ in parts)


# ---- notices


def _loss(record: Record) -> str:
    """E.g. "ring 0 lost 12 chunks, 100 to 111 (ring, full), between 12:00:01.000 and 12:00:02.500"."""
    offset = record["time"] - record["boottime"]
    since, until = record["since"], _time(record["until"] + offset, False)
    span = f"between {_time(since + offset, False)} and {until}" if since else f"before {until}"
    ring, count, kinds = record["ring"], record["count"], record["kinds"]
    who = "" if ring is None else f"ring {ring} "
    what = f"lost {'nobody knows how many' if count is None else f'{count:,}'}"
    if kinds:
        what = "lost " + ", ".join(f"{n:,} {kind}" for kind, n in kinds.items())
    if record["first"] is not None:
        late = record["reason"] == "late"
        what = f"{'took back' if late else what}: numbers {record['first']} to {record['last']}"
    return f"{who}{what} ({escape(record['stage'])}, {escape(record['reason'])}), {span}"


def _heartbeat(record: Record) -> str:
    """E.g. "complete until 12:00:01.000, ledger balanced, 0 lost"."""
    complete, offset = record["complete_until"], record["time"] - record["boottime"]
    until = "not yet complete" if complete is None else f"complete until {_time(complete + offset, False)}"
    balanced = "ledger balanced" if record["balanced"] else "LEDGER NOT BALANCED"
    lost = record["ledger"].get("all", {}).get("lost", 0)
    return ", ".join((until, balanced, f"{lost:,} lost", *map(escape, record["watch"])))


# ---- the columns that all events have


def _time(ns: int, dated: bool) -> str:
    """Local time to the millisecond."""
    seconds, rest = divmod(ns, 10**9)
    when = datetime.fromtimestamp(seconds)
    return f"{when:{'%Y-%m-%d ' if dated else ''}%H:%M:%S}.{rest // 10**6:03}"


def _user(process: Record) -> str:
    name = process.get("user")
    return escape(name) if name else unknown(process["uid"])


def _column(text: str, width: int) -> str:
    """Text in a column, and a space after it. Names that are longer end in a mark."""
    if cell_len(text) > width:
        text = set_cell_size(text, width - 1) + "…"
    return set_cell_size(text, width) + " "


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


def _cut(parts: Iterable[Part], room: int) -> Iterator[Part]:
    """As much of a text as there is room for; the rest is not even made."""
    kept: list[Part] = []
    used = 0
    for text, style in parts:
        wide = _wide(text, room)
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
        wide = _wide(text, room)
        if wide > room:
            yield set_cell_size(text[: MEASURED * room], room), style
            return
        yield text, style
        room -= wide


def _wide(text: str, room: int) -> int:
    """Columns of a text. What could fill `room` many times is said to be too wide, and not measured."""
    return cell_len(text) if len(text) <= MEASURED * room else room + 1
