"""What fault tests saw becomes a page, and the page is what was seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import __main__ as command
from tests.faults import results
from tests.faults.results import Result

PATHS = {"FRESH": "fresh", "KEPT": "kept.json", "PAGE": "page.md"}


@pytest.fixture(autouse=True)
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this run's own results is touched."""
    if request.function is test_the_page_is_as_its_results_are:
        return
    for name, file in PATHS.items():
        monkeypatch.setattr(results, name, tmp_path / file)
        if hasattr(command, name):
            monkeypatch.setattr(command, name, tmp_path / file)


def test_the_page_is_as_its_results_are() -> None:
    assert command.main([]) == 0, "run: make fault-test"


def test_figures_stand_in_their_row_and_a_failure_is_loud() -> None:
    figures: dict[str, results.Figure] = {"killed": 12, "events_lost": 0, "at": "2 ms"}
    Result("1 SIGKILL", "12 × SIGKILL", "test_a", figures, True).write()
    Result("4 overflow", "a | b", "test_b[64 KiB]", {"gaps": 12345}).write()
    assert command.main(["--write"]) == 0
    text = results.PAGE.read_text()
    assert "## 1. SIGKILL at any instant" in text
    assert "| 12 × SIGKILL | killed **12**, events lost **0**, at 2 ms | short |" in text
    assert "| a \\| b | **FAILED** gaps **12,345** |" in text
    assert text.index("## 1.") < text.index("## 4.")
    assert command.main([]) == 0
    results.PAGE.write_text(text.replace("12,345", "0"))
    assert command.main([]) == 1


def test_a_run_replaces_what_was_had_in_the_same_form_on_the_same_kernel() -> None:
    there = [
        Result("1 x", "gone", "renamed", form="short", kernel="6.1"),
        Result("1 x", "long", "a", form="long", kernel="6.1"),
        Result("1 x", "elsewhere", "a", form="short", kernel="7.3"),
    ]
    results.keep(there)
    results.keep([Result("1 x", "new", "a", form="short", kernel="6.1")])
    assert [result.did for result in results.kept()] == ["long", "new", "elsewhere"]
