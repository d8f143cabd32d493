"""Encoded batches for tests: small but true records, each of which says which one it is."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np

from pipeline.answers import Host
from pipeline.chunk import event_id
from pipeline.event import Beat, Encoded, Ints, Passage, Records, spans
from pipeline.ledger import zeros
from pipeline.notices import HEARTBEAT, block, records
from pipeline.schema import by_name

BOOT = "b" * 32
TIME = 1_700_000_000_000_000_000
"""ns since the epoch of the first record; each next one is 1 ms later."""


def record(index: int, *, padding: int = 0, boot: str = BOOT) -> dict[str, Any]:
    """The record number `index` of a stream: kinds exit and fork in turn, seven processes. Padding cannot be
    compressed.
    """
    kind = "fork" if index % 2 else "exit"
    values: dict[str, Any] = {
        "schema": f"{kind}/1",
        "kind": kind,
        "time": TIME + index * 1_000_000,
        "boottime": (index + 1) * 1_000_000,
        "host": {"id": "h", "name": "n", "boot_id": boot, "labels": {}},
        "ring": 0,
        "sequence": index,
        "id": event_id(0, index),
        "process": {"id": f"{boot}-{index % 7}", "pid": index % 7},
    }
    return values | ({"padding": random.Random(index).randbytes(padding)} if padding else {})


def encoded(
    number: int, records: Iterable[dict[str, Any]], positions: dict[int, tuple[int, int]] | None = None
) -> Encoded:
    """A batch of family `process` with passage `number`."""
    records = list(records)
    counts = zeros()
    for values in records:
        counts[by_name()[values["kind"]].number] += 1
    columns = Records(
        [values["process"]["id"].encode() for values in records],
        [msgpack.packb(values) for values in records],
        [values["time"] // 1_000_000 for values in records],
    )
    times = [values["time"] for values in records] or [0]
    ids = np.array([values["id"] for values in records], np.int64)
    time = (min(times), max(times))
    return Encoded({"process": columns}, counts, Passage(number, positions or {}), time, spans(ids))


def stream(batches: int, size: int, *, first: int = 1, padding: int = 0) -> Iterator[Encoded]:
    """Batches `first`, `first` + 1, … of `size` records; the ring's position is 256 × its records."""
    for number in range(first, first + batches):
        indexes = range((number - 1) * size, number * size)
        positions = {0: (number * size * 256, number * size)}
        yield encoded(number, (record(i, padding=padding) for i in indexes), positions)


def with_beat(batch: Encoded, until: int, boot: str = BOOT) -> Encoded:
    """The batch with a heartbeat behind its events."""
    host = block(Host("h", "n", boot, {}))
    batch.passage.beat = Beat(until)
    beat = records(HEARTBEAT, host, 0, [(until, {"until": until})])
    return replace(batch, records={**batch.records, HEARTBEAT: beat})


class Rings:
    """What a keeper moves and asks: the positions it gave free, and a pressure that a test sets."""

    def __init__(self) -> None:
        self.positions: dict[int, int] = {}
        self.full = 0.0

    def move(self, ring: int, position: int) -> None:
        assert position >= self.positions.get(ring, 0), "a position moved backwards"
        self.positions[ring] = position

    def pressure(self) -> float:
        return self.full


def total(batches: Iterable[Encoded]) -> Ints:
    """Events per kind of all."""
    return sum((batch.counts for batch in batches), zeros())
