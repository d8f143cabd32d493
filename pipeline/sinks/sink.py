"""The contract of a sink: where encoded batches become safe, and who is told.

1. Batches become safe in the order in which they came; `Keeper.checkpoint` is called once for each.
2. Safe means: every record acknowledged by all in-sync replicas, or committed to the local log or the outbox.
3. A record that cannot be stored for good is booked on its passage ("lost", sink's name, reason) before the
   passage is retired; it takes no other record with it.
4. `run` returns when the input has ended and everything taken in is safe.
5. While nothing can be stored, the sink stops taking batches in: backpressure reaches the rings.
"""

from __future__ import annotations

from typing import Any, Protocol

from pipeline.event import Encoded, Ints, Passage
from pipeline.ledger import Tally
from pipeline.stages.stage import Link
from pipeline.store import Outcome

__all__ = ["Keeper", "Sink"]


class Keeper(Protocol):
    """Who keeps the books and moves the rings' positions (sinks/checkpoint.py)."""

    def checkpoint(
        self, passage: Passage, acknowledged: Ints, *, spilled: Ints | None = None
    ) -> dict[str, Any]:
        """Take a passage into the books; return them, plain, to be stored together with its records.

        `spilled`: events that went into the outbox. In order, once per passage. Positions do not move yet.
        """
        ...

    def settled(self, left: Tally) -> None:
        """Events left the outbox, and its file says so: a second witness, stored with the next books."""
        ...

    def complete(self, until: int) -> None:
        """A heartbeat was acknowledged, and everything in front of it: `until` is its word on that, boottime
        ns. It is kept with the next release.
        """
        ...

    def release(self) -> None:
        """What was checkpointed is stored: write the pinned checkpoint, then move the rings' positions."""
        ...

    def pressure(self) -> float:
        """How full the fullest ring is, 0 to 1, from its position (not its cursor) to its producer."""
        ...


class Sink(Protocol):
    """Takes encoded batches to safety."""

    @property
    def name(self) -> str:
        """As the ledger and the logs call it."""
        ...

    async def run(self, source: Link[Encoded]) -> None:
        """Store everything that comes; return when the input has ended and all is safe."""
        ...

    def held(self) -> Ints:
        """Events per kind taken in and not yet safe: in flight."""
        ...

    def in_outbox(self) -> Ints:
        """Events per kind in the outbox, counted from its rows (zeros where there is none)."""
        ...

    def settled(self) -> Outcome:
        """What became of this attachment's events that left the outbox (zeros where there is none).

        Their passages were retired before that: this adds to what the keeper's books say.
        """
        ...
