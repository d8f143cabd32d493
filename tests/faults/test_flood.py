"""A flood beside few programs, while nobody reads: how many of the few come, with and without a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.faults.conftest import Row
from tests.faults.results import LONG
from tests.live.groups import CPUS, EVENTS, FORKS, KINDS, PROGRAMS, UIDS, Beside
from tests.live.run import Live
from tests.live.test_overflow import by_reason, quiet

pytestmark = pytest.mark.kernel

RING = 1 << 20
"""Bytes."""
ENVIRONMENT = [f"VARIABLE_{n:02}" for n in range(61)]
"""3 KB of the flood's."""
FLOODS = {
    "a flood of execs": (1, 1200, PROGRAMS),
    "four floods of execs": (4, 300, PROGRAMS),
    "a flood of forks": (1, 4000, FORKS),
}
"""Groups, and what each does on each CPU: what a ring holds, several times."""
FEW = 15
"""Programs on each CPU."""
SETTINGS = [(0, 0, False), (0.125, 0.5, True)]
"""budget.reserve, budget.share, and whether all of the few come beside one flood: without, and by default."""
OTHERS = [(0.125, 0, False), (0.125, 0.25, None), (0.125, 1, None), (0.0625, 0.5, None), (0.25, 0.5, None)]


@pytest.fixture(scope="module")
def beside(make_live: Callable[..., Live], acts: bytes) -> Iterator[Beside]:
    live = make_live(ring__size=str(RING), kernel__uids=",".join(map(str, UIDS)))
    live.start(events=",".join(EVENTS))
    yield Beside(live, acts, KINDS[-1])
    assert live.stop() == 0, live.said()


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize(("reserve", "share", "all_come"), [*SETTINGS, *(OTHERS if LONG else ())])
def test_few_beside_a_flood(
    beside: Beside, row: Row, reserve: float, share: float, all_come: bool | None, flood: str
) -> None:
    row("8 flood isolation", f"{flood}, nobody reads; budget.reserve {reserve:g}, share {share:g}")
    groups, each, line = FLOODS[flood]
    before = quiet(beside.live)
    beside.budget(reserve, share)
    with beside.unread():
        storms = [beside.storm(each, ENVIRONMENT, line) for _ in range(groups)]
        for storm in storms:
            storm.executed()
        few = beside.storm(FEW)
        few.executed()
    ledger = quiet(beside.live)
    came = beside.came(few)
    refused = _refused(ledger) - _refused(before)
    row.saw(
        few_programs=FEW * CPUS,
        came=len(came),
        whole=sum("unsettled" not in record for record in came),
        refused_in_all=refused,
    )
    for storm in (*storms, few):
        storm.end()
    assert ledger["balanced"]
    if groups == 1 and all_come is not None:
        assert all_come is (len(came) == FEW * CPUS)


def _refused(ledger: dict[str, Any]) -> int:
    return sum(by_reason(ledger, "losses", kind).get("budget", 0) for kind in EVENTS)
