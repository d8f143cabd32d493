"""Merge: one stream in order of kernel time up to the watermark; what makes no sense is not believed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.chunk import DISCARD, HEADER, MAX_RINGS, PAYLOAD, STRIDE, event_id
from pipeline.event import Gap, Pass, Slice
from pipeline.schema import by_name
from pipeline.stages.merge import Merge, Merged
from tests.chunks import RingLog, event, look

EXEC = by_name()["exec"]


def ordered(merged: Merged) -> list[tuple[int, int]]:
    """(ring, sequence) in order of time."""
    order = np.argsort(merged.rank)
    return list(zip(merged.ring[order].tolist(), merged.sequence[order].tolist(), strict=True))


def timed(ring: int, times: list[int]) -> RingLog:
    log = RingLog(ring)
    for time in times:
        log.event(4, time=time)
    return log


def test_rings_become_one_stream_by_time() -> None:
    rings = [timed(0, [10, 30, 50]), timed(3, [20, 40]), timed(7, [5, 60])]
    (merged,) = Merge()(look(rings, {}, 100))
    assert ordered(merged) == [(7, 1), (0, 1), (3, 1), (0, 2), (3, 2), (0, 3), (7, 2)]
    assert merged.position.tolist() == [0, STRIDE, 2 * STRIDE, 0, STRIDE, 0, STRIDE]
    assert merged.chunks.view(HEADER)["sequence"].tolist() == merged.sequence.tolist()
    assert int(merged.counts.sum()) == 7


def test_what_is_not_before_the_watermark_waits() -> None:
    rings = [timed(0, [10, 30, 50]), timed(1, [20, 40])]
    merge, cursors = Merge(), {}  # type: ignore[var-annotated]
    (first,) = merge(look(rings, cursors, 30))
    assert ordered(first) == [(0, 1), (1, 1)]
    assert int(merge.held().sum()) == 3
    rings[1].event(4, time=45)
    (second,) = merge(look(rings, cursors, 46))
    assert ordered(second) == [(0, 2), (1, 2), (1, 3)]
    assert second.position.tolist() == [STRIDE, STRIDE, 2 * STRIDE]
    (last,) = merge.finish()
    assert ordered(last) == [(0, 3)]
    assert not merge.held().any()
    assert merge.finish() == []


def test_an_inversion_neither_holds_its_ring_back_nor_changes_its_order() -> None:
    log = timed(0, [100, 98, 101])
    (merged,) = Merge()(look([log, timed(1, [99])], {}, 200))
    assert ordered(merged) == [(1, 1), (0, 1), (0, 2), (0, 3)]
    assert merged.stamp.tolist() == [100, 98, 101, 99]


def test_the_watermark_never_goes_back() -> None:
    log = timed(0, [10, 20])
    merge, cursors = Merge(), {}  # type: ignore[var-annotated]
    merge(look([log], cursors, 100))
    log.event(4, time=50)
    (merged,) = merge(look([log], cursors, 40))
    assert merged.watermark == 100
    assert ordered(merged) == []
    assert int(merge.held().sum()) == 1
    (merged,) = merge(look([log], cursors, 101))
    assert ordered(merged) == [(0, 3)]
    assert merged.time.tolist() == [100]


def test_a_time_that_cannot_be_does_not_stop_its_ring() -> None:
    log = timed(0, [10, 1 << 62, 20])
    (merged,) = Merge()(look([log], {}, 1_000))
    assert ordered(merged) == [(0, 1), (0, 2), (0, 3)]
    assert merged.sound().tolist() == [True, False, True]


def test_gaps_wait_for_the_chunk_after_them() -> None:
    log = timed(0, [10])
    log.take(3)
    log.event(4, time=50)
    merge, cursors = Merge(), {}  # type: ignore[var-annotated]
    (first,) = merge(look([log], cursors, 30))
    assert first.gaps == ()
    (second,) = merge(look([log], cursors, 60))
    assert second.gaps == (Gap(0, 2, 4, 0, 0, STRIDE),)


HEAD = {
    "sequence": 5,
    "id": event_id(2, 5),
    "time": 10,
    "parts": 1,
    "kind": EXEC.number,
    "length": STRIDE - 8,
}
PART = HEAD | {"id": event_id(9, 77), "part": 1, "parts": 3, "size": PAYLOAD}


@pytest.mark.parametrize(
    ("base", "change", "sound"),
    [
        (HEAD, {}, True),
        (HEAD, {"kind": 0}, False),
        (HEAD, {"kind": 31}, False),
        (HEAD, {"kind": 65_535}, False),
        (HEAD, {"size": EXEC.room}, True),
        (HEAD, {"size": EXEC.room + 1}, False),
        (HEAD, {"parts": 0}, False),
        (HEAD, {"parts": 1 << 31}, False),
        (HEAD, {"parts": 30_000}, True),
        (HEAD, {"sequence": 6}, False),
        (HEAD, {"id": event_id(3, 5)}, False),
        (HEAD, {"sequence": -1, "id": -1}, False),
        (HEAD, {"length": 100}, False),
        (HEAD, {"length": (STRIDE - 8) | DISCARD}, False),
        (HEAD, {"time": -1}, False),
        (PART, {}, True),
        (PART, {"part": 3}, False),
        (PART, {"part": 2, "size": 1}, True),
        (PART, {"size": 1}, False),
        (PART, {"size": PAYLOAD + 1}, False),
        (PART, {"id": event_id(MAX_RINGS, 0)}, False),
        (PART, {"id": -1}, False),
        (PART, {"sequence": 1 << 52}, False),
    ],
)
def test_headers_are_checked(base: dict[str, int], change: dict[str, int], sound: bool) -> None:
    chunk = np.zeros(1, HEADER)
    for name, value in (base | change).items():
        chunk[name] = value
    (merged,) = Merge()(Pass((Slice(2, 0, chunk),), 1_000, 0))
    assert merged.sound().tolist() == [sound]


@settings(max_examples=100, deadline=None)
@given(
    rings=st.lists(st.lists(st.integers(0, 400), max_size=12), min_size=1, max_size=5),
    watermarks=st.lists(st.integers(0, 500), min_size=1, max_size=5),
)
def test_nothing_is_lost_doubled_or_out_of_its_rings_order(
    rings: list[list[int]], watermarks: list[int]
) -> None:
    logs = [timed(n, times) for n, times in enumerate(rings)]
    for log in logs:
        log.chunks.extend(event(EXEC.number, event_id(log.number, log.sequence)).reshape(-1, 1))
    merge, cursors, seen, last = Merge(), {}, [], 0  # type: ignore[var-annotated]
    for watermark in watermarks:
        for merged in merge(look(logs, cursors, watermark)):
            seen += ordered(merged)
            times = np.sort(merged.time)
            assert not len(times) or last <= times[0] <= times[-1] < merged.watermark
            last = max(last, watermark)
    for merged in merge.finish():
        seen += ordered(merged)
    for log in logs:
        mine = [sequence for ring, sequence in seen if ring == log.number]
        assert mine == [int(chunk["sequence"][0]) for chunk in log.chunks]


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=20 * STRIDE), watermark=st.integers(0, 1 << 62))
def test_noise_is_taken_for_what_it_is(data: bytes, watermark: int) -> None:
    chunks: np.ndarray[Any, Any] = np.frombuffer(data[: len(data) // STRIDE * STRIDE], HEADER)
    merge = Merge()
    rows = 0
    for merged in [*merge(Pass((Slice(0, 0, chunks),), watermark, 0)), *merge.finish()]:
        rows += len(merged)
        assert not merged.sound().any() or merged.kind[merged.sound()].max() <= 31
    assert rows == len(chunks)
