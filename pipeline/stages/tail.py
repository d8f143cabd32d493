"""The end of records: the promises of events, as msgpack, after the fixed part and the names.

Texts and environments repeat: what was encoded once is remembered by its bytes. An event that has an
unsettled promise, or something to hide on its command line, is done one promise at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from struct import Struct
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from pipeline.event import Array, Batch, Ints, Settled, settle
from pipeline.promises import Value, extents, value
from pipeline.redact import Redaction
from pipeline.remember import Remembered
from pipeline.schema import Promise, Schema
from pipeline.stages.names import pack

__all__ = ["Tail", "Tails"]


class Tail(NamedTuple):
    """One event's promises."""

    packed: bytes
    keys: int
    """Keys beyond one per promise: `redacted`, `unsettled`."""
    longest: str
    """The promise with the longest value, … """
    size: int
    """… how long that is, packed, …"""
    shown: int
    """… and how many bytes of the promise it shows."""


class _Group:
    """Promises that are remembered together: a run of texts, or one list of strings."""

    def __init__(self, first: int, promises: tuple[Promise, ...], memory: int) -> None:
        self.first = first
        self.promises = tuple((promise, pack(promise.name)) for promise in promises)
        self.lengths = Struct(f"<{len(promises)}I")
        self.repeats = promises[0].redact != "argv"
        """Command lines seldom repeat: to look one up costs more than to pack it."""
        self.memory: Remembered[bytes, bytes] = Remembered(memory, _weigh)
        """Lengths and data → packed."""


def _weigh(key: bytes, packed: bytes) -> int:
    return len(key) + len(packed) + 200


class Tails:
    """The promises of one kind's events. `memory` bounds what is remembered, in bytes."""

    def __init__(self, schema: Schema, redaction: Redaction, memory: int) -> None:
        self._schema = schema
        self._redaction = redaction
        self._groups: list[_Group] = []
        for _, run in groupby(enumerate(schema.promises), lambda item: item[1].redact and item[1].name):
            places, promises = zip(*run, strict=True)
            self._groups.append(_Group(places[0], promises, memory))

    def __call__(self, batch: Batch, rows: Ints, heads: Array) -> tuple[list[list[bytes]], dict[int, Tail]]:
        """The tails of events in columns, one list per group; and for some, by their index, a Tail to take
        instead."""
        ends, whole = extents(batch, self._schema, rows, heads)
        slow = np.flatnonzero(~whole).tolist()
        ends[slow] = 0
        columns: list[list[bytes]] = []
        for group in self._groups:
            column, masked = self._column(batch, group, ends)
            columns.append(column)
            slow += masked
        return columns, {at: self.single(batch, int(rows[at])) for at in slow}

    def single(self, batch: Batch, row: int, caps: Mapping[str, int] = MappingProxyType({})) -> Tail:
        """The tail of one event, whatever is the matter with it. `caps`: show only so many bytes of a
        promise."""
        hole = batch.holes.get(row)
        settled = settle(self._schema, batch.heads[row], int(batch.size[row]), hole)
        parts: list[bytes] = []
        unsettled: dict[str, Any] = {}
        redacted: list[str] = []
        longest = ("", 0, 0)
        for promise in self._schema.promises:
            start, how = settled[promise.name]
            if promise.name in caps:
                how = replace(how, state="capped", have=caps[promise.name], spans=((0, caps[promise.name]),))
            shown, masked, seen = self._shown(promise, how, batch, int(batch.start[row]) + start)
            packed = pack(shown)
            parts += (pack(promise.name), packed)
            longest = max(longest, (promise.name, len(packed), seen), key=lambda item: item[1])
            if masked:
                redacted.append(promise.name)
            if how.state != "complete" and (self._redaction.environment or promise.redact != "environment"):
                of, chunks = how.of, list(how.parts)
                unsettled[promise.name] = {"state": how.state, "have": how.have, "of": of, "chunks": chunks}
        more = {"redacted": redacted, "unsettled": unsettled}
        extra = [pack(item) for pair in more.items() if pair[1] for item in pair]
        return Tail(b"".join(parts + extra), len(extra) // 2, *longest)

    def _shown(self, promise: Promise, how: Settled, batch: Batch, start: int) -> tuple[Value, bool, int]:
        """What the record shows (nothing beyond the first missing byte), whether it is masked, bytes it
        shows."""
        seen = how.spans[0][1] if how.spans and how.spans[0][0] == 0 else 0
        if how.state != "complete" and not seen:
            return None, False, 0
        return *value(promise, batch.stream[start : start + seen].tobytes(), self._redaction), seen

    def _column(self, batch: Batch, group: _Group, ends: Ints) -> tuple[list[bytes], list[int]]:
        """One group of all events, and the indexes of those on whose command line something is to be
        masked."""
        ends = ends[:, group.first : group.first + len(group.promises) + 1]
        stream = batch.stream.data
        spans = zip(ends[:, 0].tolist(), ends[:, -1].tolist(), strict=True)
        if not group.repeats:
            ((promise, name),) = group.promises
            shown = [value(promise, bytes(stream[start:end]), self._redaction) for start, end in spans]
            return [name + pack(item) for item, _ in shown], [at for at, (_, m) in enumerate(shown) if m]
        lengths = np.diff(ends).astype("<u4").view(f"V{group.lengths.size}").reshape(-1).tolist()
        keys = [n + stream[start:end] for n, (start, end) in zip(lengths, spans, strict=True)]
        found = group.memory.find(keys)
        for at, packed in enumerate(found):
            if packed is None:
                found[at] = group.memory.get(keys[at]) or self._packed(group, keys[at])
        return found, []

    def _packed(self, group: _Group, key: bytes) -> bytes:
        at = group.lengths.size
        parts: list[bytes] = []
        for (promise, name), length in zip(group.promises, group.lengths.unpack_from(key), strict=True):
            parts += (name, pack(value(promise, key[at : at + length], self._redaction)[0]))
            at += length
        group.memory[key] = packed = b"".join(parts)
        return packed
