"""Values as people write them: sizes, durations, lists, patterns. Each type says in one phrase what it wants.

Below config.py, which puts them together. A refusal is a ValueError whose text completes "wanted: …".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from difflib import get_close_matches
from mmap import PAGESIZE
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, Field

from pipeline.schema import by_name

__all__ = [
    "EVERY",
    "Cap",
    "Cgroups",
    "Events",
    "GiB",
    "KiB",
    "Limit",
    "MiB",
    "Names",
    "Patterns",
    "Properties",
    "Reserve",
    "RingSize",
    "Seconds",
    "Share",
    "Size",
    "Text",
    "Uids",
]

EVERY: Final = "all"
"""Among the names of kinds: each that the host can give, at any price."""
KiB: Final = 1 << 10
MiB: Final = 1 << 20
GiB: Final = 1 << 30
SIZES: Final = {"": 1, "b": 1, "kib": KiB, "mib": MiB, "gib": GiB, "tib": 1 << 40}
SIZES_DECIMAL: Final = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
TIMES: Final = {"": "1", "us": "1e-6", "ms": "1e-3", "s": "1", "min": "60", "h": "3600"}


def _quantity(units: Mapping[str, int | str], example: str, value: object) -> Decimal:
    """A number with a unit, exactly. A bare number is in the base unit."""
    text = "" if isinstance(value, bool) else str(value).strip()
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([A-Za-z]*)", text)
    if not found or found[2].lower() not in units:
        raise ValueError(example)
    return Decimal(found[1]) * Decimal(units[found[2].lower()])


def _size(value: object) -> int:
    wanted = 'a size such as "16 MiB", or a number of bytes'
    size = _quantity({**SIZES, **SIZES_DECIMAL}, wanted, value)
    if size != int(size) or size >= 1 << 63:
        raise ValueError(wanted)
    return int(size)


def _seconds(value: object) -> float:
    wanted = 'a duration above 0 such as "500 ms", "20 s" or "1.5 h", or a number of seconds'
    seconds = float(_quantity(TIMES, wanted, value))
    if seconds <= 0:
        raise ValueError(wanted)
    return seconds


def items(value: object) -> object:
    """Flags and variables hold lists as text with commas."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _lines(value: object) -> object:
    """A pattern may hold a comma: as text, there is one on each line."""
    return [line for line in value.splitlines() if line] if isinstance(value, str) else value


def _optional(value: object) -> object:
    """An empty text says: none."""
    return None if isinstance(value, str) and not value.strip() else value


def _properties(value: object) -> object:
    """librdkafka's names have dots: TOML reads a bare one as a table, and variables cannot hold it."""
    return dict(_flat(value)) if isinstance(value, Mapping) else value


def _flat(table: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        name = above + (key if key == "log_level" else key.replace("_", "."))
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, str(value).lower() if isinstance(value, bool) else str(value)


def _ring_size(size: int) -> int:
    if size < PAGESIZE or size & (size - 1) or size > GiB:
        raise ValueError(f'a power of two from "{PAGESIZE // KiB} KiB" to "1 GiB"')
    return size


def _cap(size: int) -> int:
    if not 0 < size <= 16 * MiB:
        raise ValueError('a size from 1 byte to "16 MiB"')
    return size


def _events(names: tuple[str, ...]) -> tuple[str, ...]:
    known = (*by_name(), EVERY)
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"names that `promissory schema list` shows, or {EVERY}{hint}")
    return names


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"a regular expression ({error})") from None
    return text


Size = Annotated[int, BeforeValidator(_size)]
"""Bytes."""
Cap = Annotated[int, BeforeValidator(_size), AfterValidator(_cap)]
"""Bytes that one value may have."""
RingSize = Annotated[int, BeforeValidator(_size), AfterValidator(_ring_size)]
"""Bytes of a ring buffer, as the kernel takes them."""
Share = Annotated[float, Field(ge=0, le=1)]
Reserve = Annotated[float, Field(ge=0, le=0.5)]
"""A part of a ring that is kept: never most of it."""
Seconds = Annotated[float, BeforeValidator(_seconds)]
Limit = Annotated[Seconds | None, BeforeValidator(_optional)]
"""Seconds, or none."""
Text = Annotated[str | None, BeforeValidator(_optional)]
Names = Annotated[tuple[str, ...], BeforeValidator(items)]
Events = Annotated[tuple[str, ...], BeforeValidator(items), AfterValidator(_events)]
"""Names of event schemas; or `all`."""
ROOM: Final = Field(max_length=1024)
"""As much as the kernel's maps hold."""
Uids = Annotated[tuple[Annotated[int, Field(ge=0, lt=1 << 32)], ...], BeforeValidator(items), ROOM]
Cgroups = Annotated[tuple[Annotated[int, Field(ge=0, lt=1 << 64)], ...], BeforeValidator(items), ROOM]
Patterns = Annotated[tuple[Annotated[str, AfterValidator(_pattern)], ...], BeforeValidator(_lines)]
"""Regular expressions, as text."""
Properties = Annotated[dict[str, str], BeforeValidator(_properties)]
"""librdkafka's properties."""
