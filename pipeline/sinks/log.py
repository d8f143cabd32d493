"""The local log: the end of the pipeline where no broker is configured. It is read like a topic.

What is committed is acknowledged. Batches that wait while a commit is under way share the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from pipeline.event import Encoded, Ints
from pipeline.ledger import zeros
from pipeline.sinks.persist import patiently, persist
from pipeline.sinks.sink import Keeper
from pipeline.stages.stage import Link
from pipeline.store import Outcome, Store

__all__ = ["LogSink"]

GROUP: Final = 16
"""Batches that may wait for a commit."""


class LogSink:
    """Stores batches in a state folder's log; the oldest leave when it is full, as in a topic."""

    name = "log"

    def __init__(self, store: Store, keeper: Keeper, warn: Callable[[str], None]) -> None:
        self.store, self._keeper, self.warn = store, keeper, warn
        self._held: deque[Encoded] = deque()

    async def run(self, source: Link[Encoded]) -> None:
        """See Sink."""
        send, receive = trio.open_memory_channel[Encoded](GROUP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._commit, receive)
            async with send:
                async for batch in source:
                    self._held.append(batch)
                    await send.send(batch)

    async def _commit(self, waiting: trio.MemoryReceiveChannel[Encoded]) -> None:
        async for batch in waiting:
            group = [batch]
            while waiting.statistics().current_buffer_used:
                group.append(waiting.receive_nowait())
            await persist(self, self._keeper, group, "acknowledged")
            for _ in group:
                self._held.popleft()
            if self.store.is_over:  # a thread's work for nothing costs as much as a commit
                await patiently(self, self.store.trim)

    async def renew(self, why: str) -> None:
        """See Shelf. What is in the log was acknowledged, and stays that: only readers miss it."""
        await trio.to_thread.run_sync(self.store.renew, why)

    def held(self) -> Ints:
        """See Sink."""
        return sum((batch.counts for batch in self._held), zeros())

    def in_outbox(self) -> Ints:
        """See Sink: there is none."""
        return zeros()

    def settled(self) -> Outcome:
        """See Sink: nothing is settled later."""
        return Outcome(zeros())
