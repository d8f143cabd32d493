"""Nice values, tried by processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline.priority import AUTOGROUP
from tests.absent import absent

TAKE = """
import os, sys
from pipeline import priority
if "--weak" in sys.argv:
    os.setuid(65534)
priority.take(int(sys.argv[1]), print)
print(os.getpriority(os.PRIO_PROCESS, 0), open("/proc/self/autogroup").read().split()[-1])
"""


def taken(*arguments: str, leads: bool) -> list[str]:
    """What it says: warnings, its nice value, its session's. It leads the session, or a shell does."""
    shell = [] if leads else ["sh", "-c", '"$@"; exit $?', "sh"]
    command = [*shell, sys.executable, "-c", TAKE, *arguments]
    done = subprocess.run(command, start_new_session=True, capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:-1]


@pytest.fixture(autouse=True)
def need() -> None:
    if os.geteuid() != 0 or not AUTOGROUP.exists():
        absent("nice values: they want root, and sessions that are scheduled as one (CONFIG_SCHED_AUTOGROUP)")


def test_a_service_has_it_with_its_session() -> None:
    assert taken("-7", leads=True) == ["-7 -7"]


def test_a_shells_session_is_left_alone() -> None:
    assert taken("-7", leads=False) == ["-7 0"]


def test_who_may_not_is_told() -> None:
    said, values = taken("-7", "--weak", leads=True)
    assert "CAP_SYS_NICE" in said
    assert values == "0 0"
