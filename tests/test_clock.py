"""The clock of live passes: an offset that stands still until the system's clock really moved."""

from __future__ import annotations

import time

import pytest

from pipeline.clock import NOISE, Clock

EPOCH = 1_700_000_000_000_000_000


class World:
    """A machine's two clocks; looking at one takes a while."""

    def __init__(self) -> None:
        self.boottime = 1_000_000_000
        self.offset = EPOCH
        self.takes = 100

    def clock_gettime_ns(self, which: int) -> int:
        assert which == time.CLOCK_BOOTTIME
        self.boottime += self.takes
        return self.boottime

    def time_ns(self) -> int:
        self.boottime += self.takes
        return self.boottime + self.offset


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr("pipeline.clock.time.clock_gettime_ns", world.clock_gettime_ns)
    monkeypatch.setattr("pipeline.clock.time.time_ns", world.time_ns)
    return world


def test_it_says_boottime_and_what_to_add(world: World) -> None:
    boottime, offset = Clock()()
    assert boottime == world.boottime
    assert abs(offset - EPOCH) <= world.takes


def test_noise_moves_nothing(world: World) -> None:
    """Two clocks cannot be read at the same instant; events must not change places for it."""
    clock = Clock()
    _, first = clock()
    for takes in (50, 900, 3, 6_000):
        world.takes = takes
        world.offset += 700
        assert clock()[1] == first


@pytest.mark.parametrize("step", [NOISE * 2, 3_600_000_000_000, -NOISE * 2, -86_400_000_000_000])
def test_a_step_of_the_system_clock_is_followed(world: World, step: int) -> None:
    clock = Clock()
    clock()
    world.offset += step
    assert abs(clock()[1] - (EPOCH + step)) <= world.takes


def test_drift_is_followed_before_it_is_large(world: World) -> None:
    clock = Clock()
    for _ in range(100):
        world.offset += 1_000
        assert abs(clock()[1] - world.offset) <= NOISE + world.takes
    assert clock()[1] != EPOCH


def test_a_comparison_that_was_interrupted_is_not_believed(world: World) -> None:
    clock = Clock()
    _, first = clock()
    world.takes = 5_000_000
    world.offset += 1_000_000
    assert clock()[1] == first
    world.takes = 100
    assert abs(clock()[1] - world.offset) <= world.takes


def test_an_interrupted_beginning_is_made_good(world: World) -> None:
    """The first comparison is the best there is, however bad, until there is a better one."""
    interrupted = iter([100, 100, 40_000_000])

    def slow(which: int) -> int:
        world.boottime += next(interrupted, 100)
        return world.boottime

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipeline.clock.time.clock_gettime_ns", slow)
        next(interrupted)
        clock = Clock()
    assert abs(clock()[1] - world.offset) <= world.takes
    world.takes = 5_000_000
    world.offset += 1_000_000
    assert abs(clock()[1] - EPOCH) <= world.takes, "from now on the good one is the measure"


def test_the_real_clocks() -> None:
    clock = Clock()
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    boottime, offset = clock()
    assert before <= boottime <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert abs(boottime + offset - time.time_ns()) < 1_000_000_000
