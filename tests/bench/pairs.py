"""Blocks of a storm by turns without and with something, compared pair by pair."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

__all__ = ["Pairs"]


@dataclass(frozen=True)
class Pairs:
    """What one cycle of a storm took, block by block, in ns."""

    off: list[float]
    on: list[float]

    @property
    def base(self) -> float:
        """Without."""
        return statistics.median(self.off)

    @property
    def more(self) -> float:
        """What it takes more with it, ns."""
        return statistics.median(self._differences)

    @property
    def within(self) -> tuple[float, float]:
        """The interval that holds the true median of that with 95 %, ns."""
        ordered, n = sorted(self._differences), len(self.off)
        skip = max(0, round(n / 2 - 0.98 * n**0.5 - 0.5))
        return ordered[skip], ordered[n - 1 - skip]

    @property
    def percent(self) -> tuple[float, float, float]:
        """`more` and its interval, in per cent of `base`."""
        low, high = self.within
        return 100 * self.more / self.base, 100 * low / self.base, 100 * high / self.base

    @property
    def _differences(self) -> list[float]:
        return [on - off for off, on in zip(self.off, self.on, strict=True)]
