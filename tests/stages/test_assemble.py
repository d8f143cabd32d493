"""Assembly against a model in plain dicts: order, bytes, holes, books and positions, whatever comes how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline.chunk import CAPPED, CUT, HEADER, PAYLOAD, STRIDE, event_id
from pipeline.event import Batch, Gap, Pass, Slice
from pipeline.ledger import Books
from pipeline.schema import by_name, by_number
from pipeline.stages.assemble import Assemble
from pipeline.stages.merge import Merge
from tests.chunks import RingLog, data_of, event, kinds, look, sizes
from tests.stages.model import Left, Model

EXPIRY = 40_000_000
FATES = {"malformed", "repeat", "duplicate", "late", "orphan", "beyond"}


class Pipe:
    """Merge and assemble, and all that came out of them."""

    def __init__(self, boundary: dict[int, int] | None = None, **options: int) -> None:
        self.merge = Merge()
        self.assemble = Assemble(boundary or {}, **options)
        self.batches: list[Batch] = []
        self.books = Books()

    def look(self, look: Pass) -> None:
        for merged in self.merge(look):
            self._take(self.assemble(merged))

    def finish(self) -> None:
        for merged in self.merge.finish():
            self._take(self.assemble(merged))
        self._take(self.assemble.finish())

    def _take(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            assert batch.passage.number == self.books.number + 1
            self.books.acknowledged += batch.counts
            self.books.retire(batch.passage)
            self.batches.append(batch)

    @property
    def ids(self) -> list[int]:
        return [id for batch in self.batches for id in batch.heads["id"].tolist()]

    def count(self, what: str) -> int:
        return sum(ring.other.get(what, 0) for ring in self.books.rings.values())

    @property
    def lost(self) -> int:
        return int(sum(counts.sum() for (term, *_), counts in self.books.tally.items() if term == "lost"))


def left(batch: Batch) -> list[Left]:
    """A batch as the model says it (times are for order: the model's own)."""
    found = []
    for row, head in enumerate(batch.heads):
        hole = batch.holes.get(row)
        data = batch.stream[batch.start[row] :][: batch.size[row]].tobytes()
        state, missing = (hole.state, hole.parts.tolist()) if hole else (None, [])
        found.append(Left(int(head["id"]), 0, int(head["flags"]), data, state, missing))
    return found


def plain(events: Iterable[Left]) -> list[tuple[Any, ...]]:
    return [(e.id, e.flags, e.data, e.state, e.missing) for e in events]


class Machine(RuleBasedStateMachine):
    """Programs on several CPUs take numbers, write chunks at any later time, on any CPU, twice or never."""

    @initialize(rings=st.integers(1, 4), start=st.integers(2, 1 << 40), room=st.sampled_from([12, 60, 4096]))
    def begin(self, rings: int, start: int, room: int) -> None:
        self.rings = [RingLog(n, position=n * 4096 * STRIDE, sequence=start + n) for n in range(rings)]
        boundary = {ring.number: ring.first for ring in self.rings}
        self.now = 1_000_000_000
        self.cursors: dict[int, int] = {}
        self.pending: list[tuple[np.ndarray[Any, Any], int, int]] = []
        self.heads_twice = self.contradicted = False
        self.pipe = Pipe(boundary, expiry=EXPIRY, limit=room * STRIDE)
        self.model = Model(boundary, EXPIRY, room * STRIDE)

    def _time(self, ahead: int) -> int:
        self.now += ahead
        return self.now

    @rule(
        kind=kinds,
        size=sizes,
        ring=st.integers(0, 3),
        ends=st.sampled_from([0, 0, 0, CUT, CAPPED]),
        n=st.integers(1, 8),
    )
    def whole(self, kind: int, size: int, ring: int, ends: int, n: int) -> None:
        """Events written in one go."""
        for _ in range(n):
            for chunk, at, sequence in self._event(kind, size, ring, ends):
                self.rings[at].write(chunk, self._time(800), sequence)

    @rule(kind=kinds, size=sizes, ring=st.integers(0, 3), ends=st.sampled_from([0, 0, CUT, CAPPED]))
    def nested(self, kind: int, size: int, ring: int, ends: int) -> None:
        """An event that took its numbers, and whose chunks come when they come."""
        self.pending += self._event(kind, size, ring, ends)

    def _event(
        self, kind: int, size: int, ring: int, ends: int
    ) -> list[tuple[np.ndarray[Any, Any], int, int]]:
        log = self.rings[ring % len(self.rings)]
        chunks = event(
            kind, event_id(log.number, log.sequence), data_of(by_number()[kind], size, self.now & 0xFF)
        )
        if ends and len(chunks) > 2:
            # The program saw half way that it cannot go on.
            chunks = chunks[: 1 + len(chunks) // 2]
            chunks[-1]["parts"], chunks[-1]["flags"] = len(chunks), ends
        first = log.take(len(chunks))
        return [(chunk, log.number, first + i) for i, chunk in enumerate(chunks)]

    @precondition(lambda self: self.pending)
    @rule(
        pick=st.integers(0, 1 << 16), n=st.integers(1, 6), elsewhere=st.one_of(st.none(), st.integers(0, 3))
    )
    def write(self, pick: int, n: int, elsewhere: int | None) -> None:
        """Chunks of such events are written; parts perhaps on another CPU (their numbers are then lost
        here)."""
        for _ in range(min(n, len(self.pending))):
            chunk, ring, sequence = self.pending.pop(pick % len(self.pending))
            other = (
                None if elsewhere is None or not chunk["part"] else self.rings[elsewhere % len(self.rings)]
            )
            time = self._time(100) - 150
            if other is None:
                self.rings[ring].write(chunk, time, sequence)
            else:
                other.write(chunk, time)

    @precondition(lambda self: self.pending)
    @rule(pick=st.integers(0, 1 << 16))
    def lose(self, pick: int) -> None:
        """The ring was full: a number without a chunk."""
        self.pending.pop(pick % len(self.pending))

    @rule(ring=st.integers(0, 3), pick=st.integers(0, 1 << 16), heads=st.booleans())
    def twice(self, ring: int, pick: int, heads: bool) -> None:
        """A chunk comes again, under its old number or (parts) a new one."""
        log = self.rings[ring % len(self.rings)]
        if log.chunks:
            chunk = log.chunks[-1 - pick % min(len(log.chunks), 40)]
            if chunk["part"][0] == 0:
                self.heads_twice = True
            log.write(
                chunk, self._time(10), int(chunk["sequence"][0]) if heads or not chunk["part"][0] else None
            )

    @rule(ring=st.integers(0, 3), pick=st.integers(0, 1 << 16), anew=st.booleans())
    def contradict(self, ring: int, pick: int, anew: bool) -> None:
        """A part says that its event ends with it, whatever others said; or its event is one of an earlier
        run."""
        log = self.rings[ring % len(self.rings)]
        parts = [chunk for chunk in log.chunks[-40:] if chunk["part"][0]]
        if parts:
            chunk = parts[pick % len(parts)].copy()
            chunk["parts"], chunk["flags"] = chunk["part"] + 1, CAPPED
            self.contradicted = True
            if anew:
                chunk["id"] = event_id(log.number, log.first - 1)
            log.write(chunk, self._time(10))

    @rule(ring=st.integers(0, 3), field=st.sampled_from(["kind", "size", "parts", "id", "length"]))
    def broken(self, ring: int, field: str) -> None:
        """A chunk that no program of ours wrote."""
        log = self.rings[ring % len(self.rings)]
        chunk = event(3, event_id(log.number, log.sequence))
        chunk[field] = 0 if field == "parts" else 999
        log.write(chunk, self._time(10))

    @rule(ahead=st.sampled_from([1_000, 1_000_000, 11_000_000, 41_000_000]), slack=st.integers(0, 3_000))
    def look(self, ahead: int, slack: int) -> None:
        """A pass over all rings."""
        found = look(self.rings, self.cursors, self._time(ahead) - slack - ahead // 2)
        self.pipe.look(found)
        self.model.look(found)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "pipe"):
            return
        got = [e for batch in self.pipe.batches for e in left(batch)]
        assert plain(got) == plain(self.model.left)
        assert len(set(self.pipe.ids)) == len(self.pipe.ids)
        waiting = sum(c.part == 0 for chunks in self.model.waiting.values() for c in chunks)
        held = int((self.pipe.merge.held() + self.pipe.assemble.held()).sum())
        left_or_lost = int(self.pipe.books.acknowledged.sum()) + self.pipe.lost
        assert len(self.model.came) + self.model.malformed + waiting == held + left_or_lost

    def teardown(self) -> None:
        if not hasattr(self, "pipe"):
            return
        self.pipe.finish()
        self.model.finish()
        self.agrees()
        assert not (self.pipe.merge.held() + self.pipe.assemble.held()).any()
        self._books()
        self._replays()

    def _books(self) -> None:
        """Every chunk has one fate, every gap is passed once, and the cut ends behind everything read."""
        fates = Counter({what: self.pipe.count(what) for what in FATES | {"evicted"}})
        assert +fates == +self.model.fates
        assert self.pipe.lost == self.model.malformed
        read = self.cursors.items()
        for ring in self.rings:
            if self.cursors.get(ring.number, ring.position) > ring.position:
                books = self.pipe.books.rings[ring.number]
                end = self.cursors[ring.number]
                assert books.position == end
                assert books.sequence == ring.expected(end)
                assert books.read == (end - ring.position) // STRIDE
                numbers = {int(c["sequence"][0]) for c in ring.chunks[: books.read]}
                repeats = books.read - len(numbers)
                assert books.gaps + repeats == books.sequence - ring.first - len(numbers)
        used = sum(len(chunks) for chunks in self._used())
        assert used + sum(n for what, n in fates.items() if what != "evicted") == sum(
            (end - self.rings[ring].position) // STRIDE for ring, end in read
        )

    def _used(self) -> Iterable[range]:
        for batch in self.pipe.batches:
            for row, head in enumerate(batch.heads):
                hole = batch.holes.get(row)
                size = int(batch.size[row])
                if head["parts"] == 1:
                    yield range(1)
                elif hole is None:
                    yield range(1 + -(-size // PAYLOAD))
                else:
                    came = set(range(1 + -(-size // PAYLOAD))) - set(hole.parts.tolist())
                    yield range(len(came))

    def _replays(self) -> None:
        """A run that starts at a passage's positions finds exactly the heads behind them, and the rest of the
        events."""
        positions = {ring.number: (ring.position, ring.first) for ring in self.rings}
        released: set[int] = set()
        before = Books()
        # A program writes an event's head before its parts; where a part was first, the cut may lie between.
        heads = self.model.came
        early = {c.id for c in self.model.seen if c.id in heads and c.ordinal < heads[c.id].ordinal}
        for batch in [None, *self.pipe.batches][:: 1 + len(self.pipe.batches) // 5]:
            for done in self.pipe.batches[before.number : 0 if batch is None else batch.passage.number]:
                before.retire(done.passage)
                positions |= done.passage.positions
                released |= set(done.heads["id"].tolist())
            again = Pipe({n: sequence for n, (_, sequence) in positions.items()}, expiry=1 << 60)
            cursors = {n: position for n, (position, _) in positions.items()}
            again.look(self._rest(cursors, {n: sequence for n, (_, sequence) in positions.items()}))
            again.finish()
            for n, books in self.pipe.books.rings.items():
                parts = [run.rings[n] for run in (before, again.books) if n in run.rings]
                assert sum(part.read for part in parts) == books.read
                assert sum(part.gaps for part in parts) == books.gaps
            if not self.heads_twice:
                assert sorted(again.ids) == sorted(set(self.pipe.ids) - released)
                whole = {e.id: e.data for e in self.model.left if e.state is None and e.id not in early}
                for e in (e for b in again.batches for e in left(b)):
                    assert self.contradicted or whole.get(e.id, e.data) == e.data

    def _rest(self, cursors: dict[int, int], expected: dict[int, int]) -> Pass:
        slices = tuple(
            ring.slice(
                cursors[ring.number], self.cursors.get(ring.number, ring.position), expected[ring.number]
            )
            for ring in self.rings
        )
        return Pass(slices, self.now, clock=0)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


def one_pass(*rings: RingLog, watermark: int = 1 << 40) -> Pass:
    return look(rings, {}, watermark)


def test_inline_and_joined_data_side_by_side() -> None:
    ring = RingLog(0)
    payloads = {}
    for i, (kind, size) in enumerate(
        [("exec", 12), ("fork", 0), ("exec", 500), ("process", 1), ("exec", 208)]
    ):
        schema = by_name()[kind]
        data = data_of(schema, size, i)
        payloads[ring.event(schema.number, data, time=1_000 + i)] = data
    pipe = Pipe()
    pipe.look(one_pass(ring))
    (batch,) = pipe.batches
    assert {e.id: e.data for e in left(batch)} == payloads
    assert batch.passage.positions == {0: (ring.end, ring.sequence)}
    assert batch.passage.chunks == {(0, "read"): len(ring.chunks)}
    exec_heads = batch.heads[batch.heads["kind"] == by_name()["exec"].number]
    assert exec_heads.view(by_name()["exec"].dtype)["environment_of"].tolist() == [12, 500, 208]


def test_a_batch_outlives_the_ring_memory() -> None:
    ring = RingLog(0)
    ring.event(1, bytes(range(200)) * 3, time=5)
    found = one_pass(ring)
    chunks = found.slices[0].chunks.copy()
    pipe = Pipe()
    pipe.look(Pass((Slice(0, 0, chunks),), found.watermark, 0))
    chunks[:] = 0
    assert [e.data for e in left(pipe.batches[0])] == [bytes(range(200)) * 3]


def test_a_promise_of_2_mib_over_many_passes_costs_one_copy_of_it() -> None:
    data = data_of(by_name()["exec"], 2 << 20)
    ring = RingLog(0)
    ring.event(1, data, time=1_000)
    for i, chunk in enumerate(ring.chunks):
        chunk["time"] = 1_000 + i
    pipe = Pipe()
    cursor = 0
    for end in range(100 * STRIDE, ring.end + 100 * STRIDE, 100 * STRIDE):
        end = min(end, ring.end)
        pipe.look(Pass((ring.slice(cursor, end),), 1_000 + end // STRIDE, 0))
        cursor = end
    assert [e.data for b in pipe.batches for e in left(b)] == [data]
    assert pipe.books.rings[0].read == len(ring.chunks)


def test_expiry_is_by_the_watermark_and_keeps_what_came() -> None:
    ring = RingLog(0)
    id = ring.event(1, data_of(by_name()["exec"], 3 * PAYLOAD), time=10)
    del ring.chunks[2]  # part 2 is on its way, for all that anyone can tell
    ring.event(3, time=20)
    pipe = Pipe(expiry=1_000)
    cursors: dict[int, int] = {}
    pipe.look(look([ring], cursors, 1_009))
    assert pipe.ids == []
    pipe.look(look([ring], cursors, 1_010))
    assert pipe.ids[0] == id
    (first, _) = [e for b in pipe.batches for e in left(b)]
    assert (first.state, first.missing) == ("lost", [2])
    whole = data_of(by_name()["exec"], 3 * PAYLOAD)
    assert first.data == whole[:PAYLOAD] + bytes(PAYLOAD) + whole[2 * PAYLOAD :]


def test_a_gap_settles_quickly_what_misses_it() -> None:
    ring = RingLog(0)
    ring.event(1, data_of(by_name()["exec"], 3 * PAYLOAD), time=10)
    del ring.chunks[2]
    pipe = Pipe()
    cursors: dict[int, int] = {}
    pipe.look(look([ring], cursors, 10_000_009))
    assert pipe.ids == []
    pipe.look(Pass((), 10_000_010, 0))
    assert [(e.state, e.missing) for b in pipe.batches for e in left(b)] == [("lost", [2])]
    assert pipe.books.rings[0].gaps == 1


def test_late_parts_are_counted_and_make_no_second_event() -> None:
    ring, other = RingLog(0), RingLog(1)
    ring.event(1, data_of(by_name()["exec"], 3 * PAYLOAD), time=10)
    late = ring.chunks.pop(2)
    pipe = Pipe(expiry=1_000)
    cursors: dict[int, int] = {}
    pipe.look(look([ring, other], cursors, 5_000))
    other.write(late, 6_000)
    pipe.look(look([ring, other], cursors, 7_000))
    assert len(pipe.ids) == 1
    assert pipe.count("late") == 1
    assert len(pipe.batches[-1]) == 0
    assert pipe.batches[-1].passage.positions == {1: (other.end, 2)}


def test_a_part_that_was_there_before_its_whole_event_is_a_duplicate() -> None:
    ring, other = RingLog(0), RingLog(1)
    data = data_of(by_name()["exec"], 3 * PAYLOAD)
    chunks = event(1, event_id(0, 1), data)
    other.write(chunks[2], 5)
    pipe = Pipe()
    cursors: dict[int, int] = {}
    pipe.look(look([ring, other], cursors, 10))
    assert pipe.batches == []
    ring.event(1, data, time=20)
    pipe.look(look([ring, other], cursors, 30))
    assert [e.data for b in pipe.batches for e in left(b)] == [data]
    assert pipe.count("duplicate") == 1
    assert not pipe.assemble.held().any()


def test_a_gap_stays_ahead_of_a_cut_that_ends_before_it() -> None:
    """And says nothing of parts whose head comes after it: they are waited for."""
    ring = RingLog(0)
    ring.event(4, time=10)
    ring.take(5)
    ring.event(1, data_of(by_name()["exec"], 2 * PAYLOAD), time=20)
    last = ring.chunks.pop()
    pipe = Pipe()
    cursors: dict[int, int] = {}
    pipe.look(look([ring], cursors, 20_000_000))
    assert pipe.batches[-1].passage.positions == {0: (STRIDE, 2)}
    assert pipe.batches[-1].passage.gaps == ()
    ring.chunks.append(last)
    pipe.look(look([ring], cursors, 20_000_001))
    assert pipe.batches[1].passage.gaps == (Gap(0, 2, 6, 0, 0, STRIDE),)
    assert pipe.books.rings[0].gaps == 5


def test_the_oldest_unfinished_holds_the_others_back_whatever_its_ring() -> None:
    """The younger one has the lower id, and what completes between the two must wait."""
    rings = [RingLog(0), RingLog(1)]
    data = data_of(by_name()["exec"], 2 * PAYLOAD)
    oldest = rings[1].event(1, data, time=10)
    between = rings[0].event(4, time=15)
    youngest = rings[0].event(1, data, time=20)
    parts = [ring.chunks.pop() for ring in rings]
    pipe = Pipe()
    cursors: dict[int, int] = {}
    pipe.look(look(rings, cursors, 30))
    assert pipe.ids == []
    for ring, part in zip(rings, parts, strict=True):
        ring.chunks.append(part)
    pipe.look(look(rings, cursors, 40))
    assert pipe.ids == [oldest, between, youngest]


def test_nothing_moves_nothing_comes() -> None:
    pipe = Pipe()
    pipe.look(Pass((), 1_000, 0))
    pipe.look(Pass((Slice(0, 0, np.empty(0, HEADER)),), 2_000, 0))
    pipe.finish()
    assert pipe.batches == []


def test_batches_are_bounded_and_each_has_its_own_cut() -> None:
    ring = RingLog(0)
    for i in range(5_000):
        ring.event(4, time=1_000 + i)
    pipe = Pipe()
    pipe.look(one_pass(ring))
    assert [len(batch) for batch in pipe.batches] == [4_096, 904]
    assert [b.passage.positions[0] for b in pipe.batches] == [
        (4_096 * STRIDE, 4_097),
        (5_000 * STRIDE, 5_001),
    ]


def test_passages_are_numbered_on_from_the_run_before() -> None:
    ring = RingLog(0)
    ring.event(4, time=1_000)
    assemble = Assemble({}, number=41)
    (merged,) = Merge()(one_pass(ring))
    assert [batch.passage.number for batch in assemble(merged)] == [42]


def test_held_chunks_are_bounded_and_what_is_evicted_is_counted() -> None:
    ring = RingLog(0)
    ring.event(1, data_of(by_name()["exec"], 3 * PAYLOAD), time=10)
    del ring.chunks[2]
    for i in range(200):
        ring.event(4, time=20 + i)
    pipe = Pipe(limit=100 * STRIDE)
    pipe.look(one_pass(ring, watermark=1_000))
    assert len(pipe.ids) == 201
    assert pipe.count("evicted") == 1


@pytest.mark.parametrize("flag", [CUT, CAPPED])
def test_an_event_that_ends_early_is_whole_and_says_so(flag: int) -> None:
    ring = RingLog(0)
    chunks = event(1, event_id(0, 1), data_of(by_name()["exec"], 5 * PAYLOAD))[:3]
    chunks[2]["parts"], chunks[2]["flags"] = 3, flag
    for i, chunk in enumerate(chunks):
        ring.write(chunk, 10 + i)
    pipe = Pipe()
    pipe.look(one_pass(ring))
    (only,) = left(pipe.batches[0])
    assert (only.flags, only.state, only.data) == (
        flag,
        None,
        data_of(by_name()["exec"], 5 * PAYLOAD)[: 2 * PAYLOAD],
    )


@settings(max_examples=150, deadline=None)
@given(
    noise=st.lists(st.binary(min_size=STRIDE, max_size=STRIDE), max_size=3),
    changes=st.lists(
        st.tuples(st.integers(0, 1 << 16), st.integers(0, 47), st.integers(0, 255)), max_size=12
    ),
    cuts=st.lists(st.integers(0, 40), max_size=3),
)
def test_whatever_stands_in_a_ring_every_head_leaves_or_is_booked(
    noise: list[bytes], changes: list[tuple[int, int, int]], cuts: Sequence[int]
) -> None:
    rings = [RingLog(n) for n in range(2)]
    for i in range(6):
        rings[i % 2].event(1 + i % 5, data_of(by_number()[1 + i % 5], i * 120), time=1_000 * i)
    for ring in rings:
        ring.chunks += [np.frombuffer(block, HEADER) for block in noise]
    memory = [np.concatenate(ring.chunks) for ring in rings]
    for row, at, value in changes:
        chunks = memory[row % 2]
        chunks.view(np.uint8).reshape(-1, STRIDE)[row // 2 % len(chunks), at] = value
    pipe = Pipe()
    cuts = [0, *sorted(cuts), 1 << 10]
    for number, (first, end) in enumerate(pairwise(cuts)):
        slices = tuple(Slice(n, first * STRIDE, chunks[first:end]) for n, chunks in enumerate(memory))
        pipe.look(Pass(slices, 3_000 * number, 0))
    pipe.finish()
    heads = sum(int(((c["part"] == 0) & (c["length"] & (1 << 30) == 0)).sum()) for c in memory)
    repeated = heads - len(pipe.ids) - pipe.lost
    assert 0 <= repeated <= pipe.count("duplicate")
    assert len(set(pipe.ids)) == len(pipe.ids)
    assert sum(ring.read for ring in pipe.books.rings.values()) == sum(map(len, memory))
    assert not (pipe.merge.held() + pipe.assemble.held()).any()
