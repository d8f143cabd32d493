"""encode: events become records. Enriched and filtered batches come in; keys and msgpack values go to the
sink.

A record is parts joined: the fixed one (template.py), the end of `process` (names.py, found by enrich),
fields that are texts, and the promises (both tail.py). No dict is built for an event, and Python code runs
for an event only where parts are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from operator import attrgetter
from typing import Final, NamedTuple

import numpy as np

from pipeline.answers import Host
from pipeline.columns import surface_of
from pipeline.event import Array, Batch, Encoded, Ints, Records, spans
from pipeline.ledger import zeros
from pipeline.promises import pick
from pipeline.redact import Redaction
from pipeline.schema import Schema, by_number
from pipeline.stages.tail import Tail, Tails, Words
from pipeline.stages.template import HEADER, Numbers, Path, Template, header

__all__ = ["Encode"]

MEMORY: Final = 4 << 20
TEMPLATES: Final = 256
SLACK: Final = 64
"""Bytes that a record which is cut may end below its limit: what `unsettled` says of the cut."""


_packed = attrgetter("packed")


class Encode:
    """The stage. It needs the columns that enrich adds.

    surfaces: kind → name of the surface that it is taken at. limits: family → the most bytes that a key and
    its value may have together; a record beyond it is cut: its longest promise settles as capped. memory:
    bytes of encoded promises that are remembered: texts and environments of each kind (twice that, at worst).
    """

    name = "encode"

    def __init__(
        self,
        host: Host,
        surfaces: Mapping[str, str],
        redaction: Redaction,
        limits: Mapping[str, int] | None = None,
        memory: int = MEMORY,
    ) -> None:
        self._limits = limits or {}
        self._host, self._surfaces, self._redaction, self._memory = host, surfaces, redaction, memory
        self._kinds: dict[int, _Kind] = {}

    def __call__(self, batch: Batch) -> Iterable[Encoded]:
        """One Encoded per batch, records in the batch's order."""
        kinds = batch.heads["kind"]
        parts: dict[str, list[_Part]] = {}
        for number in np.flatnonzero(batch.counts).tolist():
            kind = self._kinds.get(number) or self._begin(number)
            rows = np.flatnonzero(kinds == number)
            keys, values = kind(batch, rows, self._limits.get(kind.schema.family))
            parts.setdefault(kind.schema.family, []).append(_Part(rows, keys, values))
        times = batch.heads["time"] + batch.clock
        records = {family: _in_order(times, some) for family, some in parts.items()}
        batch.passage.reached("encoded", batch.counts)
        time = (int(times.min()), int(times.max())) if len(batch) else (0, 0)
        return (Encoded(records, batch.counts, batch.passage, time, spans(batch.heads["id"]), batch.clock),)

    def _begin(self, number: int) -> _Kind:
        """The encoder of a kind whose first events came: by then its surface is known, also where a hand-over
        brought it.
        """
        schema = by_number()[number]
        surface = surface_of(schema, self._surfaces)
        made = _Kind(schema, self._host, surface, self._redaction, self._memory)
        self._kinds[number] = made
        return made

    def finish(self) -> Iterable[Encoded]:
        """Nothing is held."""
        return ()

    def held(self) -> Ints:
        """Nothing is held."""
        return zeros()


class _Part(NamedTuple):
    """The records of one kind, and the batch's rows that they are."""

    rows: Ints
    keys: list[bytes]
    values: list[bytes]


def _in_order(times: Ints, parts: list[_Part]) -> Records:
    """Records of several kinds in the order of their rows; `times` are the batch's, ns."""
    rows = np.concatenate([part.rows for part in parts])
    keys = list(chain.from_iterable(part.keys for part in parts))
    values = list(chain.from_iterable(part.values for part in parts))
    order = np.argsort(rows, kind="stable")
    ms = times[rows[order]] // 1_000_000
    places = order.tolist()
    return Records([keys[at] for at in places], [values[at] for at in places], ms.tolist())


class _Kind:
    """The encoder of one kind."""

    def __init__(
        self, schema: Schema, host: Host, surface: str | None, redaction: Redaction, memory: int
    ) -> None:
        self.schema = schema
        self._host = host
        self._surface = surface
        self._numbers = Numbers(schema)
        self._templates: dict[int, Template] = {}
        hidden = schema.hidden(surface)
        self._words = Words(schema, hidden, memory) if schema.words else None
        self._tails = Tails(schema, hidden, redaction, memory) if schema.promises else None

    def __call__(self, batch: Batch, rows: Ints, limit: int | None) -> tuple[list[bytes], list[bytes]]:
        """Keys and values of these rows."""
        heads = pick(batch.heads, rows)
        keys, fixed = self._fixed(heads, batch.clock)
        named = [list(map(_packed, batch.columns[name][rows].tolist())) for name in ("origin", "program")]
        named += [self._words(heads)] if self._words else []
        parts, singles = self._tails(batch, rows, heads) if self._tails else ([], {})
        # One join for all parts: each byte is copied once.
        values = list(map(b"".join, zip(fixed, *named, *parts, strict=True)))

        def start(at: int) -> bytes:
            return b"".join((fixed[at], *(column[at] for column in named)))

        for at, tail in singles.items():
            values[at] = _joined(start(at), tail)
        if self._tails and limit is not None and len(keys[0]) + max(map(len, values)) > limit:
            self._cut(batch, rows, start, values, limit - len(keys[0]))
        return keys, values

    def _fixed(self, heads: Array, clock: int) -> tuple[list[bytes], list[bytes]]:
        """Keys and fixed parts, one pass per set of nil fields."""
        values, mask = self._numbers(heads, clock)
        first = int(mask[0])
        if (mask == first).all():
            return self._filled(first, values, slice(None))
        keys = np.empty(len(heads), object)
        fixed = np.empty(len(heads), object)
        for one in np.unique(mask).tolist():
            rows = np.flatnonzero(mask == one)
            keys[rows], fixed[rows] = self._filled(one, values, rows)
        return keys.tolist(), fixed.tolist()

    def _filled(
        self, mask: int, values: Mapping[Path, Array], rows: slice | Ints
    ) -> tuple[list[bytes], list[bytes]]:
        template = self._template(mask)
        records = template.fill(values, rows)
        return [record[template.key] for record in records], records

    def _template(self, mask: int) -> Template:
        template = self._templates.get(mask)
        if template is None:
            if len(self._templates) >= TEMPLATES:
                self._templates.clear()
            template = self._templates[mask] = Template(self.schema, self._host, self._surface, mask)
        return template

    def _cut(
        self, batch: Batch, rows: Ints, start: Callable[[int], bytes], values: list[bytes], limit: int
    ) -> None:
        """Cut what is beyond the limit, longest promise first; what cannot be made to fit stays for the
        sink to refuse."""
        assert self._tails is not None
        for at, value in enumerate(values):
            if len(value) <= limit:
                continue
            caps: dict[str, int] = {}
            tail = self._tails.single(batch, int(rows[at]))
            while (over := len(values[at]) - limit) > 0 and tail.shown:
                keep = max(0, tail.size - over - SLACK)
                caps[tail.longest] = tail.shown * keep // tail.size
                tail = self._tails.single(batch, int(rows[at]), caps)
                values[at] = _joined(start(at), tail)


def _joined(start: bytes, tail: Tail) -> bytes:
    """A record whose map may have more keys than its template's."""
    keys = int.from_bytes(start[1:HEADER], "big") + tail.keys
    return header(keys) + start[HEADER:] + tail.packed
