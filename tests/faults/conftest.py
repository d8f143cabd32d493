"""Faults: the fixtures of the live tests, and `row`, by which a test says what it did and what it saw."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.results import LONG, Figure, Result
from tests.live.conftest import acts, ground, make_live

__all__ = ["Row", "acts", "ground", "make_live", "row"]

HERE = Path(__file__).parent
LONGEST = 6 * 3600
"""Seconds that a test of the long form may take."""
PASSED = pytest.StashKey[bool]()


class Row:
    """`row("1 SIGKILL", "12 × SIGKILL …")`, and then, or at once, its figures; they are kept when the test is
    over, also when it failed."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.result: Result | None = None
        self._test = request.node.nodeid.partition("::")[2]
        self._capture: Any = request.config.pluginmanager.get_plugin("capturemanager")

    def __call__(self, row: str, did: str, **figures: Figure) -> None:
        """Name the row, its number in docs/faults.md first."""
        self.result = Result(row, did, self._test, dict(figures))

    def saw(self, **figures: Figure) -> None:
        """Figures, by names that read as words."""
        assert self.result, "the row has no name yet"
        self.result.figures |= figures

    def say(self, text: str) -> None:
        """A line for who waits."""
        with self._capture.global_and_fixture_disabled():
            print(f"\n  {text}", flush=True)


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Iterator[Row]:
    """This test's row in docs/faults.md."""
    found = Row(request)
    yield found
    if found.result:
        found.result.passed = request.node.stash.get(PASSED, False)
        found.result.write()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call":
        item.stash[PASSED] = report.passed
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("fault")
            if LONG:
                item.add_marker(pytest.mark.timeout(LONGEST))
