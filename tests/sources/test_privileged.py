"""What is opened before privileges are dropped: what nobody can tell is not vouched for."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from pipeline.chunk import AUDIT_RING, STRIDE
from pipeline.kernel.layout import OWN
from pipeline.kernel.own_ring import OwnMemory, OwnRing
from pipeline.kernel.ring import PAGE
from pipeline.sources.privileged import GivenUp


@pytest.mark.parametrize(
    ("answers", "sums", "unknown"),
    [
        ([500, 500, 503, 503], [0, 0, 3, 3], 0),
        ([500, None, None, 504], [0, 0, 0, 4], 2),
        ([None, 500, 501], [0, 0, 1], 0),
        ([None, None, 500], [0, 0, 0], 1),
        ([500, 0, 2], [0, 0, 2], 0),
    ],
    ids=["told", "late", "not at first", "not for long", "set back by somebody"],
)
def test_what_the_kernel_gave_up(answers: list[int | None], sums: list[int], unknown: int) -> None:
    """Losses from before the first answer are not this run's; times without one are booked."""
    row: Any = np.zeros(1, OWN)
    fd = os.memfd_create("ring")
    os.ftruncate(fd, 2 * PAGE + 64 * STRIDE)
    ring = OwnRing(AUDIT_RING, OwnMemory(fd, 64 * STRIDE), row, {})
    coming = iter(answers)
    given_up = GivenUp(lambda: next(coming), ring)
    assert [given_up() for _ in answers] == sums
    ring.publish(1)
    os.close(fd)
    assert int(row["away"][0]) == unknown
