"""Self-watch: each trouble is said once when it begins and once when it is over, with its figure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.config import Watch as Limits
from pipeline.watch import Facts, Watch

WELL = Facts(
    now=0,
    links=[("merge", 0, 5), ("encode", 0, 5), ("kafka", 0, 5)],
    rings={0: 0.1, 1: 0.0},
    outbox=0,
    offset=1_700_000_000_000_000_000,
    balanced=True,
)


class Observer:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.watch = Watch(Limits(), self.said.append)

    def look(self, now: float, **changes: object) -> list[str]:
        """One look; what is new is said."""
        self.said.clear()
        self.watch.look(replace(WELL, now=now, **changes))  # type: ignore[arg-type]
        return self.said.copy()


@pytest.fixture
def observer() -> Observer:
    return Observer()


def test_what_is_well_is_not_spoken_of(observer: Observer) -> None:
    assert [observer.look(now) for now in range(0, 60, 5)] == [[]] * 12
    assert observer.watch.findings == []


def test_the_last_stage_that_takes_nothing_is_named(observer: Observer) -> None:
    """Those before it hold things too: because it does not take them."""
    stalled = [("merge", 1, 9), ("encode", 1, 8), ("kafka", 2, 7)]
    assert observer.look(0, links=stalled) == []
    assert observer.look(5, links=stalled) == []
    assert observer.look(11, links=stalled) == ["kafka stalls: it took nothing for 11 s; 2 batches wait"]
    assert observer.look(16, links=stalled) == [], "once"
    assert observer.watch.findings == ["kafka stalls: it took nothing for 16 s; 2 batches wait"]
    moving = [("merge", 1, 10), ("encode", 1, 9), ("kafka", 2, 8)]
    assert observer.look(21, links=moving) == ["over: kafka stalls: it took nothing for 11 s; 2 batches wait"]


def test_a_stage_that_waits_for_work_does_not_stall(observer: Observer) -> None:
    for now in range(0, 100, 5):
        assert observer.look(now) == []
    waiting = [("merge", 0, 5), ("encode", 0, 5), ("kafka", 1, 5)]
    assert observer.look(100, links=waiting) == [], "it has waited since just now"


def test_a_ring_that_fills(observer: Observer) -> None:
    assert observer.look(0, rings={0: 0.6, 1: 0.2}) == ["ring 0 is over 50% full: 60%"]
    assert observer.look(5, rings={0: 0.93, 1: 0.2}) == ["ring 0 is over 90% full: 93%"]
    assert observer.watch.findings == ["ring 0 is over 50% full: 93%", "ring 0 is over 90% full: 93%"]
    assert sorted(observer.look(10, rings={0: 0.0, 1: 0.2})) == [
        "over: ring 0 is over 50% full: 60%",
        "over: ring 0 is over 90% full: 93%",
    ]


def test_an_outbox_that_grows(observer: Observer) -> None:
    assert [observer.look(n, outbox=n * 1000) for n in (1, 2)] == [[], []]
    assert observer.look(3, outbox=3000) == ["the outbox grows: 3,000 bytes"]
    assert observer.look(4, outbox=3000) == ["over: the outbox grows: 3,000 bytes"]


def test_a_clock_that_steps(observer: Observer) -> None:
    observer.look(0)
    assert observer.look(5, offset=WELL.offset + 50_000_000) == [], "that is drift"
    assert observer.look(10, offset=WELL.offset - 2_000_000_000) == ["the clock stepped by -2.050 s"]
    assert observer.watch.findings == ["the clock stepped by -2.050 s"]
    assert observer.look(15, offset=WELL.offset - 2_000_000_000) == []
    assert observer.watch.findings == []


def test_a_ledger_that_does_not_add_up_is_loud(observer: Observer) -> None:
    assert observer.look(0, balanced=False) == []
    assert observer.look(5, balanced=False) == ["THE LEDGER DOES NOT ADD UP: see `promissory ledger`"]
    assert observer.look(10) == ["over: THE LEDGER DOES NOT ADD UP: see `promissory ledger`"]
