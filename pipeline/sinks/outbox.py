"""The outbox: where batches are safe while Kafka does not take them. Below the Kafka sink.

A row goes in with the books that count it, and leaves when Kafka has acknowledged it, with what became of its
events: each in one transaction, so that the terms are exact whenever the process dies. What the outbox itself
loses (dropped when it is full, if that was asked for; damaged) leaves in the same way, and is kept to be
told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import trio

from pipeline.event import Encoded, Loss
from pipeline.ledger import zeros
from pipeline.sinks.persist import patiently, persist
from pipeline.sinks.sink import Keeper
from pipeline.store import Outcome, Row, Store

__all__ = ["Full", "Outbox"]

Full = Literal["block", "drop-oldest"]
"""What a full outbox does: hold events back in the rings, or lose the oldest that it has."""


class Outbox:
    """A store, seen from trio. One call at a time."""

    def __init__(
        self, store: Store, keeper: Keeper, warn: Callable[[str], None], full: Full = "block"
    ) -> None:
        self.store, self._keeper, self.warn = store, keeper, warn
        self._drops = full == "drop-oldest"
        self._said_full = False
        self.counts = store.counts()
        """Events per kind of this attachment that are inside."""
        self.settled = store.settled()
        """What became of this attachment's events that left."""
        self.under_way: Callable[[], Mapping[int, Encoded | Row]] = dict
        """Rows by id that the sink has in memory: a broken file does not lose these."""
        self._losses = store.losses()
        self._told: dict[int, int] = {}
        """Losses by id → `until` of the heartbeat that tells them."""

    def tell(self, until: int) -> list[tuple[str, Loss]]:
        """Losses that were not told, with their attachments: the heartbeat of that `until` tells them now."""
        new = [id for id in self._losses if id not in self._told]
        self._told.update(dict.fromkeys(new, until))
        return [self._losses[id] for id in new]

    async def is_told(self, until: int) -> bool:
        """A heartbeat was acknowledged. Whether with it every loss is."""
        told = [id for id, by in self._told.items() if by <= until]
        if told:
            await patiently(self, partial(self.store.forget, told))
        for id in told:
            del self._told[id], self._losses[id]
        return not self._losses

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return self.store.is_empty

    async def make_room(self, after: int) -> bool:
        """Whether it may take more. Rows behind the id `after` may be dropped for it, where that is asked
        for. Warns once each time that it is full.
        """
        if self._is_full() and not self._said_full:
            if self._drops:
                what = "the oldest events in it are dropped, and booked as lost"
            else:
                what = "events wait in the rings until those overflow"
            self.warn(
                f"the outbox {self.store.path} is full ({self.store.limit} bytes): {what}; bring the broker "
                "back or raise outbox.limit"
            )
            self._said_full = True
        if self._is_full() and self._drops:
            await self._lose(partial(self.store.drop, after))
        elif not self._is_full():
            self._said_full = False
        return not self._is_full()

    def _is_full(self) -> bool:
        return self.store.size >= self.store.limit

    async def put(self, batches: Sequence[Encoded]) -> list[int]:
        """Make batches safe, in order, and release them; the ids of their rows (0: it had no records)."""
        ids = await persist(self, self._keeper, batches, "in_outbox")
        self.counts = self.counts + sum((batch.counts for batch in batches), zeros())
        return ids

    async def rows(self, after: int, size: int) -> list[Row]:
        """The next rows after an id, up to `size` bytes: none, and it is empty behind that id.

        A row that is damaged is lost alone.
        """
        while True:
            rows = await patiently(self, partial(self.store.rows, after, size=size))
            for row in rows:
                if not row.whole:
                    await self._lose(partial(self.store.discard, row))
            if not rows or any(row.whole for row in rows):
                return [row for row in rows if row.whole]

    async def settle(self, outcomes: Mapping[int, Outcome]) -> None:
        """Rows leave: their events were acknowledged, or lost for good."""
        await self._leave(partial(self.store.settle, outcomes))

    async def _leave(self, call: Callable[[], Outcome]) -> None:
        self._book(await patiently(self, call))
        self._keeper.release()

    async def _lose(self, call: Callable[[], Outcome]) -> None:
        await self._leave(call)
        self._losses = await patiently(self, self.store.losses)

    async def renew(self, why: str) -> None:
        """See Shelf. Positions stay: what is to be stored may not be stored yet."""
        known, memory = (self.counts, self.settled), self.under_way()
        self._book(await trio.to_thread.run_sync(self.store.renew, why, known, memory))
        self._losses = await trio.to_thread.run_sync(self.store.losses)

    def _book(self, left: Outcome) -> None:
        self.counts = self.counts - left.events
        self.settled.add(left)
        self._keeper.settled(left.tally)
