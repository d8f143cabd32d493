"""A verdict from what pytest writes: every failure counts, and every skip that nobody allowed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.vm.report import Result, read, table, troubles

TESTS = """
import pytest

def test_good():
    pass

@pytest.mark.parametrize("number", [1, 2])
def test_bad(number):
    assert number == 2, "not two"

@pytest.fixture
def broken():
    raise OSError("no such fixture")

def test_error(broken):
    pass

@pytest.mark.skip(reason="not here")
def test_skipped():
    pass
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """What is read from a report that pytest itself wrote."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "test_all.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "--junitxml=report.xml", "test_all.py"]
    subprocess.run(command, cwd=folder, check=False, capture_output=True)
    return read("6.1", folder / "report.xml", 12.4)


def test_all_is_read(result: Result) -> None:
    assert result.tests == 5
    assert set(result.failed) == {"test_all::test_bad[1]", "test_all::test_error"}
    assert "not two" in result.failed["test_all::test_bad[1]"]
    assert "no such fixture" in result.failed["test_all::test_error"]
    assert result.skipped == {"test_all::test_skipped": "not here"}
    assert not result.trouble


def test_failures_and_skips_are_troubles(result: Result) -> None:
    lines = troubles([result], {})
    assert len(lines) == 3
    assert any(line.startswith("6.1::test_all::test_bad[1] failed: ") for line in lines)
    assert "6.1::test_all::test_skipped was skipped: not here" in lines


def test_a_skip_may_be_allowed_on_one_machine_and_a_failure_never(result: Result) -> None:
    assert (
        len(troubles([result], {"6.1::test_all::test_skip*": "why", "6.1::test_all::test_bad*": "why"})) == 2
    )
    assert len(troubles([result], {"7.3::*": "why"})) == 3


@pytest.mark.parametrize("text", [None, "", "<testsuites><testsuite><testcase"])
def test_no_whole_report_is_trouble(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "report.xml").write_text(text)
    assert "no report" in troubles([read("6.1", tmp_path / "report.xml", 1)])[0]
    assert troubles([read("6.1", tmp_path / "report.xml", 1, "it fell over")]) == ["6.1: it fell over"]


def test_no_test_is_trouble(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text("<testsuites><testsuite/></testsuites>")
    assert troubles([read("6.1", tmp_path / "report.xml", 1)]) == ["6.1: no test ran"]


def test_the_table(result: Result) -> None:
    head, row = table([result]).splitlines()
    assert head.split() == ["machine", "tests", "failed", "skipped", "seconds"]
    assert row.split() == ["6.1", "5", "2", "1", "12"]
