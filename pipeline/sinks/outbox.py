"""The outbox: where batches are safe while Kafka does not take them. Below the Kafka sink.

A row goes in with the books that count it, and leaves when Kafka has acknowledged it, with what became of its
events: each in one transaction, so that the terms are exact whenever the process dies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pipeline.event import Encoded
from pipeline.ledger import zeros
from pipeline.sinks.persist import patiently, persist
from pipeline.sinks.sink import Keeper
from pipeline.store import Outcome, Row, Store

__all__ = ["Outbox"]


class Outbox:
    """A store, seen from trio. One call at a time."""

    def __init__(self, store: Store, keeper: Keeper, warn: Callable[[str], None]) -> None:
        self._store, self._keeper, self._warn = store, keeper, warn
        self._said_full = False
        self.counts = store.counts()
        """Events per kind of this attachment that are inside."""
        self.settled = store.settled()
        """What became of this attachment's events that left."""
        self.is_empty = store.is_empty()

    def has_room(self) -> bool:
        """Whether it may take more; warns once each time that it is full."""
        full = self._store.size >= self._store.limit
        if full and not self._said_full:
            self._warn(
                f"the outbox {self._store.path} is full ({self._store.limit} bytes): events wait in the "
                "rings until those overflow; bring the broker back or raise outbox.limit"
            )
        self._said_full = full
        return not full

    async def put(self, batches: Sequence[Encoded]) -> list[int]:
        """Make batches safe, in order, and release them; the ids of their rows (0: it had no records)."""
        ids = await persist(self._store, self._keeper, batches, "in_outbox", self._warn)
        self.counts = self.counts + sum((batch.counts for batch in batches), zeros())
        self.is_empty = self.is_empty and not any(ids)
        return ids

    async def rows(self, after: int, size: int) -> list[Row]:
        """The next rows after an id: at least one if there is one, then up to `size` bytes."""
        return await patiently(lambda: self._store.rows(after, size=size), self._store, self._warn)

    async def settle(self, outcomes: Mapping[int, Outcome]) -> None:
        """Rows leave: their events were acknowledged, or lost for good."""
        gone, own = await patiently(lambda: self._store.settle(outcomes), self._store, self._warn)
        self.counts = self.counts - gone
        self.settled.add(own)
        self.is_empty = self._store.is_empty()
