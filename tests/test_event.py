"""Batches and how promises settle, against a model that looks at every byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.chunk import CAPPED, CUT, HEADER, PAYLOAD
from pipeline.event import UNKNOWN, Batch, Gap, Hole, Pass, Passage, Settled, Slice, count, settle
from pipeline.ledger import zeros
from pipeline.schema import KINDS, by_name, by_number
from tests.batches import batch_of, event, lost

EXEC = by_name()["exec"]
EXIT = by_name()["exit"]


@dataclass(frozen=True)
class Sent:
    """One event as assembly would hand it on."""

    pairs: tuple[tuple[int, int], ...]
    """(of, have) of each of exec's promises."""
    size: int
    missing: tuple[int, ...]
    state: str
    flags: int
    faults: int

    def settle(self) -> dict[str, tuple[int, Settled]]:
        head = np.zeros(1, HEADER)
        head["kind"], head["flags"], head["faults"] = EXEC.number, self.flags, self.faults
        view = head.view(EXEC.dtype)
        for promise, (of, have) in zip(EXEC.promises, self.pairs, strict=True):
            view[f"{promise.name}_of"], view[f"{promise.name}_have"] = of, have
        hole = Hole(self.state, np.array(self.missing, np.int64)) if self.missing else None  # type: ignore[arg-type]
        return settle(EXEC, head[0], self.size, hole)


@st.composite
def sent(draw: st.DrawFn) -> Sent:
    """Any event: whole, ended early, with any parts missing."""
    sizes = st.one_of(st.integers(0, 3), st.integers(0, 3 * PAYLOAD), st.just(PAYLOAD))
    haves = [draw(sizes) for _ in EXEC.promises]
    pairs = tuple((draw(st.sampled_from((have, have, have + 5, UNKNOWN))), have) for have in haves)
    total = sum(haves)
    size = draw(st.one_of(st.just(total), st.integers(0, total)))
    parts = -(-total // PAYLOAD)
    missing = tuple(sorted(draw(st.sets(st.integers(1, parts))))) if parts and draw(st.booleans()) else ()
    return Sent(
        pairs,
        size,
        missing,
        draw(st.sampled_from(("lost", "expired"))),
        draw(st.sampled_from((0, 0, CUT, CAPPED, CUT | CAPPED))),
        draw(st.one_of(st.just(0), st.integers(0, (1 << len(EXEC.promises)) - 1))),
    )


@given(sent())
def test_every_byte_that_came_is_in_a_span_and_no_other(subject: Sent) -> None:
    gone = {at for part in subject.missing for at in range((part - 1) * PAYLOAD, part * PAYLOAD)}
    start = 0
    for (of, have), (first, how) in zip(subject.pairs, subject.settle().values(), strict=True):
        assert first == start, "promises' data stand one after another"
        came = [at for at in range(start, start + have) if at < subject.size and at not in gone]
        spanned = [start + at for a, b in how.spans for at in range(a, b)]
        assert spanned == came
        assert how.have == len(came)
        assert how.of == (None if of == UNKNOWN else of)
        assert all(a[1] < b[0] for a, b in zip(how.spans, how.spans[1:], strict=False)), "spans are apart"
        assert all((part - 1) * PAYLOAD < start + have and part * PAYLOAD > start for part in how.parts)
        start += have


@given(sent())
def test_complete_says_exactly_that_all_came(subject: Sent) -> None:
    settled = zip(subject.pairs, subject.settle().values(), strict=True)
    for bit, ((of, have), (_, how)) in enumerate(settled):
        fault = bool(subject.faults >> bit & 1)
        if how.state == "complete":
            assert how.have == have == of
            assert how.spans == ((0, have),)
            assert not how.parts
            assert not fault
        else:
            assert fault or how.parts or how.have < have or have < of


@given(sent())
def test_lost_parts_say_so_and_nothing_expires_without_them(subject: Sent) -> None:
    for _, how in subject.settle().values():
        if how.parts:
            assert how.state == subject.state
        else:
            assert how.state != "expired"


def pair(
    of: int, have: int, size: int, *, flags: int = 0, faults: int = 0, missing: Sequence[int] = ()
) -> Settled:
    """How argv settles that is all of an event's data."""
    pairs = tuple((of, have) if promise.name == "argv" else (0, 0) for promise in EXEC.promises)
    found = Sent(pairs, size, tuple(missing), "lost", flags, faults).settle()
    assert {name for name, (_, how) in found.items() if how.state != "complete"} <= {"argv"}
    return found["argv"][1]


ARGV = 1 << [promise.name for promise in EXEC.promises].index("argv")


@pytest.mark.parametrize(
    ("how", "state", "have", "of"),
    [
        (pair(300, 300, 300), "complete", 300, 300),
        (pair(0, 0, 0), "complete", 0, 0),
        (pair(500, 300, 300), "capped", 300, 500),
        (pair(UNKNOWN, 300, 300), "capped", 300, None),
        (pair(300, 300, 208, flags=CAPPED), "capped", 208, 300),
        (pair(300, 300, 208, flags=CUT), "fault", 208, 300),
        (pair(300, 300, 208), "lost", 208, 300),
        (pair(300, 300, 300, faults=ARGV), "fault", 300, 300),
        (pair(0, 0, 0, faults=ARGV), "fault", 0, 0),
        (pair(900, 900, 900, missing=[2]), "lost", 692, 900),
        (pair(900, 900, 900, missing=[2], flags=CUT, faults=ARGV), "lost", 692, 900),
    ],
)
def test_states(how: Settled, state: str, have: int, of: int | None) -> None:
    assert (how.state, how.have, how.of) == (state, have, of)


def test_a_hole_concerns_the_promises_that_lie_in_it() -> None:
    """Part 2 holds the end of the path and the beginning of argv; the environment is whole."""
    values = event("exec", 1, path=b"p" * 300, argv=b"a" * 200, environment=b"e" * 50, hole=lost(2))
    batch = batch_of([values])
    found = settle(EXEC, batch.heads[0], int(batch.size[0]), batch.holes[0])
    assert {name: how.state for name, (_, how) in found.items()} == {
        "executable": "complete",
        "cwd": "complete",
        "path": "lost",
        "interpreter": "complete",
        "argv": "lost",
        "environment": "complete",
    }
    assert found["path"][1].spans == ((0, 208),)
    assert found["argv"] == (300, Settled("lost", 84, 200, ((116, 200),), (2,)))
    assert found["environment"][0] == 500


def test_a_kind_without_promises_has_nothing_to_settle() -> None:
    head = batch_of([event("exit", 1)]).heads[0]
    assert settle(EXIT, head, 0, None) == {}


# ---- batches


def batch(n: int = 6) -> Batch:
    kinds = ("fork", "exec", "exit")
    made = batch_of(
        event("exec", i, argv=b"x" * 300 + bytes([i]), hole=lost(1)) if i % 3 == 1 else event(kinds[i % 3], i)
        for i in range(n)
    )
    return Batch(
        made.heads, made.stream, made.start, made.size, made.clock, made.passage, made.holes,
        {"name": np.array([f"n{i}" for i in range(n)], object)},
    )  # fmt: skip


@given(st.lists(st.booleans(), min_size=6, max_size=6))
def test_take_keeps_rows_with_all_that_belongs_to_them(chosen: list[bool]) -> None:
    whole, rows = batch(), np.flatnonzero(chosen)
    for taken in (whole.take(np.array(chosen)), whole.take(rows)):
        assert len(taken) == len(rows)
        assert taken.passage is whole.passage
        for new, old in enumerate(rows.tolist()):
            assert taken.heads[new] == whole.heads[old]
            assert taken.columns["name"][new] == f"n{old}"
            assert taken.holes.get(new) is whole.holes.get(old)
            a, b = int(taken.start[new]), int(taken.size[new])
            assert taken.stream[a : a + b].tobytes() == _data(whole, old)
        assert len(taken.holes) == sum(old % 3 == 1 for old in rows.tolist())
        assert taken.counts.tolist() == count(whole.heads["kind"][rows]).tolist()


def _data(batch: Batch, row: int) -> bytes:
    a, b = int(batch.start[row]), int(batch.size[row])
    return batch.stream[a : a + b].tobytes()


@given(st.lists(st.sampled_from(sorted(by_number())), max_size=20))
def test_count_says_how_many_there_are_of_each_kind(kinds: list[int]) -> None:
    found = count(np.array(kinds, np.uint16))
    assert len(found) == KINDS
    assert found.tolist() == [kinds.count(number) for number in range(KINDS)]


def test_a_pass_counts_heads_of_kinds_that_exist() -> None:
    chunks = np.zeros(5, HEADER)
    chunks["kind"] = [1, 1, 3, KINDS, 65_535]
    chunks["part"] = [0, 1, 0, 0, 0]
    look = Pass((Slice(0, 0, chunks), Slice(1, 0, chunks[:1])), 0, 0)
    assert look.counts.tolist() == [0, 2, 0, 1, *[0] * (KINDS - 4)]
    assert Pass((), 0, 0).counts.tolist() == zeros().tolist()


def test_a_gap_has_as_many_numbers_as_it_leaves_out() -> None:
    assert len(Gap(0, 5, 5, 0, 0, 0)) == 1
    assert len(Gap(0, 5, 9, 0, 0, 0)) == 5


# ---- passages

keys = st.tuples(
    st.sampled_from(("filtered", "lost")), st.sampled_from(("filter", "sink")), st.sampled_from("ab")
)


Entry = tuple[tuple[str, str, str], int, int]
"""Key of the tally, kind, how many."""


@given(st.lists(st.tuples(keys, st.sampled_from(sorted(by_number())), st.integers(1, 9)), max_size=30))
def test_a_passage_books_every_event_under_its_reason(entries: list[Entry]) -> None:
    passage = Passage(1, {})
    for (term, stage, reason), kind, n in entries:
        counts = zeros()
        counts[kind] = n
        passage.book(term, stage, reason, counts)  # type: ignore[arg-type]
        counts[kind] = 1_000_000  # what a stage does with its own array is not booked
    assert passage.tally.keys() == {key for key, _, _ in entries}
    for key, counts in passage.tally.items():
        for number in range(KINDS):
            assert counts[number] == sum(n for k, kind, n in entries if (k, kind) == (key, number))
