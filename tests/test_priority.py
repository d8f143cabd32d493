"""Real time, tried by processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.absent import absent

TAKE = """
import os, sys, threading
from pipeline import priority
if "--weak" in sys.argv:
    os.setuid(65534)
priority.take(print)
thread = threading.Thread(target=lambda: print(os.sched_getscheduler(0), os.sched_getparam(0).sched_priority))
thread.start()
thread.join()
"""


def taken(*arguments: str) -> list[str]:
    """What such a process says: warnings; policy and priority of a thread that began later."""
    command = [sys.executable, "-c", TAKE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture(autouse=True)
def need() -> None:
    if os.geteuid() != 0:
        absent("real time: it wants root")


def test_all_threads_have_it() -> None:
    assert taken() == [f"{os.SCHED_RR} 1"]


def test_who_may_not_is_told() -> None:
    said, values = taken("--weak")
    assert "CAP_SYS_NICE" in said
    assert values == f"{os.SCHED_OTHER} 0"
