"""Bells: they ring for a reader that sleeps, and cost nothing while it is long awake."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator

import pytest

from pipeline.kernel.perf_buffer import LONG, Bells
from pipeline.kernel.perf_event import BITS, Sideband
from tests.live.host import need_kernel

pytestmark = pytest.mark.kernel


@pytest.fixture
def sideband() -> Iterator[Sideband]:
    need_kernel()
    made = Sideband(["comm"])  # rarer than mappings on a host with other things to do
    yield made
    made.close()


def rename() -> None:
    with open("/proc/self/comm", "r+b") as file:
        name = file.read().rstrip()
        file.write(name)


def test_a_bell_rings_for_a_listener_only(sideband: Sideband) -> None:
    bells = select.epoll()
    for descriptor in sideband.descriptors:
        bells.register(descriptor, select.EPOLLIN)
    for on in (False, True, False, True):
        sideband.listen(on)
        for now in (0, 2 * LONG, 2**63 - 1):  # from the second look on they are off, unless they ring
            sideband.read(now)
        rename()
        if on:
            assert bells.poll(5)
        assert sideband.waits, "heard or not, it is there"
        while bells.poll(0):
            pass


@pytest.fixture
def bells() -> Iterator[Bells]:
    """One, of the CPU that this thread stays on."""
    need_kernel()
    before = os.sched_getaffinity(0)
    cpu = min(before)
    os.sched_setaffinity(0, {cpu})
    made = Bells()
    made.add(cpu, BITS["comm"])
    yield made
    made.close()
    os.sched_setaffinity(0, before)


def refused(bells: Bells) -> int:
    """What it was told while it was kept from ringing, as the kernel counts it."""
    (descriptor,) = bells.descriptors
    return int.from_bytes(os.read(descriptor, 16)[8:], sys.byteorder)


@pytest.mark.parametrize(("looks", "told"), [((0, LONG), True), ((0, LONG + 1), False), ((LONG + 1,), True)])
def test_who_is_long_awake_pays_for_no_bell(bells: Bells, looks: tuple[int, ...], told: bool) -> None:
    for now in looks:
        bells.looked(now)
    before = refused(bells)
    rename()
    assert (refused(bells) > before) is told
    bells.listen(True)
    rename()
    assert select.select(bells.descriptors, [], [], 5)[0]
