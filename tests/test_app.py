"""A whole pipeline over rings of our own: from chunks to a local log, through ends of every sort."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
import trio.testing
from pydantic import TypeAdapter

from pipeline import app, books, place
from pipeline.app import Pipeline, Tap
from pipeline.chunk import PAYLOAD, event_id
from pipeline.clock import Clock
from pipeline.config import Config
from pipeline.event import Batch, Ints
from pipeline.ledger import Books, Statement
from pipeline.notices import HEARTBEAT, LOSS, NOTICES, TYPES
from pipeline.schema import by_name
from pipeline.sinks.log import LogSink
from pipeline.stages.filter import Judge
from pipeline.stages.stage import Link
from pipeline.store import LOG, OUTBOX, Store
from tests import chunks
from tests.batches import batch_of, event
from tests.encoded import stream
from tests.kernel_ring import Attached, KernelRing, boottime
from tests.told import kinds_lost, numbers_lost

ARGV = b"".join(b"argument %d\0" % i for i in range(80))


class World:
    """What is attached, what was written into its rings, and what came out."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.kernel = [KernelRing(0, 256, start=1_000), KernelRing(1, 256, start=2_000)]
        self.attached = Attached(state, self.kernel)
        self.written: list[int] = []
        self.said: list[str] = []

    def write(self, kind: str, data: bytes = b"", ring: int = 0, **given: Any) -> None:
        """One event."""
        kernel = self.kernel[ring]
        id = event_id(ring, int(kernel.books["sequence"]))
        if data:
            given |= {
                "argv_of": len(data),
                "argv_have": len(data),
                "environment_of": 0,
                "environment_have": 0,
            }
        if kernel.event(kind, data, pid=100 + len(self.written), start=10_000_000, **given):
            self.written.append(id)

    def some(self, n: int = 30) -> None:
        """Events of several kinds and sizes in both rings."""
        for i in range(n):
            self.write(("exec", "fork", "exit")[i % 3], ARGV if i % 3 == 0 else b"", ring=i % 2)

    def pipeline(self, *, judge: Judge | None = None, expiry: float = 0.1, **given: Any) -> Pipeline:
        config = Config(state=self.state, quiet=True, expiry=expiry, **given)
        return Pipeline(config, place.Folder(self.state), self.attached, [], judge, self.said.append)

    def stored(self) -> list[dict[str, Any]]:
        """All that the log holds."""
        store = Store(self.state / LOG, make=False)
        values = [value for row in store.rows() for found in row.unpack().values() for value in found.values]
        store.close()
        return [msgpack.unpackb(value) for value in values]

    def records(self) -> list[dict[str, Any]]:
        """The events that the log holds."""
        return [record for record in self.stored() if record["kind"] not in NOTICES]

    def notices(self, kind: str) -> list[dict[str, Any]]:
        """The notices of one kind that the log holds."""
        return [record for record in self.stored() if record["kind"] == kind]

    def ids(self) -> list[int]:
        return [record["id"] for record in self.records()]

    @property
    def is_empty(self) -> bool:
        """Everything in the rings was given free."""
        return all(int(k.memory.consumer[0]) == int(k.memory.producer[0]) for k in self.kernel)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(tmp_path)
    monkeypatch.setattr(app, "SETTLE", 0.01)
    yield world
    for ring in world.kernel:
        ring.close()


@asynccontextmanager
async def running(pipeline: Pipeline, *, detaching: bool) -> AsyncIterator[list[bool]]:
    """A pipeline that runs inside, and is told to end by a signal. Yields a list for what `run` returns."""
    ends: list[bool] = []

    async def run() -> None:
        ends.append(await pipeline.run(detaching=detaching))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            yield ends
            tell()


def tell() -> None:
    """What Ctrl-C does."""
    os.kill(os.getpid(), signal.SIGINT)


async def until(true: Callable[[], bool]) -> None:
    """Look until it is so."""
    for _ in range(2_000):
        if true():
            return
        await trio.sleep(0.01)
    pytest.fail("it never was")


def safe(pipeline: Pipeline) -> int:
    """Events that are acknowledged."""
    return int(pipeline.statement().acknowledged.sum())


def unread(pipeline: Pipeline) -> int:
    """Chunks that stand in the rings."""
    return sum(ring["unread"] for ring in pipeline.statement().rings.values())


async def until_safe(pipeline: Pipeline, n: int) -> None:
    await until(lambda: safe(pipeline) == n)


async def test_every_event_becomes_one_record_in_order(world: World) -> None:
    pipeline = world.pipeline()
    async with running(pipeline, detaching=True) as ends:
        world.some()
        await until_safe(pipeline, 30)
        world.some()
    assert ends == [True]
    records = world.records()
    assert [record["id"] for record in records] == world.written
    assert all(r["argv"] == ARGV.decode().split("\0")[:-1] for r in records if r["kind"] == "exec")
    plain = pipeline.statement().to_plain()
    assert plain["balanced"] is True
    assert plain["attempted"] == plain["acknowledged"] == 60
    assert plain["in_flight"] == 0
    assert world.is_empty
    assert not world.attached.linked, "nothing came in after the end began"


async def test_a_live_ledger_is_balanced_and_can_be_asked_for(world: World) -> None:
    pipeline = world.pipeline()
    async with running(pipeline, detaching=True):
        for _ in range(20):
            world.some(5)
            assert pipeline.statement().balanced
            await trio.sleep(0.003)
            assert pipeline.statement().balanced
        await until_safe(pipeline, 100)
        plain = await trio.to_thread.run_sync(books.ask, world.state)
        assert plain == pipeline.statement().to_plain()
    assert books.ask(world.state) is None


async def test_an_idle_pipeline_wakes_for_an_event_and_for_its_end(world: World) -> None:
    pipeline = world.pipeline()
    async with running(pipeline, detaching=True):
        for n in range(1, 4):
            await trio.sleep(0.1)
            world.write("fork")
            await until_safe(pipeline, n)
    assert world.ids() == world.written


async def test_what_the_filter_takes_out_is_counted(world: World) -> None:
    pipeline = world.pipeline(judge=Judge("kind <> 'fork'", world.said.append))
    async with running(pipeline, detaching=True):
        world.some(30)
    assert Counter(record["kind"] for record in world.records()) == {"exec": 10, "exit": 10}
    plain = pipeline.statement().to_plain()
    assert plain["balanced"] is True
    assert (plain["acknowledged"], plain["filtered"]) == (20, 10)
    assert plain["filters"] == [{"stage": "filter", "reason": "expression", "kind": "fork", "count": 10}]


async def test_what_the_ring_lost_is_in_the_books_and_marked_in_the_record(world: World) -> None:
    pipeline = world.pipeline()
    async with running(pipeline, detaching=True):
        world.write("exec", ARGV, without={2})
        world.some(6)
        world.write("fork", hidden="filtered_uid")
    first, *rest = world.records()
    assert first["unsettled"]["argv"]["state"] == "lost"
    assert first["argv"] == ARGV[:PAYLOAD].decode().split("\0")
    assert all("unsettled" not in record for record in rest)
    plain = pipeline.statement().to_plain()
    assert plain["balanced"] is True
    assert plain["rings"]["0"]["gaps"] == plain["rings"]["0"]["drops"] == 1
    assert plain["filtered"] == 1


async def test_a_flood_that_the_ring_refuses_is_lost_and_exact(world: World) -> None:
    """More than a ring holds, before anybody looks."""
    pipeline = world.pipeline()
    for _ in range(400):
        world.write("fork")
    assert len(world.written) == 255
    async with running(pipeline, detaching=True):
        await until_safe(pipeline, 255)
        world.some(6)
    assert world.ids() == world.written
    plain = pipeline.statement().to_plain()
    assert plain["balanced"] is True
    assert plain["lost"] == 145
    assert plain["losses"] == [{"stage": "ring", "reason": "full", "kind": "fork", "count": 145}]


async def test_probes_that_stay_lose_nothing_between_two_runs(world: World) -> None:
    for _ in range(3):
        pipeline = world.pipeline()
        async with running(pipeline, detaching=False) as ends:
            world.some()
        assert ends == [True]
        assert pipeline.statement().balanced
        assert world.attached.linked
        world.some(9)
    last = world.pipeline()
    async with running(last, detaching=True):
        pass
    assert sorted(world.ids()) == sorted(world.written)
    plain = last.statement().to_plain()
    assert plain["balanced"] is True
    assert plain["acknowledged"] == len(world.written) == 3 * 39


async def test_an_event_that_is_half_there_when_a_run_ends_is_whole_in_the_next(world: World) -> None:
    """What is held is not settled at such an end: it stays in its ring, and its other half comes."""
    kernel, number = world.kernel[0], by_name()["exec"].number
    world.written.append(event_id(0, 1_000))
    *some, last = chunks.event(number, world.written[0], bytes(500))
    kernel.books["kinds"]["attempted"][number] += 1
    first = world.pipeline(expiry=60)
    async with running(first, detaching=False):
        for row in some:
            kernel.write(row)
        world.some(6)
        await until(lambda: not unread(first))
        assert first.statement().to_plain()["in_flight"] == 7
    assert first.statement().balanced
    assert world.ids() == []
    kernel.write(last)
    async with running(world.pipeline(), detaching=True):
        pass
    assert sorted(world.ids()) == sorted(world.written)
    assert all("unsettled" not in record for record in world.records())


async def test_an_end_that_leaves_probes_does_not_wait_for_a_pause(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it looked, there would be one more event."""

    class Busy(Clock):
        def __call__(self) -> tuple[int, int]:
            world.write("fork")
            return super().__call__()

    with monkeypatch.context() as patched:
        patched.setattr(app, "Clock", Busy)
        pipeline = world.pipeline(shutdown={"deadline": 5.0})
    async with running(pipeline, detaching=False) as ends:
        await until(lambda: safe(pipeline) > 20)
    assert ends == [True]
    async with running(world.pipeline(), detaching=True):
        pass
    assert world.ids() == world.written


async def test_a_short_run_after_a_long_one_is_the_newest(world: World) -> None:
    """Checkpoints are told apart by their numbers, and those go on from run to run."""
    for steps in (8, 1, 0):
        pipeline = world.pipeline()
        before = safe(pipeline)
        async with running(pipeline, detaching=False):
            for n in range(1, steps + 1):
                world.write("fork")
                await until_safe(pipeline, before + n)
    assert world.ids() == world.written
    assert safe(world.pipeline()) == 9


async def test_rows_that_an_earlier_run_left_in_an_outbox_count_on(world: World) -> None:
    store = Store(world.state / OUTBOX, world.attached.manifest.id)
    (batch,) = stream(1, 7)
    store.append([batch], Books(number=1, spilled=batch.counts).to_plain())
    store.close()
    pipeline = world.pipeline()
    async with running(pipeline, detaching=False):
        assert pipeline.statement().to_plain()["in_outbox"] == 7
    (world.state / OUTBOX).write_bytes(b"something else" * 100)
    pipeline = world.pipeline()
    async with running(pipeline, detaching=False):
        plain = pipeline.statement().to_plain()
        assert (plain["in_outbox"], plain["lost"]) == (0, 7)
    assert "outbox.db.corrupt-1" in world.said[0]
    assert "7 events that were in" in world.said[1]


async def test_what_was_filtered_counts_before_its_batch_is_safe(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(app, "LogSink", Stuck)
        judge = Judge("kind <> 'fork'", world.said.append)
        pipeline = world.pipeline(judge=judge, shutdown={"deadline": 0.05})
    async with running(pipeline, detaching=False):
        world.some()
        await until(lambda: bool(pipeline.statement().in_flight.sum() == 20))
        statement = pipeline.statement()
        assert statement.balanced
        assert statement.to_plain()["filtered"] == 10


async def test_a_run_that_is_killed_anywhere_is_taken_up(world: World) -> None:
    """Cancelled without a word, after a while that is longer each time."""
    for step in range(12):
        pipeline = world.pipeline()
        world.some()
        with trio.move_on_after(0.002 * step**2):
            await pipeline.run(detaching=False)
    last = world.pipeline()
    async with running(last, detaching=True):
        pass
    assert sorted(world.ids()) == sorted(world.written), "each once: the log keeps its books with its rows"
    plain = last.statement().to_plain()
    assert plain["balanced"] is True
    assert plain["acknowledged"] == len(world.written)


async def test_the_time_that_a_run_may_take(world: World) -> None:
    world.some()
    with trio.fail_after(20):
        assert await world.pipeline(duration=0.2).run(detaching=True)
    assert world.ids() == world.written


async def test_a_state_folder_that_is_removed_under_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was in it is written again, and a ledger can be asked for again."""
    monkeypatch.setattr(books, "LOOK", 0.1)
    pipeline = world.pipeline()
    async with running(pipeline, detaching=True):
        world.some()
        await until_safe(pipeline, 30)
        shutil.rmtree(world.state)
        world.some()
        await until_safe(pipeline, 60)
        await until(lambda: (world.state / books.SOCKET).exists())
        plain = await trio.to_thread.run_sync(books.ask, world.state)
        assert plain == pipeline.statement().to_plain()
    assert world.ids() == world.written
    assert len(world.said) == 1
    assert "log.db was taken away" in world.said[0]


class Stuck(LogSink):
    """A sink that takes batches in and never stores one."""

    async def run(self, source: Link[Any]) -> None:
        async for batch in source:
            self._held.append(batch)
            await trio.sleep_forever()


@pytest.mark.parametrize("how", ["second signal", "deadline"])
async def test_an_end_that_takes_too_long_is_cut_short_and_loses_nothing(
    world: World, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(app, "LogSink", Stuck)
        pipeline = world.pipeline(shutdown={"deadline": 0.1 if how == "deadline" else 60.0})
    async with running(pipeline, detaching=True) as ends:
        world.some()
        await until(lambda: bool(pipeline.statement().in_flight.sum() == 30))
        if how == "second signal":
            tell()
            await trio.sleep(0.2)
            assert ends == [], "it still tries"
    assert ends == [False]
    statement: Statement = pipeline.statement()
    assert statement.balanced
    assert statement.to_plain()["in_flight"] == 30
    assert [int(ring.memory.consumer[0]) for ring in world.kernel] == [0, 0]
    async with running(world.pipeline(), detaching=True):
        pass
    assert world.ids() == world.written


def test_a_tap_shows_everything_and_changes_nothing() -> None:
    seen: list[Batch] = []
    tap: Tap[Batch] = Tap("seen", seen.append)
    batches = [batch_of([event("fork", 1), event("exit", 2)]), batch_of([])]
    passed = [out for batch in batches for out in tap(batch)]
    assert tap.name == "seen"
    assert all(a is b for a, b in zip(passed, batches, strict=True))
    assert all(a is b for a, b in zip(seen, batches, strict=True))
    none: Ints = tap.held()
    assert not none.any()
    assert list(tap.finish()) == []


# ---- heartbeats


async def test_heartbeats_go_on_while_nothing_happens_and_over_restarts(world: World) -> None:
    """Each claims no more than what the one before made safe; the seam says where a run took up the rings."""
    world.some(9)
    before = boottime()
    async with running(world.pipeline(heartbeat=0.05), detaching=False):
        await until(lambda: any((n["complete_until"] or 0) > before for n in world.notices(HEARTBEAT)))
    first = world.notices(HEARTBEAT)
    check = TypeAdapter[Any](TYPES[HEARTBEAT])
    for beat in first:
        check.validate_python(beat)
        assert beat["balanced"]
        assert (beat["complete_until"] or 0) < beat["until"] <= beat["boottime"]
    assert [beat["beat"] for beat in first] == list(range(1, len(first) + 1))
    assert sorted(beat["until"] for beat in first) == [beat["until"] for beat in first]
    begin = next(s for s in first[0]["seam"] if s["ring"] == 0)
    assert (begin["how"], begin["before"], begin["after"]) == ("attached", None, 1_000)
    stopped = first[-1]["until"]
    world.some(6)
    async with running(world.pipeline(heartbeat=0.05), detaching=False) as _:
        await until(lambda: len(world.notices(HEARTBEAT)) > len(first) + 1)
    second = world.notices(HEARTBEAT)[len(first) :]
    assert second[0]["run"] != first[0]["run"]
    assert second[0]["complete_until"] == stopped, "a run knows what the last one made safe"
    seam = {s["ring"]: s for s in second[0]["seam"]}
    for ring in (0, 1):
        assert seam[ring]["how"] == "resumed"
        assert seam[ring]["after"] == seam[ring]["before"] + 1
        assert seam[ring]["since"] == stopped
    assert world.notices(LOSS) == []


async def test_an_overflow_is_told_when_nothing_comes_after(world: World) -> None:
    for _ in range(300):
        world.write("exit")
    drops = int(world.kernel[0].books["drops"])
    assert drops > 40
    async with running(world.pipeline(heartbeat=0.05), detaching=False):
        await until(lambda: bool(world.notices(LOSS)))
    losses = world.notices(LOSS)
    assert {ring: len(numbers) for ring, numbers in numbers_lost(losses).items()} == {0: drops}
    assert kinds_lost(losses) == {("ring", "full", "exit"): drops}


async def test_a_position_that_makes_no_sense_is_refused_and_told(world: World) -> None:
    world.some(9)
    async with running(world.pipeline(), detaching=False):
        await until(lambda: world.is_empty)
    world.kernel[0].memory.consumer[0] = 1 << 40
    pipeline = world.pipeline()
    async with running(pipeline, detaching=False):
        await until(lambda: len(world.notices(HEARTBEAT)) > 2)
        assert pipeline.statement().balanced
        assert pipeline.statement().rings[0]["refused"] == 1
    (said,) = [text for text in world.said if "refused" in text]
    assert "its consumer position 1099511627776" in said
    told = [s for beat in world.notices(HEARTBEAT) for s in beat["seam"] if s["refused"]]
    assert [s["ring"] for s in told] == [0]
    assert sorted(set(world.ids())) == sorted(world.written), "and nothing was lost by it"
