"""What came back from the machines: JUnit files, read into one table and a verdict."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

__all__ = ["ALLOWED", "Result", "read", "table", "troubles"]

ALLOWED: Final[Mapping[str, str]] = {
    "7.3::test_audit::test_bpf_keeps_what_netlink_tells": "the compiler put audit_log_end into its callers",
    "6.1::test_names::test_what_a_security_module_denies*": "Landlock knows the network since Linux 6.7",
}
"""Tests that a machine may skip, as patterns of MACHINE::test, and why; any other skip is a failure."""


@dataclass
class Result:
    """One machine's tests: names of those that did not pass, each with what it said."""

    name: str
    seconds: float = 0
    tests: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    trouble: str = ""
    """Why there is nothing else to tell, or why it is not all."""


def read(name: str, path: Path, seconds: float, trouble: str = "") -> Result:
    """A machine's result from its JUnit file, which may be missing or cut short."""
    result = Result(name, seconds, trouble=trouble)
    try:
        suites = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        result.trouble = trouble or f"no report: {error}"
        return result
    for case in suites.iter("testcase"):
        result.tests += 1
        test = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        for verdict in case:
            said = verdict.get("message") or (verdict.text or "").strip()
            if verdict.tag in ("failure", "error"):
                result.failed[test] = said
            elif verdict.tag == "skipped":
                result.skipped[test] = said
    if not result.tests:
        result.trouble = trouble or "no test ran"
    return result


def troubles(results: Iterable[Result], allowed: Mapping[str, str] = ALLOWED) -> list[str]:
    """A line for all that is not as it must be; none: the verdict is good."""
    lines = []
    for result in results:
        if result.trouble:
            lines.append(f"{result.name}: {result.trouble}")
        lines += [f"{result.name}::{test} failed: {_short(said)}" for test, said in result.failed.items()]
        for test, said in result.skipped.items():
            if not any(fnmatch.fnmatchcase(f"{result.name}::{test}", pattern) for pattern in allowed):
                lines.append(f"{result.name}::{test} was skipped: {_short(said)}")
    return lines


def table(results: Iterable[Result]) -> str:
    """One row for each machine."""
    form = "{:14}{:>6}{:>8}{:>9}{:>9}".format
    rows = [form("machine", "tests", "failed", "skipped", "seconds")]
    for result in results:
        rows.append(
            form(result.name, result.tests, len(result.failed), len(result.skipped), f"{result.seconds:.0f}")
        )
    return "\n".join(rows)


def _short(said: str) -> str:
    return re.sub(r"\s+", " ", said)[:300]
