"""The end of records, as msgpack, after the fixed part and the names: fields that are texts, and the
promises of events.

Texts and environments repeat: what was encoded once is remembered by its bytes. An event that has an
unsettled promise, or something to hide on its command line, is done one promise at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from itertools import groupby
from struct import Struct
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from pipeline.chunk import REDACTED
from pipeline.event import Array, Batch, Ints, Settled, settle
from pipeline.promises import Value, extents, strings, value
from pipeline.redact import Redaction
from pipeline.remember import Remembered
from pipeline.schema import TYPES, Promise, Schema
from pipeline.stages.names import pack
from pipeline.texts import word

__all__ = ["Tail", "Tails", "Words"]

ALIKE: Final = 96
"""Bytes at the end of two environments that make it worth comparing them."""


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


class _Column(Protocol):
    """One or more neighbouring promises of many events of one kind."""

    def __call__(self, stream: memoryview, ends: Ints) -> tuple[list[bytes], Iterable[int]]:
        """Keys and values, packed; and the events (by their index) on whose command line something is to
        be masked. `ends` is (m, promises + 1) into the stream."""
        ...


class _Texts:
    """A run of texts, remembered together by their lengths and bytes."""

    def __init__(
        self, promises: Sequence[Promise], hidden: Set[str], redaction: Redaction, memory: int
    ) -> None:
        self._promises = [(promise, pack(promise.name)) for promise in promises]
        self._hidden = hidden
        self._redaction = redaction
        self._lengths = Struct(f"<{len(promises)}I")
        self._memory: Remembered[bytes, bytes] = Remembered(memory, _weigh)

    def __call__(self, stream: memoryview, ends: Ints) -> tuple[list[bytes], Iterable[int]]:
        lengths = np.diff(ends).astype("<u4").view(f"V{self._lengths.size}").reshape(-1).tolist()
        spans = zip(lengths, ends[:, 0].tolist(), ends[:, -1].tolist(), strict=True)
        keys = [n + stream[start:end] for n, start, end in spans]
        found = self._memory.find(keys)
        for at, packed in enumerate(found):
            if packed is None:
                found[at] = self._memory.get(keys[at]) or self._packed(keys[at])
        return found, ()

    def _packed(self, key: bytes) -> bytes:
        at = self._lengths.size
        parts: list[bytes] = []
        for (promise, name), length in zip(self._promises, self._lengths.unpack_from(key), strict=True):
            data = key[at : at + length]
            shown = None if promise.name in self._hidden else value(promise, data, self._redaction)[0]
            parts += (name, pack(shown))
            at += length
        self._memory[key] = packed = b"".join(parts)
        return packed


class _Environment:
    """An environment, remembered by its bytes. It is long: to compare it with the last that ended alike
    costs a tenth of hashing it."""

    def __init__(self, promise: Promise, redaction: Redaction, memory: int) -> None:
        self._promise = promise
        self._name = pack(promise.name)
        self._redaction = redaction
        self._memory: Remembered[bytes, bytes] = Remembered(memory, _weigh)
        self._recent: Remembered[bytes, tuple[bytes, bytes]] = Remembered(
            memory, lambda end, entry: _weigh(*entry)
        )

    def __call__(self, stream: memoryview, ends: Ints) -> tuple[list[bytes], Iterable[int]]:
        return [self._packed(bytes(stream[start:end])) for start, end in ends.tolist()], ()

    def _packed(self, data: bytes) -> bytes:
        end = data[-ALIKE:]
        known = self._recent.get(end)
        if known is not None and known[0] == data:
            return known[1]
        packed = self._memory.get(data)
        if packed is None:
            packed = self._memory[data] = self._name + pack(value(self._promise, data, self._redaction)[0])
        self._recent[end] = data, packed
        return packed


class _CommandLine:
    """A command line. These seldom repeat: to look one up costs more than to pack it."""

    def __init__(self, promise: Promise, redaction: Redaction) -> None:
        self._promise = promise
        self._name = pack(promise.name)
        self._redaction = redaction

    def __call__(self, stream: memoryview, ends: Ints) -> tuple[list[bytes], Iterable[int]]:
        name = self._name
        if self._promise.type == "strings" and not self._redaction.patterns:
            return [name + pack(strings(bytes(stream[start:end]))) for start, end in ends.tolist()], ()
        shown = [
            value(self._promise, bytes(stream[start:end]), self._redaction) for start, end in ends.tolist()
        ]
        return [name + pack(item) for item, _ in shown], [
            at for at, (_, masked) in enumerate(shown) if masked
        ]


def _weigh(key: bytes, packed: bytes) -> int:
    return len(key) + len(packed) + 200


class Words:
    """The fields of one kind's events that are texts in a record, remembered together by their bytes."""

    def __init__(self, schema: Schema, hidden: Set[str], memory: int) -> None:
        self._dtype = schema.dtype
        self._form = np.dtype([(field.name, TYPES[field.type][1]) for field in schema.words])
        self._words = [(f.name, pack(f.path[-1]), f.type, f.name in hidden) for f in schema.words]
        self._memory: Remembered[bytes, bytes] = Remembered(memory, _weigh)

    def __call__(self, heads: Array) -> list[bytes]:
        """Keys and values of n events, packed."""
        view = heads.view(self._dtype)
        bytes_ = np.empty(len(heads), self._form)
        for name in self._form.names or ():
            bytes_[name] = view[name]
        keys = bytes_.view(f"V{self._form.itemsize}").tolist()
        found = self._memory.find(keys)
        for at, packed in enumerate(found):
            if packed is None:
                found[at] = self._memory.get(keys[at]) or self._packed(keys[at])
        return found

    def _packed(self, key: bytes) -> bytes:
        values = np.frombuffer(key, self._form)[0]
        parts: list[bytes] = []
        for name, packed, kind, is_hidden in self._words:
            parts += (packed, pack(None if is_hidden else word(kind, bytes(values[name]))))
        self._memory[key] = joined = b"".join(parts)
        return joined


class Tails:
    """The promises of one kind's events. `hidden`: those that are always nil. `memory` bounds what is
    remembered, in bytes.
    """

    def __init__(self, schema: Schema, hidden: Set[str], redaction: Redaction, memory: int) -> None:
        self._schema = schema
        self._hidden = hidden
        self._redaction = redaction
        self._columns: list[tuple[slice, _Column]] = []
        first = 0
        for redact, run in groupby(schema.promises, lambda p: "" if p.name in hidden else p.redact):
            promises = list(run)
            column: _Column
            if redact == "argv":
                column = _CommandLine(promises[0], redaction)
            elif redact == "environment":
                column = _Environment(promises[0], redaction, memory)
            else:
                column = _Texts(promises, hidden, redaction, memory)
            self._columns.append((slice(first, first + len(promises) + 1), column))
            first += len(promises)

    def __call__(self, batch: Batch, rows: Ints, heads: Array) -> tuple[list[list[bytes]], dict[int, Tail]]:
        """The tails of events in columns, one list per part; and for some, by their index, a Tail to take
        instead."""
        ends, whole = extents(batch, self._schema, rows, heads)
        slow = np.flatnonzero(~whole).tolist()
        # What a broken head claims may be anything: nothing is taken by it here.
        ends[slow] = 0
        columns: list[list[bytes]] = []
        for part, column in self._columns:
            packed, masked = column(batch.stream.data, ends[:, part])
            columns.append(packed)
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
            if promise.name in self._hidden:
                parts += (pack(promise.name), pack(None))
                continue
            start, how = settled[promise.name]
            if promise.name in caps:
                how = replace(how, state="capped", have=caps[promise.name], spans=((0, caps[promise.name]),))
            shown, masked, seen = self._shown(promise, how, batch, int(batch.start[row]) + start)
            packed = pack(shown)
            parts += (pack(promise.name), packed)
            longest = max(longest, (promise.name, len(packed), seen), key=lambda item: item[1])
            if masked or (promise.redact == "argv" and int(batch.heads[row]["flags"]) & REDACTED):
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
