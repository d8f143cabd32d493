"""What a test needs and does not find: a failure where everything can be installed, elsewhere a loud skip."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

__all__ = ["absent"]


def absent(what: str) -> NoReturn:
    """End a test for want of a part that a set-up could install, or that root has.

    What a kernel itself does not give is no such part: tests/live/run.py and compare.py skip that by name.
    """
    if os.environ.get("CI") == "true":
        pytest.fail(f"cannot be tested here: {what}", pytrace=False)
    pytest.skip(f"NOT TESTED: {what}")
