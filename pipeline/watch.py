"""Self-watch: what the pipeline finds wrong with itself, one line when it begins and one when it is over.

`app.py` looks every few seconds, in a task of its own: a stage that stalls would stall a heartbeat too. What
is found stands in the heartbeats, for those who watch many hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.config import Watch as Limits

__all__ = ["Facts", "Watch"]


@dataclass(frozen=True, slots=True)
class Facts:
    """How things are at one look."""

    now: float
    """Seconds, of a clock that never steps."""
    links: Sequence[tuple[str, int, int]]
    """(who takes from it, batches that wait in it, batches that went through), in the order of the flow."""
    rings: Mapping[int, float]
    """Ring → the part of it that is taken, 0 to 1."""
    outbox: int
    """Its bytes."""
    offset: int
    """ns from boottime to the time since the epoch."""
    balanced: bool
    """Whether the ledger adds up."""


class Watch:
    """Compares each look with those before."""

    def __init__(self, limits: Limits, say: Callable[[str], None]) -> None:
        self._limits, self._say = limits, say
        self._found: dict[Hashable, str] = {}
        self._began: dict[Hashable, str] = {}
        self._moved: dict[str, tuple[int, float]] = {}
        """Who takes → how many batches it took, and since when it is so many."""
        self._outbox, self._grown = 0, 0
        self._offset: int | None = None
        self._steps: list[str] = []
        self._unbalanced = 0

    @property
    def findings(self) -> list[str]:
        """What is wrong now."""
        return [*self._found.values(), *self._steps]

    def look(self, facts: Facts) -> None:
        """Take note of how things are; say what began and what is over."""
        self._found = {key: text for found in self._LOOKS for key, text in found(self, facts)}
        for key, text in self._found.items():
            if key not in self._began:
                self._say(text)
                self._began[key] = text
        for key in self._began.keys() - self._found.keys():
            self._say(f"over: {self._began.pop(key)}")
        self._steps = list(self._clocks(facts))
        for text in self._steps:
            self._say(text)

    def _stalls(self, facts: Facts) -> Iterator[tuple[Hashable, str]]:
        """Who takes nothing though something waits. Those before it wait for it: it alone is named."""
        stalled = None
        for name, waiting, taken in facts.links:
            before, since = self._moved.get(name, (-1, 0.0))
            if taken != before or not waiting:
                self._moved[name] = taken, facts.now
            elif facts.now - since >= self._limits.stall:
                stalled = name, waiting, facts.now - since
        if stalled:
            name, waiting, seconds = stalled
            text = f"{name} stalls: it took nothing for {seconds:.0f} s; {waiting} batches wait"
            yield ("stall", name), text

    def _rings(self, facts: Facts) -> Iterator[tuple[Hashable, str]]:
        for ring, filled in facts.rings.items():
            for mark in self._limits.rings:
                if filled >= mark:
                    yield ("ring", ring, mark), f"ring {ring} is over {mark:.0%} full: {filled:.0%}"

    def _outboxes(self, facts: Facts) -> Iterator[tuple[Hashable, str]]:
        self._grown = self._grown + 1 if facts.outbox > self._outbox else 0
        self._outbox = facts.outbox
        if self._grown >= self._limits.outbox:
            yield "outbox", f"the outbox grows: {facts.outbox:,} bytes"

    def _clocks(self, facts: Facts) -> Iterator[str]:
        before, self._offset = self._offset, facts.offset
        step = 0 if before is None else facts.offset - before
        if abs(step) > self._limits.clock * 1e9:
            yield f"the clock stepped by {step / 1e9:+.3f} s"

    def _ledgers(self, facts: Facts) -> Iterator[tuple[Hashable, str]]:
        """Twice in a row: so nobody is woken by a look that met two numbers on their way."""
        self._unbalanced = 0 if facts.balanced else self._unbalanced + 1
        if self._unbalanced > 1:
            yield "ledger", "THE LEDGER DOES NOT ADD UP: see `promissory ledger`"

    _LOOKS = (_stalls, _rings, _outboxes, _ledgers)
