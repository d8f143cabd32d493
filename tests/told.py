"""What a consumer can know of a host's stream by its notices alone: the model that tests compare with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

__all__ = ["complete_until", "kinds_lost", "numbers_lost"]

Record = dict[str, Any]


def numbers_lost(notices: Iterable[Record], reason: str = "full") -> dict[int, set[int]]:
    """Ring → sequences that intervals say are missing, those that came late taken back."""
    found: dict[int, set[int]] = {}
    late: dict[int, set[int]] = {}
    for notice in notices:
        if notice["kind"] == "loss" and notice["first"] is not None:
            where = {reason: found, "late": late}.get(notice["reason"], {})
            where.setdefault(notice["ring"], set()).update(range(notice["first"], notice["last"] + 1))
    return {ring: numbers - late.get(ring, set()) for ring, numbers in found.items()}


def kinds_lost(notices: Iterable[Record]) -> Counter[tuple[str, str, str]]:
    """(stage, reason, kind) → events that notices without numbers say were lost."""
    found: Counter[tuple[str, str, str]] = Counter()
    for notice in notices:
        if notice["kind"] == "loss" and notice["first"] is None:
            for kind, n in (notice["kinds"] or {}).items():
                found[notice["stage"], notice["reason"], kind] += n
    return found


def complete_until(notices: Iterable[Record]) -> int:
    """The newest claim of all heartbeats; 0: there is none."""
    return max((n["complete_until"] or 0 for n in notices if n["kind"] == "heartbeat"), default=0)
