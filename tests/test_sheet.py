"""The sheet: what a kernel's answers become, and the page that is made of several."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipeline.kernel.manifest import Hook
from pipeline.schema import Surface, by_name
from pipeline.sheet import Sheet, document, print_sheet, sheet

PRICE = "taxes everything"


def fork(surface: str, answer: str, *, works: bool = True, cost: str = "") -> Hook:
    """The schema of fork knows only these surfaces' names; answers are the test's."""
    return Hook("fork", surface, {}, works, answer, cost)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Sheet]:
    """Sheets of two kernels, of a schema with three surfaces."""
    schema = replace(
        by_name()["fork"],
        surfaces=(
            Surface("lsm", {"lsm/task_alloc": "a"}, {"raw_tp/x": "b"}, without=("uid", "flags"), blind="all"),
            Surface("tracepoint", {"raw_tp/task_newtask": "c"}),
            Surface("sys_exit", cost=PRICE),
        ),
    )
    monkeypatch.setattr("pipeline.sheet.by_name", lambda: {"fork": schema})
    old = [
        fork("lsm", "lsm/task_alloc: refused: Operation not permitted", works=False),
        fork("tracepoint", "attached, and never runs", works=False),
        fork("sys_exit", "proven: our own act came through"),
    ]
    new = [fork("lsm", "proven: our own act came through"), fork("tracepoint", "attached, unproven")]
    return {
        "6.12": sheet(new, "6.12.107+deb13-amd64", "2026-11-23"),
        "6.1": sheet(old, "6.1.0-50-amd64", "2026-11-22"),
    }


def test_a_row_says_what_such_records_show(answers: dict[str, Sheet]) -> None:
    lsm, tracepoint = answers["6.12"]["rows"]
    assert lsm["hooks"] == ["raw_tp/x", "lsm/task_alloc"]
    assert lsm["fields"] == ["child.start", "child.pid", "child.ns_pid"]
    assert lsm["without"] == ["process.uid", "flags"]
    assert (lsm["blind"], lsm["schema"], lsm["state"]) == ("all", "fork/1", "proven")
    assert set(tracepoint["fields"]) == {*lsm["fields"], "flags"}
    assert [row["state"] for row in answers["6.1"]["rows"]] == ["refused", "refused", "proven"]
    assert tracepoint["state"] == "attached"
    assert json.loads(json.dumps(answers["6.1"])) == answers["6.1"]


def test_a_look_at_proc_needs_no_proof() -> None:
    (row,) = sheet([Hook("process", "proc", {}, True, "read once, when attached")])["rows"]
    assert row["state"] == "proven"


def test_the_page_has_kernels_in_their_order_and_every_answer(answers: dict[str, Sheet]) -> None:
    page = document(answers.values())
    assert "Linux 6.1.0-50-amd64 (2026-11-22), Linux 6.12.107+deb13-amd64 (2026-11-23)" in page
    assert "| [`fork`](#fork) | sys_exit, when asked for | lsm |" in page
    assert "| **lsm** | lsm/task_alloc: refused: Operation not permitted | proven |" in page
    assert "| **tracepoint** | attached, and never runs | attached, unproven |" in page
    assert "| **sys_exit** | proven | not tried |" in page
    assert "nil: `process.uid`, `flags`; unseen: all" in page


def test_an_event_that_only_works_unproven_or_not_at_all(answers: dict[str, Sheet]) -> None:
    made = answers["6.12"]
    unproven = {**made, "rows": [row for row in made["rows"] if row["surface"] == "tracepoint"]}
    assert "| [`fork`](#fork) | tracepoint, unproven |" in document([unproven])
    refused = {**made, "rows": [row | {"state": "refused"} for row in made["rows"]]}
    assert "| [`fork`](#fork) | none |" in document([refused])


def test_the_table_has_every_surface(answers: dict[str, Sheet], capsys: pytest.CaptureFixture[str]) -> None:
    print_sheet(answers["6.1"])
    said = capsys.readouterr().out
    for text in ("Linux 6.1.0-50-amd64", "✗ fail", "✓ ok", "Operation not permitted", PRICE, "process.uid"):
        assert text in said
