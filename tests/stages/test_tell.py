"""Notices: what a consumer can conclude from them is true, whatever rings lose and whenever beats come."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgpack
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.event import FOREVER, NO_RING, Beat, Encoded, Gap, Passage, Told
from pipeline.ledger import zeros
from pipeline.notices import HEARTBEAT, LOSS, block
from pipeline.redact import Redaction
from pipeline.schema import by_name
from pipeline.sources.rings import Beats, Rings
from pipeline.stages.assemble import Assemble
from pipeline.stages.encode import Encode
from pipeline.stages.enrich import Enrich
from pipeline.stages.merge import Merge
from pipeline.stages.stage import Stage
from pipeline.stages.tell import Look, Tell
from tests.batches import HOST, FixedAnswers
from tests.kernel_ring import KernelRing, boottime
from tests.told import kinds_lost, numbers_lost

EXEC = by_name()["exec"].number
SURFACES = dict.fromkeys(by_name(), "tracepoint")
Record = dict[str, Any]


def look_of(told: Told, losses: Iterable[Mapping[str, Any]] = (), now: int = 900) -> Look:
    return Look(now, told, tuple(losses), {})


def notices(batches: Iterable[Encoded]) -> list[Record]:
    """The notices of some batches, decoded."""
    found = (
        batch.records[kind].values for batch in batches for kind in (LOSS, HEARTBEAT) if kind in batch.records
    )
    return [msgpack.unpackb(value) for values in found for value in values]


def batch(passage: Passage, clock: int = 5_000) -> Encoded:
    return Encoded({}, zeros(), passage, clock=clock)


def lost(n: int, kind: int = EXEC) -> Any:
    counts = zeros()
    counts[kind] = n
    return counts


def test_a_gap_is_told_in_the_batch_that_books_it() -> None:
    tell = Tell(HOST, lambda until: look_of({}), {}, 7)
    gaps = (Gap(0, 10, 19, 100, 200, 0), Gap(1, 5, 5, 0, 300, 0), Gap(0, 12, 12, 100, 400, 0, filled=True))
    (out,) = tell(batch(Passage(3, {}, gaps)))
    first, second, third = notices([out])
    assert first == {
        "schema": "loss/1",
        "kind": "loss",
        "time": 5_200,
        "boottime": 200,
        "host": block(HOST),
        "ring": 0,
        "first": 10,
        "last": 19,
        "since": 100,
        "until": 200,
        "stage": "ring",
        "reason": "full",
        "count": 10,
        "kinds": None,
    }
    assert (second["since"], second["until"], second["count"]) == (7, 300, 1), "nobody saw it before"
    assert (third["reason"], third["first"], third["last"]) == ("late", 12, 12)
    assert numbers_lost(notices([out])) == {0: set(range(10, 20)) - {12}, 1: {5}}
    assert out.counts.sum() == 0, "notices are no events"


def test_a_batch_without_news_passes_as_it_is() -> None:
    tell = Tell(HOST, lambda until: look_of({}), {}, 0)
    given = batch(Passage(1, {0: (256, 1)}))
    assert tell(given) == (given,)


def test_counters_are_told_once_and_their_levels_go_along() -> None:
    levels: dict[tuple[int, str, str], Any] = {(NO_RING, "kernel", "scratch"): lost(2)}
    tell = Tell(HOST, lambda until: look_of(levels), {(NO_RING, "kernel", "skipped"): lost(1)}, 50)
    levels[NO_RING, "kernel", "skipped"] = lost(1)
    passages = [Passage(n, {}, beat=Beat(100 * n)) for n in (1, 2, 3)]
    (first,) = tell(batch(passages[0]))
    assert [(n["stage"], n["reason"], n["kinds"], n["since"], n["until"]) for n in notices([first])[:-1]] == [
        ("kernel", "scratch", {"exec": 2}, 50, 900)
    ], "what an earlier run told is not told again"
    assert passages[0].told == levels
    levels = {**levels, (1021, "perf", "lost"): lost(4, 0), (1021, "perf", "no reader"): lost(1, 0)}
    (second,) = tell(batch(passages[1]))
    told = notices([second])[:-1]
    assert [(n["ring"], n["reason"], n["count"], n["kinds"]) for n in told] == [
        (1021, "lost", 4, None),
        (1021, "no reader", None, None),
    ]
    assert {n["since"] for n in told} == {100}
    (third,) = tell(batch(passages[2]))
    assert [n["kind"] for n in notices([third])] == ["heartbeat"]
    assert [n["beat"] for n in notices([first, second, third]) if n["kind"] == "heartbeat"] == [1, 2, 3]


def test_until_never_goes_back() -> None:
    tell = Tell(HOST, lambda until: look_of({}), {}, 500)
    untils = []
    for n, until in enumerate((600, 0, 550, 700), 1):
        passage = Passage(n, {}, beat=Beat(until))
        (out,) = tell(batch(passage))
        (beat,) = notices([out])
        untils.append(beat["until"])
        assert passage.beat
        assert passage.beat.until == beat["until"]
    assert untils == [600, 600, 600, 700]


def test_a_loss_of_another_boot_is_told_under_its_name() -> None:
    other = {"host": {**block(HOST), "boot_id": "c" * 32}, "ring": None, "first": None, "until": FOREVER}
    tell = Tell(HOST, lambda until: look_of({}, [other]), {}, 0)
    (out,) = tell(batch(Passage(1, {}, beat=Beat(5))))
    told = notices([out])[0]
    assert told["host"]["boot_id"] == "c" * 32
    assert told["boottime"] == 900, "when it was told: no more is known"
    assert out.time == (0, 999_999)


# ---- the model: whatever happens in rings, and whenever a beat comes

ACTS = st.lists(
    st.tuples(
        st.sampled_from(["event", "event", "event", "big", "cut", "late", "wait", "pass", "beat", "full"]),
        st.integers(0, 1),
    ),
    max_size=40,
)


class Line:
    """Two rings, the stages, and a consumer that keeps what it was told."""

    def __init__(self) -> None:
        self.kernel = [KernelRing(0, 8, start=100), KernelRing(1, 8, start=200)]
        self.rings = {ring.number: ring.reader() for ring in self.kernel}
        self.written: list[tuple[int, int, int]] = []
        """(ring, sequence of the head, time) of all events that hooks saw."""
        self.open: list[tuple[KernelRing, int, int]] = []
        """Chunks that were reserved and are not finished: (ring, position, sequence)."""
        self.stored: set[tuple[int, int]] = set()
        self.chunks: Counter[int] = Counter()
        self.told: list[Record] = []
        beats = Beats(
            0.0, lambda: {r.number: (int(r.books["sequence"]), int(r.books["drops"])) for r in self.kernel}
        )
        self.beats = beats
        self.source = Rings(self.rings, {}, lambda: (boottime(), 0), beats=beats)
        start = {number: ring.expected for number, ring in self.rings.items()}
        self.stages: list[Stage[Any, Any]] = [
            Merge(),
            Assemble(start, expiry=20_000_000),
            Enrich(FixedAnswers()),
            Encode(HOST, SURFACES, Redaction(())),
            Tell(HOST, lambda until: look_of(self._counters(), now=boottime()), {}, 0),
        ]

    def _counters(self) -> Told:
        counts = sum((ring.books["kinds"]["lost_full"].astype("<i8") for ring in self.kernel), zeros())
        return {(NO_RING, "ring", "full"): counts} if counts.any() else {}

    def act(self, what: str, at: int) -> None:
        ring = self.kernel[at]
        now, sequence = boottime(), int(ring.books["sequence"])
        if what in ("event", "big", "cut"):
            data = b"" if what == "event" else b"x" * 700
            fields: dict[str, int] = {}
            if data:
                fields = {"argv_of": 700, "argv_have": 700, "environment_of": 0, "environment_have": 0}
            self.written.append((at, sequence, now))
            missing = {2} if what == "cut" else set()
            ring.event("exec" if data else "exit", data, time=now, hidden="", without=missing, **fields)
        elif what == "late":  # a program that is preempted after it took its number
            ring.take()
            ring.books["drops"] += 1
        elif what == "full":
            for _ in range(10):
                self.act("event", at)
        elif what == "wait":  # longer than the source's slack: what was before is before the watermark
            time.sleep(0.0015)
        else:
            self.take(beat=what == "beat")

    def take(self, *, beat: bool) -> None:
        things: list[Any] = [self.source._look(self.beats if beat else None)]
        for each in self.stages:
            things = [out for thing in things for out in each(thing)]
        for out in things:
            for number, (position, _) in out.passage.positions.items():
                self.rings[number].release(position)
            for family, records in out.records.items():
                values = [msgpack.unpackb(value) for value in records.values]
                if family in (LOSS, HEARTBEAT):
                    self.told += values
                else:
                    self.stored |= {(r["ring"], r["sequence"]) for r in values}
            self.check()

    def check(self) -> None:
        """What the newest heartbeat claims is so."""
        until = max((n["until"] for n in self.told if n["kind"] == HEARTBEAT), default=0)
        missing = numbers_lost(self.told)
        for ring, sequence, when in self.written:
            known = (ring, sequence) in self.stored or sequence in missing.get(ring, ())
            assert known or when >= until, f"{until} claims what nobody knows: {ring}, {sequence} at {when}"


@settings(max_examples=60, deadline=None)
@given(ACTS)
# A gap that waits behind an event which is later than what the gap lost.
@example([("full", 1), ("wait", 0), ("pass", 0), ("cut", 0), ("event", 1), ("wait", 0), ("beat", 0)])
def test_every_event_before_until_is_stored_or_told_as_lost(acts: list[tuple[str, int]]) -> None:
    line = Line()
    for what, at in acts:
        line.act(what, at)
    time.sleep(0.022)  # what is unfinished expires
    before = boottime()
    line.take(beat=False)
    time.sleep(0.003)
    line.take(beat=True)
    line.check()
    beats = [n for n in line.told if n["kind"] == HEARTBEAT]
    assert beats[-1]["until"] >= before, "it goes on"
    for ring in line.kernel:
        lost = numbers_lost(line.told).get(ring.number, set())
        assert len(lost) == ring.books["drops"], "exactly what was dropped"
        ring.close()
    heads = sum(int(ring.books["kinds"]["lost_full"].sum()) for ring in line.kernel)
    assert sum(kinds_lost(line.told).values()) == heads
    assert len(line.stored) == len(line.written) - heads
