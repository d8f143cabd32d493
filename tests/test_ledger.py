"""The ledger: a world of events that go every way gives balanced books; a term that is off by one shows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.event import Gap, Ints, Passage
from pipeline.ledger import SHOWN, TERMS, Books, RingBooks, Statement, add, zeros
from pipeline.schema import by_name, by_number

WAYS = (
    "acknowledged",
    "in_outbox",
    "in_flight",
    ("filtered", "kernel", "uid"),
    ("filtered", "filter", "expression"),
    ("lost", "ring", "full"),
    ("lost", "kernel", "skipped"),
    ("lost", "kafka", "too large"),
)
"""What can become of an event."""
Way = str | tuple[str, str, str]
World = list[tuple[int, Way]]
"""Kind and way of each event."""
RINGS = (0, 1)

worlds = st.lists(
    st.tuples(st.sampled_from(sorted(by_number())), st.sampled_from(WAYS)), min_size=1, max_size=40
)
chunk_fates = st.lists(
    st.tuples(st.sampled_from(RINGS), st.sampled_from(("read", "dropped", "unread"))), min_size=1, max_size=40
)


def counts(kinds: Iterable[int]) -> Ints:
    found = zeros()
    for kind in kinds:
        found[kind] += 1
    return found


def statement(world: World, chunks: list[tuple[int, str]]) -> Statement:
    """The ledger of a world at a quiet moment; each term is counted by itself, from its own events."""

    def gone(way: Way) -> Ints:
        return counts(kind for kind, went in world if went == way)

    fates = Counter(chunks)
    attempted = counts(kind for kind, _ in world)
    return Statement(
        attempted=attempted,
        attempted_after=attempted.copy(),
        acknowledged=gone("acknowledged"),
        tally={way: gone(way) for way in WAYS if isinstance(way, tuple)},
        in_outbox=gone("in_outbox"),
        in_flight=gone("in_flight"),
        rings={
            ring: {
                "chunks_attempted": sum(r == ring for r, _ in chunks),
                "chunks_attempted_after": sum(r == ring for r, _ in chunks),
                "chunks_read": fates[ring, "read"],
                "gaps": fates[ring, "dropped"],
                "drops": fates[ring, "dropped"],
                "unread": fates[ring, "unread"],
            }
            for ring in RINGS
        },
    )


def off(array: Ints, kind: int, by: int) -> Ints:
    changed = array.copy()
    changed[kind] += by
    return changed


def falsified(true: Statement, kind: int, by: int) -> Iterable[tuple[str, Statement]]:
    """Every statement with one term of one kind off. A counter that is wrong is so at both readings."""
    yield (
        "attempted",
        replace(
            true, attempted=off(true.attempted, kind, by), attempted_after=off(true.attempted_after, kind, by)
        ),
    )
    for term in ("acknowledged", "in_outbox", "in_flight"):
        yield term, replace(true, **cast(Any, {term: off(getattr(true, term), kind, by)}))
    for key, booked in true.tally.items():
        yield "/".join(key), replace(true, tally={**true.tally, key: off(booked, kind, by)})


FIGURES = ("chunks_attempted", "chunks_read", "gaps", "drops", "unread")


def falsified_rings(true: Statement, by: int) -> Iterable[tuple[str, Statement]]:
    for ring, figures in true.rings.items():
        for name in FIGURES:
            changed = {**figures, name: figures[name] + by}
            if name == "chunks_attempted":
                changed["chunks_attempted_after"] += by
            yield f"{ring} {name}", replace(true, rings={**true.rings, ring: changed})


@given(worlds, chunk_fates)
def test_any_world_is_balanced(world: World, chunks: list[tuple[int, str]]) -> None:
    assert statement(world, chunks).balanced


@pytest.mark.parametrize("by", [1, -1])
@given(worlds, chunk_fates)
def test_every_term_of_every_kind_that_is_off_by_one_shows(
    by: int, world: World, chunks: list[tuple[int, str]]
) -> None:
    true = statement(world, chunks)
    for kind in {kind for kind, _ in world}:
        seen = set()
        for name, wrong in falsified(true, kind, by):
            seen.add(name)
            assert not wrong.balanced, f"{name} of kind {kind}"
            assert not wrong.to_plain()["balanced"]
        assert len(seen) == 4 + sum(isinstance(way, tuple) for way in WAYS)


@pytest.mark.parametrize("by", [1, -1])
@given(worlds, chunk_fates)
def test_every_figure_of_every_ring_that_is_off_by_one_shows(
    by: int, world: World, chunks: list[tuple[int, str]]
) -> None:
    for name, wrong in falsified_rings(statement(world, chunks), by):
        assert not wrong.balanced, name


@given(worlds, chunk_fates, st.sampled_from(TERMS))
def test_one_kind_cannot_make_good_for_another(
    world: World, chunks: list[tuple[int, str]], term: str
) -> None:
    """The sums agree, the kinds do not."""
    true, (one, other) = statement(world, chunks), sorted(by_number())[:2]
    up = dict(falsified(true, one, 1))
    name = {"filtered": "filtered/kernel/uid", "lost": "lost/ring/full"}.get(term, term)
    wrong = dict(falsified(up[name], other, -1))[name]
    assert wrong.to_plain()[term] == true.to_plain()[term]
    assert not wrong.balanced


def test_what_is_booked_under_no_known_term_is_not_accounted_for() -> None:
    true = statement([(1, "acknowledged"), (1, ("lost", "ring", "full"))], [(0, "read")])
    assert not replace(true, tally={("mislaid", "ring", "full"): counts([1])}).balanced


def test_while_events_come_in_the_rest_lies_between_two_looks() -> None:
    """Attempted is read first and last; what came in between may be in the other terms or not."""
    still = statement([(1, "acknowledged")] * 5, [(0, "read")] * 5)
    ring = {**still.rings[0], "chunks_attempted_after": 8, "drops": 1}
    live = replace(still, attempted_after=counts([1] * 8), rings={0: ring})
    for more in range(4):
        seen = {**ring, "chunks_read": 5 + more}
        assert replace(live, acknowledged=counts([1] * (5 + more)), rings={0: seen}).balanced
    for events, chunks in ((4, 5), (9, 5), (5, 4), (5, 9)):
        seen = {**ring, "chunks_read": chunks}
        assert not replace(live, acknowledged=counts([1] * events), rings={0: seen}).balanced


# ---- what is printed

RING_KEYS = {"chunks_attempted", "chunks_read", "gaps", "drops"}


@given(worlds, chunk_fates)
def test_the_keys_of_ledger_json(world: World, chunks: list[tuple[int, str]]) -> None:
    """Other people's programs read these; what they say is counted again, from the world."""
    plain = json.loads(json.dumps(statement(world, chunks).to_plain()))
    also = ("balanced", "complete_until", "events", "rings", "losses", "filters", "troubles")
    assert {*SHOWN, *also} == plain.keys()
    assert plain["balanced"] is True
    assert plain["attempted"] == len(world)
    terms = Counter(way if isinstance(way, str) else way[0] for _, way in world)
    assert {name: plain[name] for name in TERMS[1:]} == {name: terms[name] for name in TERMS[1:]}
    assert plain["events"].keys() == by_name().keys()
    for name, schema in by_name().items():
        own = [way for kind, way in world if kind == schema.number]
        of_kind = Counter(way if isinstance(way, str) else way[0] for way in own)
        assert plain["events"][name] == {
            "attempted": len(own),
            **{term: of_kind[term] for term in TERMS[1:]},
            "assembled": 0,
            "encoded": 0,
        }
    assert plain["rings"].keys() == {"0", "1"}
    assert all(ring.keys() >= RING_KEYS for ring in plain["rings"].values())
    for key, term in (("losses", "lost"), ("filters", "filtered")):
        booked = Counter((kind, way) for kind, way in world if way[0] == term)
        assert {(row["stage"], row["reason"], row["kind"]): row["count"] for row in plain[key]} == {
            (way[1], way[2], by_number()[kind].name): n for (kind, way), n in booked.items()
        }
        assert all(row.keys() == {"stage", "reason", "kind", "count"} for row in plain[key])


def test_a_kind_that_has_no_name_is_still_printed() -> None:
    true = statement([(1, "acknowledged")], [(0, "read")])
    odd = replace(true, tally={("lost", "merge", "malformed"): counts([31, 31])})
    assert odd.to_plain()["losses"] == [
        {"stage": "merge", "reason": "malformed", "kind": "unknown", "count": 2}
    ]


# ---- the books in user space

figures = st.integers(0, 1 << 40)
names = st.text(max_size=8)
kinds = st.lists(st.sampled_from(sorted(by_number())), max_size=9).map(counts)
tallies = st.dictionaries(st.tuples(names, names, names), kinds, max_size=5)
ring_books = st.builds(
    RingBooks, figures, figures, figures, st.integers(-9, 9), st.dictionaries(names, figures)
)
some_books = st.builds(
    Books, figures, kinds, tallies, st.dictionaries(st.integers(0, 1023), ring_books, max_size=4)
)


def same(one: Books, other: Books) -> bool:
    return (
        one.number == other.number
        and one.acknowledged.tolist() == other.acknowledged.tolist()
        and {k: v.tolist() for k, v in one.tally.items()} == {k: v.tolist() for k, v in other.tally.items()}
        and one.rings == other.rings
    )


@given(some_books)
def test_books_come_back_from_what_a_checkpoint_stores(books: Books) -> None:
    stored = msgpack.packb(books.to_plain())
    back = Books.from_plain(msgpack.unpackb(stored, strict_map_key=False))
    assert same(back, books)
    assert back.acknowledged.dtype == np.int64
    assert all(n.dtype == np.int64 for n in back.tally.values())


@given(some_books, kinds)
def test_plain_books_stand_still_while_the_others_go_on(books: Books, more: Ints) -> None:
    """They are stored by a thread, while the next batches are retired."""
    plain = books.to_plain()
    before = json.dumps(plain)
    passage = Passage(books.number + 1, {0: (256, 2)})
    passage.book("lost", "sink", "test", more)
    passage.chunks.update({(ring, "orphan"): 1 for ring in books.rings})
    books.retire(passage)
    books.acknowledged += more
    assert json.dumps(plain) == before


@given(st.lists(st.tuples(st.sampled_from(RINGS), st.integers(0, 9), kinds), max_size=12))
def test_retiring_adds_up(way: list[tuple[int, int, Ints]]) -> None:
    books = Books()
    tally: dict[tuple[str, str, str], Any] = {}
    for number, (ring, read, lost) in enumerate(way, 1):
        passage = Passage(
            number,
            {ring: (256 * number, number)},
            gaps=(Gap(ring, 10, 14, 0, 0, 0), Gap(ring, 12, 12, 0, 0, 0, filled=True)),
            chunks={(ring, "read"): read, (ring, "orphan"): 2},
        )
        passage.book("lost", "sink", "test", lost)
        add(tally, passage.tally)
        books.retire(passage)
    assert books.number == len(way)
    assert {k: v.tolist() for k, v in books.tally.items()} == {k: v.tolist() for k, v in tally.items()}
    for ring in RINGS:
        own = [(number, read) for number, (r, read, _) in enumerate(way, 1) if r == ring]
        if not own:
            assert ring not in books.rings
            continue
        last = own[-1][0]
        expected = RingBooks(
            256 * last, last, sum(read for _, read in own), 4 * len(own), {"orphan": 2 * len(own)}
        )
        assert books.rings[ring] == expected


def test_gaps_and_chunks_of_a_ring_that_did_not_move_count_too() -> None:
    books = Books()
    books.retire(Passage(1, {}, (Gap(3, 1, 2, 0, 0, 0),), {(4, "malformed"): 1}))
    assert books.rings == {3: RingBooks(gaps=2), 4: RingBooks(other={"malformed": 1})}


def test_a_tally_takes_another_one_in_and_leaves_it_alone() -> None:
    key = ("lost", "sink", "test")
    one, other = {key: counts([1])}, {key: counts([1, 2]), ("filtered", "filter", "x"): counts([3])}
    add(one, other)
    add(one, other)
    assert one[key].tolist() == counts([1, 1, 1, 2, 2]).tolist()
    assert other[key].tolist() == counts([1, 2]).tolist()
    assert one["filtered", "filter", "x"].tolist() == counts([3, 3]).tolist()
