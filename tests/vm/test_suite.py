"""All machines in a row, without one: what is run in each, and when the verdict is bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tests.vm import suite
from tests.vm.kernels import Kernel, Missing
from tests.vm.machine import Broken

GOOD = '<testsuite><testcase classname="t" name="a"/></testsuite>'
BAD = '<testsuite><testcase classname="t" name="a"><failure message="m"/></testcase></testsuite>'

BREAKS = ""


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Machines that write a good report; what each was asked."""
    asked: dict[str, list[Any]] = {}

    def run(
        kernel: Kernel, command: list[str], *, output: BinaryIO, options: tuple[str, ...], **_: Any
    ) -> int:
        if kernel.name == BREAKS:
            raise Broken("it fell over")
        (report,) = (word.removeprefix("--junitxml=") for word in command if word.startswith("--junitxml="))
        Path(report).write_text(GOOD)
        asked[Path(report).stem] = [kernel.name, command, options]
        return 0

    monkeypatch.setattr(suite, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(suite, "ready", lambda: None)
    monkeypatch.setattr(suite, "fetch", lambda _: None)
    monkeypatch.setattr(suite, "_compile", lambda _: None)
    monkeypatch.setattr(suite, "run", run)
    return asked


def marked(command: list[str]) -> str:
    """The marker that pytest is asked for."""
    return command[len(command) - command[::-1].index("-m")]


def test_each_kernel_runs_its_tests(ran: dict[str, list[Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert suite.run_all([]) == 0
    assert set(ran) == {"6.1", "6.12", "7.3", "6.12-preempt", "6.12-lsm"}
    for name in ("6.1", "6.12", "7.3"):
        kernel, command, options = ran[name]
        assert (kernel, options) == (name, ())
        assert marked(command) == "vm"
        assert f"TESTS_SHEET={suite.RESULTS}/{name}.json" in command
        assert {"tests/live/test_compared.py", "tests/live/test_surfaces.py"} <= {*command}
        assert "tests/live/test_perf.py" not in command
    kernel, command, options = ran["6.12-preempt"]
    assert (kernel, options) == ("6.12", ("preempt=full",))
    assert marked(command) == "preempt"
    files = [f"tests/{name}.py" for name in ("faults/test_machine", "live/test_budget", "live/test_preempt")]
    assert [word for word in command if word.startswith("tests/")] == files
    kernel, command, options = ran["6.12-lsm"]
    assert (kernel, marked(command)) == ("6.12", "lsm")
    assert "bpf" not in options[0]
    assert [word for word in command if word.startswith("tests/")] == ["tests/live/test_lsm.py"]
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_some_can_be_asked_for(ran: dict[str, list[Any]]) -> None:
    assert suite.run_all(["7.3"], ["-k", "two words"]) == 0
    assert list(ran) == ["7.3"]
    assert ran["7.3"][1][-2:] == ["-k", "two words"]


def test_one_machine_that_breaks_fails_all(
    ran: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(f"{__name__}.BREAKS", "6.1")
    assert suite.run_all([]) == 1
    assert "6.1: it fell over" in capsys.readouterr().out
    assert len(ran) == 4


@pytest.mark.usefixtures("ran")
def test_one_test_that_fails_fails_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.GOOD", BAD)
    assert suite.run_all(["6.12"]) == 1


@pytest.mark.parametrize(("ci", "status"), [("true", 1), ("", 0)])
def test_what_cannot_be_run_is_said_and_fails_in_integration(
    ci: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing() -> None:
        raise Missing("no emulator")

    monkeypatch.setattr(suite, "ready", nothing)
    monkeypatch.setenv("CI", ci)
    assert suite.run_all([]) == status
    assert (
        "NOT TESTED in virtual machines (7.3, 6.12, 6.1, 6.12-preempt, 6.12-lsm): no emulator"
        in capsys.readouterr().out
    )
