"""The source of live chunks: when it looks, when it sleeps, how it ends, what its watermark vouches for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import trio
import trio.testing

from pipeline.event import Pass
from pipeline.kernel.ring import Ring
from pipeline.ledger import RingBooks
from pipeline.sources import rings as source_module
from pipeline.sources.rings import LONG_NAP, LONGEST_NAP, NAP, SLACK, Beats, Rings
from pipeline.stages.stage import Link
from tests.kernel_ring import KernelRing

CLOCK = 1_000_000
SECOND = 1_000_000_000
ROOM = 2048


class World:
    """Two rings, their readers, and the source over them."""

    def __init__(self, room: int = 64) -> None:
        self.kernel = [KernelRing(0, room), KernelRing(1, room)]
        self.readers: dict[int, Ring] = {ring.number: ring.reader() for ring in self.kernel}
        self.looks = 0
        self.time = 100 * SECOND
        self.source = Rings(
            self.readers, {ring.number: ring.descriptor for ring in self.kernel}, self.now, nap=NAP
        )

    def now(self) -> tuple[int, int]:
        """Called once for each look."""
        self.looks += 1
        return self.time, CLOCK

    def write(self, ring: int = 0, time: int = 0) -> None:
        self.kernel[ring].event("fork", time=time or self.time)

    def release(self) -> None:
        """All that was read is safe."""
        for reader in self.readers.values():
            reader.release(reader.cursor)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    for ring in world.kernel:
        ring.close()


@pytest.fixture
def big_world() -> Iterator[World]:
    world = World(ROOM)
    yield world
    for ring in world.kernel:
        ring.close()


@pytest.fixture
def small_world() -> Iterator[World]:
    world = World(room=8)
    yield world
    for ring in world.kernel:
        ring.close()


def numbers(found: list[Pass], ring: int = 0) -> list[int]:
    """Sequences of a ring's chunks in passes."""
    return [n for look in found for s in look.slices if s.ring == ring for n in s.chunks["sequence"].tolist()]


async def collect(link: Link[Pass], into: list[Pass], after: Callable[[], None] = lambda: None) -> None:
    async for found in link:
        into.append(found)
        after()


async def test_one_pass_over_all_rings_is_one_batch(world: World) -> None:
    for ring in (0, 0, 1):
        world.write(ring)
    link: Link[Pass] = Link("passes")
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.source.run, link)
            found = await anext(link)
            nursery.cancel_scope.cancel()
    assert numbers([found], 0) == [1, 2]
    assert numbers([found], 1) == [1]
    assert found.watermark == world.time - SLACK
    assert found.clock == CLOCK


async def test_passes_go_on_while_anything_is_unsafe_and_no_longer(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Their watermarks let go what waits downstream; but each one costs, so naps grow."""
    passes: list[Pass] = []
    link: Link[Pass] = Link("passes")
    world.write()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.source.run, link)
        nursery.start_soon(collect, link, passes)
        await trio.sleep(1)
        assert numbers(passes) == [1]
        assert not any(found.slices for found in passes[1:])
        assert 1 / LONGEST_NAP - 5 <= len(passes) - 1 <= 1 / LONGEST_NAP + 5
        world.release()
        await trio.sleep(2 * LONGEST_NAP)
        before = world.looks
        await trio.sleep(3600)
        assert world.looks == before, "nothing ticks when all is safe"
        world.source.stop(drain=True)


async def test_naps_last_until_enough_has_come(
    big_world: World, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "ENOUGH", 2)
    world = big_world
    link: Link[Pass] = Link("passes", 10_000)
    world.write()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.source.run, link)
        await trio.sleep(1)
        for every, nap in ((NAP / 4, NAP), (NAP / 2, NAP), (NAP, 2 * NAP), (0.8 * LONG_NAP, LONG_NAP)):
            before, times = world.looks, round(50 * nap / every)
            for _ in range(times):
                world.write()
                await trio.sleep(every)
            assert 50 - LONGEST_NAP / nap - 2 <= world.looks - before <= 53
            world.release()
        for _ in range(ROOM // 8 + 1):  # crowded: a long nap could be too long
            world.write()
        await trio.sleep(LONG_NAP)
        before = world.looks
        for _ in range(50):
            world.write()
            await trio.sleep(NAP)
        assert 48 <= world.looks - before <= 52
        nursery.cancel_scope.cancel()


async def test_idle_rings_are_only_waited_on(world: World, autojump_clock: trio.testing.MockClock) -> None:
    passes: list[Pass] = []
    link: Link[Pass] = Link("passes")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.source.run, link)
        nursery.start_soon(collect, link, passes, world.release)
        await trio.sleep(3600)
        assert world.looks == 1
        assert passes == []
        world.source.stop(drain=True)
    assert world.looks == 2


@pytest.mark.parametrize("ring", [0, 1])
async def test_any_ring_wakes_it_again_and_again(world: World, ring: int) -> None:
    """Real descriptors, real time: it sleeps in between, and a chunk ends the sleep."""
    link: Link[Pass] = Link("passes", 100)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.source.run, link)
            for n in range(1, 6):
                await trio.testing.wait_all_tasks_blocked(0.05)
                before = world.looks
                await trio.sleep(0.05)
                assert world.looks == before
                world.write(ring)
                while not (found := await anext(link)).slices:
                    pass  # one more look, before it was told that all is safe
                assert numbers([found], ring) == [n]
                world.release()
            nursery.cancel_scope.cancel()


async def test_stop_takes_what_is_in_the_rings_first(
    world: World, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "LIMIT", 6)
    monkeypatch.setattr(source_module, "LEAST", 1)
    for i in range(40):
        world.write(i % 2)
    world.source.stop(drain=True)
    passes: list[Pass] = []
    link: Link[Pass] = Link("passes")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.source.run, link)
        nursery.start_soon(collect, link, passes)
    for ring in (0, 1):
        assert numbers(passes, ring) == list(range(1, 21))
    assert all(sum(len(s.chunks) for s in found.slices) <= 6 for found in passes)
    assert [len(s.chunks) for s in passes[0].slices] == [3, 3], "shared"


async def test_stop_without_drain_leaves_what_was_not_read(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """It stays in the ring, for the next run."""
    passes: list[Pass] = []
    link: Link[Pass] = Link("passes")
    world.write()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.source.run, link)
        nursery.start_soon(collect, link, passes)
        await trio.sleep(1)
        world.write()
        world.source.stop(drain=False)
    assert numbers(passes) == [1]
    reader = world.readers[0]
    assert reader.cursor < int(world.kernel[0].memory.producer[0])


@pytest.mark.parametrize("drain", [True, False])
async def test_stop_ends_a_sleep(world: World, drain: bool) -> None:
    passes: list[Pass] = []
    link: Link[Pass] = Link("passes")
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.source.run, link)
            nursery.start_soon(collect, link, passes)
            await trio.testing.wait_all_tasks_blocked(0.01)
            world.source.stop(drain=drain)
    assert passes == []


async def test_a_chunk_that_is_being_written_holds_the_watermark(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """It is not later than what stands behind it, and it will come with an earlier time than the clock's."""
    passes: list[Pass] = []
    link: Link[Pass] = Link("passes")
    world.write(0, time=50 * SECOND)
    kernel = world.kernel[0]
    sequence, at = kernel.take(), kernel.reserve()
    assert at is not None
    world.write(0, time=51 * SECOND)
    world.write(1, time=52 * SECOND)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.source.run, link)
        nursery.start_soon(collect, link, passes)
        await trio.sleep(1)
        assert numbers(passes, 0) == [1]
        assert numbers(passes, 1) == [1]
        assert {found.watermark for found in passes} == {50 * SECOND - SLACK}
        row = world.readers[1]._memory.chunks[:1]
        kernel.commit(at, row, sequence, 50 * SECOND + 5)
        await trio.sleep(1)
        assert numbers(passes, 0) == [1, 2, 3]
        assert passes[-1].watermark == world.time - SLACK
        nursery.cancel_scope.cancel()


async def test_a_busy_first_chunk_of_a_new_ring_holds_everything(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Nothing was read there yet: no time is known that it cannot be before."""
    world.kernel[0].take()
    world.kernel[0].reserve()
    world.write(1)
    link: Link[Pass] = Link("passes")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.source.run, link)
        found = await anext(link)
        assert numbers([found], 1) == [1]
        assert found.watermark <= 0
        nursery.cancel_scope.cancel()


async def test_the_watermark_waits_for_a_ring_that_was_not_read_to_its_end(
    world: World, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "LIMIT", 4)
    monkeypatch.setattr(source_module, "LEAST", 1)
    for i in range(10):
        world.write(0, time=(50 + i) * SECOND)
    world.write(1, time=70 * SECOND)
    passes: list[Pass] = []
    link: Link[Pass] = Link("passes")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.source.run, link)
        nursery.start_soon(collect, link, passes)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert numbers(passes) == list(range(1, 11))
    left = list(range(50, 60))
    for found in passes:
        for s in found.slices:
            left = left[len(s.chunks) :] if s.ring == 0 else left
        if left:
            assert found.watermark < left[0] * SECOND
    assert passes[-1].watermark == world.time - SLACK


async def test_a_blocked_output_holds_the_reader_and_then_the_ring(
    small_world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Backpressure reaches the ring, and only the ring refuses: what it drops is a gap later."""
    world, kernel = small_world, small_world.kernel[0]
    link: Link[Pass] = Link("passes", 1)
    passes: list[Pass] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.source.run, link)
        for _ in range(20):
            world.write()
            await trio.sleep(0.1)
        assert world.looks == 2, "one pass is in the link, one waits to go in"
        assert int(kernel.books["drops"]) == 20 - 7
        assert world.readers[0].chunks_read < 7
        assert world.readers[0].position == 0
        nursery.start_soon(collect, link, passes, world.release)
        await trio.sleep(1)
        world.write()
        await trio.sleep(1)
        world.source.stop(drain=True)
    assert numbers(passes) == [1, 2, 3, 4, 5, 6, 7, 21]
    gaps = [gap for found in passes for s in found.slices for gap in s.gaps]
    assert [(gap.first, gap.last) for gap in gaps] == [(8, 20)]
    assert world.readers[0].gaps == int(kernel.books["drops"])


async def test_rings_without_a_descriptor_are_read_too(world: World) -> None:
    """The look at /proc is a ring that nobody writes to."""
    world.write(1)
    link: Link[Pass] = Link("passes")
    whole = np.array(world.kernel[1].memory.chunks[:1])
    proc = Ring(7, world.kernel[1].memory.of_chunks(whole), RingBooks(sequence=1))
    source = Rings({7: proc}, {}, world.now)
    found: list[Pass] = []

    def safe() -> None:
        proc.release(proc.cursor)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run, link)
            nursery.start_soon(collect, link, found, safe)
            await trio.sleep(0.1)
            source.stop(drain=True)
    assert numbers(found, 7) == [1]


class Source:
    """A feed: puts into ring 1 what the test says, and notes when it was asked."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.descriptors = [os.eventfd(0, os.EFD_NONBLOCK)]
        self.waits = self.listening = self.ended = False
        self.coming: list[int] = []
        self.asked: list[int] = []
        self.beats: list[int] = []
        self.oldest: int | None = None

    def listen(self, on: bool) -> None:
        assert on != self.listening
        self.listening = on

    def pump(self, now: int, *, beat: bool = False, last: bool = False) -> None:
        assert not self.ended, "asked after the last time"
        self.ended = last
        self.asked.append(now)
        if beat:
            self.beats.append(now)
        while self.coming:
            self.world.write(1, self.coming.pop(0))

    def close(self) -> None:
        os.close(self.descriptors[0])


@pytest.fixture
def feed(world: World) -> Iterator[Source]:
    found = Source(world)
    descriptors = {ring.number: ring.descriptor for ring in world.kernel}
    world.source = Rings(world.readers, descriptors, world.now, feeds=[found])
    yield found
    found.close()


async def test_feeds_are_asked_between_the_clock_and_the_rings(world: World, feed: Source) -> None:
    """So what they put is in the pass whose watermark vouches for it."""
    feed.coming = [world.time - 2 * SLACK]
    link: Link[Pass] = Link("passes")
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.source.run, link)
            found = await anext(link)
            nursery.cancel_scope.cancel()
    assert numbers([found], 1) == [1]
    assert feed.asked == [world.time]
    assert found.watermark == world.time - SLACK


async def test_feeds_know_which_look_a_heartbeat_vouches_for(
    world: World, feed: Source, autojump_clock: trio.testing.MockClock
) -> None:
    passes: list[Pass] = []
    link: Link[Pass] = Link("passes")
    world.source = Rings(world.readers, {}, world.now, feeds=[feed], beats=Beats(10.0, dict))
    feed.waits = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.source.run, link)
        nursery.start_soon(collect, link, passes, world.release)
        await trio.sleep(25)
        assert len(feed.asked) > 100
        assert len(feed.beats) == 3
        feed.oldest = world.time - 5 * SECOND
        await trio.sleep(10)
        assert len(feed.beats) == 4
        world.source.stop(drain=True)
    beats = [found.beat for found in passes if found.beat]
    held = world.time - 5 * SECOND  # of what it holds back it vouches for nothing
    assert [beat.until for beat in beats] == [*[world.time - SLACK] * 3, held, held]


async def test_a_feed_wakes_the_source_and_is_silent_otherwise(world: World, feed: Source) -> None:
    link: Link[Pass] = Link("passes", 100)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.source.run, link)
            for n in range(1, 4):
                await trio.testing.wait_all_tasks_blocked(0.05)
                before = world.looks
                await trio.sleep(0.05)
                assert world.looks == before
                feed.coming = [world.time]
                os.eventfd_write(feed.descriptors[0], 1)
                while not (found := await anext(link)).slices:
                    pass
                assert numbers([found], 1) == [n]
                os.eventfd_read(feed.descriptors[0])
                world.release()
            nursery.cancel_scope.cancel()


async def test_what_a_feed_holds_back_is_asked_for_soon(
    world: World, feed: Source, autojump_clock: trio.testing.MockClock
) -> None:
    passes: list[Pass] = []
    link: Link[Pass] = Link("passes")
    feed.waits = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.source.run, link)
        nursery.start_soon(collect, link, passes, world.release)
        await trio.sleep(1)
        assert len(feed.asked) > 40
        feed.waits = False
        await trio.sleep(1)
        before = len(feed.asked)
        await trio.sleep(3600)
        assert len(feed.asked) == before
        nursery.cancel_scope.cancel()


async def test_what_comes_between_the_last_look_and_listening_is_not_slept_over(
    world: World, feed: Source, autojump_clock: trio.testing.MockClock
) -> None:
    """Nobody is woken for it: the descriptor says nothing."""
    link: Link[Pass] = Link("passes", 100)

    def listen(on: bool) -> None:
        feed.listening = on
        if on and world.looks == 1:
            feed.coming, feed.waits = [world.time], True

    feed.listen = listen  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.source.run, link)
        found = await anext(link)
        feed.waits = False
        assert numbers([found], 1) == [1]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("drain", [True, False])
async def test_at_the_end_feeds_are_asked_once_more_and_never_again(
    world: World, feed: Source, autojump_clock: trio.testing.MockClock, drain: bool
) -> None:
    """What their descriptors hold is lost with them; what is in a ring of ours is not."""
    passes: list[Pass] = []
    link: Link[Pass] = Link("passes")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.source.run, link)
        nursery.start_soon(collect, link, passes)
        await trio.sleep(1)
        before = len(feed.asked)
        feed.coming, feed.waits = [world.time], True
        world.source.stop(drain=drain)
        world.source.stop(drain=drain)
    assert len(feed.asked) == before + 1
    assert numbers(passes, 1) == ([1] if drain else [])
    assert world.kernel[1].memory.producer[0] > 0
