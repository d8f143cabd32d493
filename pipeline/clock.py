"""The clock that live passes are stamped with: boottime, and what to add to it for the time since the epoch.

The sum is only changed when the system's clock really stepped or drifted: two clocks cannot be read at the
same instant, and events must not change places by the nanoseconds in between.
"""

from __future__ import annotations

import time
from typing import Final

__all__ = ["Clock"]

NOISE: Final = 20_000
"""ns: differences up to this are how well two clocks can be compared."""


class Clock:
    """Call it for (boottime, offset), both ns."""

    def __init__(self) -> None:
        self._offset, self._noise = self._compare()

    def __call__(self) -> tuple[int, int]:
        offset, noise = self._compare()
        if noise <= max(NOISE, self._noise) and abs(offset - self._offset) > NOISE:
            self._offset, self._noise = offset, noise
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME), self._offset

    def _compare(self) -> tuple[int, int]:
        """(offset, ns that the comparison took)."""
        before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        now = time.time_ns()
        after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return now - (before + after) // 2, after - before
