"""The contract of a stage (pipeline/stages/stage.py), checked on every stage that there is."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import ormsgpack
import pytest
import trio

from pipeline.app import Tap
from pipeline.chunk import PAYLOAD, ring_of, sequence_of
from pipeline.columns import Columns
from pipeline.event import Batch, Beat, Encoded, Pass, Passage
from pipeline.ledger import TERMS, zeros
from pipeline.notices import NOTICES
from pipeline.redact import Redaction
from pipeline.schema import by_name
from pipeline.stages.assemble import Assemble
from pipeline.stages.encode import Encode
from pipeline.stages.enrich import Enrich
from pipeline.stages.filter import Filter, Judge
from pipeline.stages.merge import Merge, Merged
from pipeline.stages.stage import Countable, Link, Stage, run
from pipeline.stages.tell import Look, Tell
from tests.batches import HOST, FixedAnswers
from tests.chunks import RingLog, data_of, look

SURFACES = dict.fromkeys(by_name(), "tracepoint")
REDACTION = Redaction(["PATH"], [])

# In the order in which they stand in the pipeline: each is fed with what comes out of the one before.
STAGES: dict[str, Callable[[], Stage[Any, Any]]] = {
    "merge": Merge,
    "assemble": lambda: Assemble({}, expiry=20_000),
    "enrich": lambda: Enrich(FixedAnswers()),
    "filter": lambda: Filter(Judge("kind <> 'fork'", lambda said: None), Columns(HOST, SURFACES, REDACTION)),
    "encode": lambda: Encode(HOST, SURFACES, REDACTION),
    "tell": lambda: Tell(HOST, lambda until: Look(until, {}, (), {}), {}, 0),
    "shown": lambda: Tap("shown", lambda batch: None),
}
every_stage = pytest.mark.parametrize("name", STAGES)


def passes() -> list[Pass]:
    """Looks at two rings: events of all sizes, a head that makes no sense, a part that never comes."""
    rings = [RingLog(0), RingLog(1)]
    cursors: dict[int, int] = {}
    found = [Pass((), 500, 0, Beat(500))]
    now = 1_000
    for step in range(12):
        for i, (kind, size) in enumerate(
            [("fork", 0), ("exec", 20), ("exec", 900), ("exit", 0), ("process", 300)]
        ):
            schema = by_name()[kind]
            rings[i % 2].event(schema.number, data_of(schema, size, step), time=now)
            now += 700
        if step == 4:
            rings[0].event(by_name()["exec"].number, bytes(3 * PAYLOAD), time=now)
            del rings[0].chunks[-2]
            now += 700
        found += [look(rings, cursors, now - 1_000), Pass((), now, 0, Beat(now) if step % 4 == 0 else None)]
    # Chunks that make no event leave a batch without any.
    rings[1].event(by_name()["exit"].number, time=now)
    rings[1].chunks[-1]["size"] = 5_000
    found.append(look(rings, cursors, now + 1_000))
    rings[0].event(by_name()["exit"].number, time=now + 2_000)
    return [*found, look(rings, cursors, now + 1_500)]


def booked(things: Iterable[Any]) -> Any:
    """Events per kind that are booked on what came."""
    passages = (thing.passage for thing in things if isinstance(thing, Batch | Encoded))
    terms = (item for passage in passages for item in passage.tally.items())
    return sum((counts for (term, _, _), counts in terms if term in TERMS), zeros())


@cache
def upstream(name: str) -> tuple[tuple[str, Callable[[], Stage[Any, Any]]], ...]:
    """The stages before one."""
    names = list(STAGES)
    return tuple((n, STAGES[n]) for n in names[: names.index(name)])


def inputs_of(name: str) -> list[Any]:
    """What comes to a stage; made anew each time, because passages are written to on their way."""
    things: list[Any] = passes()
    for _, make in upstream(name):
        things = through(make(), things)
    return things


def through(stage: Stage[Any, Any], things: Iterable[Any]) -> list[Any]:
    """All that a stage makes of its input."""
    found = [out for thing in things for out in stage(thing)]
    return [*found, *stage.finish()]


def events(things: Sequence[Any]) -> list[tuple[int, int]]:
    """(ring, sequence) of the heads in a stream, in order."""
    if things and isinstance(things[0], Pass):
        heads = np.concatenate([s.chunks[s.chunks["part"] == 0] for thing in things for s in thing.slices])
        ids = heads["id"][np.argsort(heads["time"], kind="stable")]
    elif things and isinstance(things[0], Merged):
        order = [thing.rank.argsort() for thing in things]
        ids = np.concatenate([t.id[o][t.part[o] == 0] for t, o in zip(things, order, strict=True)])
    elif things and isinstance(things[0], Batch):
        ids = np.concatenate([thing.heads["id"] for thing in things])
    else:
        families = (item for thing in things for item in thing.records.items())
        values = (v for family, records in families if family not in NOTICES for v in records.values)
        return [(record["ring"], record["sequence"]) for record in map(ormsgpack.unpackb, values)]
    return list(zip(ring_of(ids).tolist(), sequence_of(ids).tolist(), strict=True))


def passages(things: Iterable[Any]) -> list[Passage]:
    return [thing.passage for thing in things if isinstance(thing, Batch | Encoded)]


def counted(things: Iterable[Countable]) -> Any:
    return sum((thing.counts for thing in things), zeros())


@every_stage
def test_order_is_kept_and_nothing_comes_that_was_not_there(name: str) -> None:
    came = events(inputs_of(name))
    went = events(through(STAGES[name](), inputs_of(name)))
    left = iter(came)
    assert went
    assert all(event in left for event in went), "what went on is a part of what came, in its order"


@every_stage
def test_what_came_in_is_held_or_gone_on_or_booked_after_every_call(name: str) -> None:
    stage, came, went, before = STAGES[name](), zeros(), zeros(), zeros()
    known: list[Any] = []
    for thing in inputs_of(name):
        came += thing.counts
        before += booked([thing])
        out = list(stage(thing))
        known += out
        went += counted(out)
        assert came.tolist() == (went + booked(known) - before + stage.held()).tolist()
    known += (out := list(stage.finish()))
    assert came.tolist() == (went + counted(out) + booked(known) - before).tolist()
    assert not stage.held().any()


@every_stage
def test_a_passage_is_neither_lost_nor_overtaken(name: str) -> None:
    came = [passage.number for passage in passages(inputs_of(name))]
    went = [passage.number for passage in passages(through(STAGES[name](), inputs_of(name)))]
    assert went == (came or list(range(1, len(went) + 1)))


@pytest.mark.parametrize("name", list(STAGES)[2:])
def test_an_empty_batch_goes_on_with_its_passage(name: str) -> None:
    things = [thing for thing in inputs_of(name) if not len(thing)]
    assert things
    out = through(STAGES[name](), things)
    assert [passage.positions for passage in passages(out)] == [thing.passage.positions for thing in things]


@every_stage
async def test_nothing_is_lost_when_the_input_ends(name: str) -> None:
    things = inputs_of(name)
    source: Link[Any] = Link("in", len(things))
    target: Link[Any] = Link("out")
    await source.send(things)
    source.close()
    found = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, STAGES[name](), source, target)
        async for out in target:
            found.append(out)
    assert events(found) == events(through(STAGES[name](), inputs_of(name)))
    assert not (source.held() + target.held()).any()


@every_stage
async def test_a_blocked_output_blocks_the_input(name: str, autojump_clock: trio.abc.Clock) -> None:
    things = inputs_of(name)
    taken = 0

    async def feed(link: Link[Any]) -> None:
        nonlocal taken
        for thing in things:
            await link.send([thing])
            taken += 1
        link.close()

    source: Link[Any] = Link("in", 0)
    target: Link[Any] = Link("out", 1)
    found = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed, source)
        nursery.start_soon(run, STAGES[name](), source, target)
        await trio.testing.wait_all_tasks_blocked()
        assert taken < len(things) // 2
        before = taken
        await trio.sleep(1)
        assert taken == before
        async for out in target:
            found.append(out)
    assert taken == len(things)
    assert events(found) == events(through(STAGES[name](), inputs_of(name)))


@every_stage
def test_no_stage_looks_at_a_clock_or_a_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a stage asked the world by itself")

    expected = events(through(STAGES[name](), inputs_of(name)))
    things, stage = inputs_of(name), STAGES[name]()
    with monkeypatch.context() as patched:
        for clock in ("time", "time_ns", "monotonic", "monotonic_ns", "clock_gettime", "clock_gettime_ns"):
            patched.setattr(time, clock, refuse)
        patched.setattr(builtins, "open", refuse)
        found = through(stage, things)
    assert events(found) == expected
