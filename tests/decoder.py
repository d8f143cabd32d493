"""A second decoder of the wire format, made of docs/wire-format.md alone: nothing of the pipeline, no numpy.

It takes every offset, kind and promise from the tables of that page; test_wire_format.py compares it with the
pipeline's own.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["BOOKS", "KINDS", "KIND_BOOKS", "Chunk", "Event", "Promise", "chunks", "events", "gaps", "unpack"]

PAGE: Final = (Path(__file__).resolve().parent.parent / "docs" / "wire-format.md").read_text()
STRIDE: Final = 256
BUSY, DISCARD = 1 << 31, 1 << 30
CUT, CAPPED = 1, 2
UNKNOWN: Final = 0xFFFFFFFF
CODES: Final = {
    "u8": "B",
    "bool": "B",
    "u16": "H",
    "i32": "i",
    "u32": "I",
    "u64": "Q",
    "i64": "q",
    "comm": "16s",
    "ip": "20s",
    "tag": "8s",
    "promise": "II",
}
Value = int | bytes | tuple[int, ...]
Layout = Mapping[str, tuple[int, str]]
"""Name → offset, struct's code."""


def layout(before: str) -> dict[str, tuple[int, str]]:
    """The first table of offsets after a line of the page."""
    found: dict[str, tuple[int, str]] = {}
    _, _, rest = PAGE.partition(f"\n{before}\n")
    assert rest, f"the page has no line {before!r}"
    for line in rest.partition("| offset |")[2].splitlines()[2:]:
        if not line.startswith("|"):
            break
        offset, kind, name = (cell.strip() for cell in line.split("|")[1:4])
        code = f"{kind.split()[1]}s" if kind.startswith("bytes") else CODES[kind]
        found[name.strip("`")] = int(offset), code
    return found


def unpack(layout: Layout, data: bytes, at: int = 0) -> dict[str, Value]:
    """Every value of a layout that begins at a place in some bytes."""
    found: dict[str, Value] = {}
    for name, (offset, code) in layout.items():
        value = struct.unpack_from("<" + code, data, at + offset)
        found[name] = value[0] if len(value) == 1 else value
    return found


class Kind(NamedTuple):
    """What the page says of one kind."""

    name: str
    promises: tuple[str, ...]
    head: Layout


def _kinds() -> dict[int, Kind]:
    common = layout("### The common block")
    found = {}
    for number, name, promises in re.findall(r"^\| (\d+) \| `(\w+)` \| \w+ \|(.*)\|$", PAGE, re.M):
        own = layout(f"### Kind {number}: {name}")
        found[int(number)] = Kind(name, tuple(re.findall(r"\d+ (\w+)", promises)), common | own)
    return found


CHUNK: Final = layout("## The chunk")
KINDS: Final = _kinds()
BOOKS: Final = layout("## The books in the kernel")
KIND_BOOKS: Final = layout("Each kind's 88 bytes:")


@dataclass(frozen=True)
class Chunk:
    """One chunk of a ring, its header taken apart."""

    raw: bytes
    length: int
    page: int
    sequence: int
    id: int
    time: int
    part: int
    parts: int
    kind: int
    size: int
    flags: int
    faults: int
    payload: bytes


def chunks(data: bytes) -> Iterator[Chunk]:
    """What stands in a ring between the reader's cursor and the producer position, as far as it is there."""
    for at in range(0, len(data), STRIDE):
        raw = data[at : at + STRIDE]
        chunk = Chunk(raw, **unpack(CHUNK, raw))  # type: ignore[arg-type]
        if chunk.length & BUSY:
            return
        if not chunk.length & DISCARD:
            yield chunk


def gaps(numbers: Iterable[int], expected: int) -> set[int]:
    """The numbers that a ring's chunks leave out, from the one that was expected first to the highest."""
    missing: set[int] = set()
    for number in numbers:
        if number >= expected:
            missing.update(range(expected, number))
            expected = number + 1
        else:
            missing.discard(number)
    return missing


@dataclass(frozen=True)
class Promise:
    """How one settled."""

    state: str
    of: int | None
    arrived: int
    """Bytes that came."""
    shown: bytes
    """Those before the first that did not."""
    missing: tuple[int, ...]
    """Parts."""


@dataclass(frozen=True)
class Event:
    """One event put together."""

    id: int
    kind: str
    fields: Mapping[str, Value]
    promises: Mapping[str, Promise]


def events(found: Iterable[Chunk], missing: Mapping[int, set[int]]) -> dict[int, Event]:
    """All events whose heads came, by id. `missing`: ring → the numbers that never arrived."""
    by_id: dict[int, list[Chunk]] = {}
    for chunk in found:
        by_id.setdefault(chunk.id, []).append(chunk)
    joined = (_join(id, own, missing.get(id >> 52, set())) for id, own in by_id.items())
    return {event.id: event for event in joined if event}


def _join(id: int, own: list[Chunk], missing: set[int]) -> Event | None:
    total = min(chunk.parts for chunk in own)
    parts: dict[int, Chunk] = {}
    for chunk in own:
        if chunk.part < total:
            parts.setdefault(chunk.part, chunk)
    if 0 not in parts:
        return None
    head, kind = parts[0], KINDS[parts[0].kind]
    flags = 0
    for chunk in parts.values():
        flags |= chunk.flags
    absent = [part for part in range(1, total) if part not in parts]
    proven = sum(number > id & (1 << 52) - 1 for number in missing) >= len(absent)
    last = max(parts)
    if last == 0:
        room = kind.head["room"][0]
        stream = {at: head.raw[room + at] for at in range(head.size)}
        end = head.size
    else:
        stream = {
            (part - 1) * 208 + at: byte
            for part, chunk in parts.items()
            if part
            for at, byte in enumerate(chunk.payload[: chunk.size])
        }
        end = (last - 1) * 208 + parts[last].size
    fields = unpack(kind.head, head.raw)
    promises: dict[str, Promise] = {}
    first = 0
    for bit, name in enumerate(kind.promises):
        of, have = fields.pop(name)  # type: ignore[misc]
        until = first + have
        holes = tuple(k for k in absent if have and (k - 1) * 208 < until and first < k * 208)
        short = have > 0 and end < until
        if holes:
            state = "lost" if proven else "expired"
        elif head.faults >> bit & 1 or (short and flags & CUT):
            state = "fault"
        elif have < of or (short and flags & CAPPED):
            state = "capped"
        else:
            state = "lost" if short else "complete"
        came = [at for at in range(first, until) if at in stream]
        shown = bytes(stream[at] for i, at in enumerate(came) if at == first + i)
        promises[name] = Promise(state, None if of == UNKNOWN else of, len(came), shown, holes)
        first = until
    fields.pop("room", None)
    return Event(id, kind.name, fields, promises)
