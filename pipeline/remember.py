"""A bounded memory: what was worked out once and is likely to be asked for again.

Two generations: what is used moves to the young one; when that is full it becomes the old one, and the old
one goes. So both the bound and what is forgotten depend only on what was asked, never on a clock (invariant
I9). Used by stages; imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, TypeVar

__all__ = ["Remembered"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """A dict that holds at most `limit` (in whatever `weigh` counts; by default entries)."""

    def __init__(self, limit: int, weigh: Callable[[K, V], int] | None = None) -> None:
        self._half = max(1, limit // 2)
        self._weigh = weigh
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        self._weight = 0
        self.turns = 0
        """How often generations changed: what `find` said before may be out of date."""

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: K) -> V | None:
        """What is remembered, or None; a found entry counts as used."""
        value = self._young.get(key)
        if value is None and self._old and (value := self._old.pop(key, None)) is not None:
            self[key] = value
        return value

    def find(self, keys: Iterable[K]) -> list[Any]:
        """What the young generation has for each key, or None: one call for a whole batch, then `get` for
        the rest."""
        return list(map(self._young.get, keys))

    def __setitem__(self, key: K, value: V) -> None:
        weight = self._weigh(key, value) if self._weigh else 1
        if weight > self._half:
            return
        if self._weight + weight > self._half:
            self._old, self._young, self._weight = self._young, {}, 0
            self.turns += 1
        self._young[key] = value
        self._weight += weight

    def clear(self) -> None:
        """Forget everything."""
        self._young, self._old, self._weight = {}, {}, 0
        self.turns += 1
