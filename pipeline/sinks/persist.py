"""Putting batches into a store, with the books that count them: what the local log and the outbox share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeVar

import trio

from pipeline.event import Encoded
from pipeline.ledger import zeros
from pipeline.sinks.sink import Keeper
from pipeline.store import BlockedError, Store

__all__ = ["patiently", "persist"]

RETRY: Final = 0.5
"""Seconds between two tries on a full disk."""
T = TypeVar("T")


async def persist(
    store: Store,
    keeper: Keeper,
    batches: Sequence[Encoded],
    term: Literal["acknowledged", "in_outbox"],
    warn: Callable[[str], None],
) -> list[int]:
    """Store batches and the books in one transaction, then release; the rows' ids (0: it had no records).

    `term` says what the events count as from now on.
    """
    books: dict[str, Any] | None = None
    for batch in batches:
        books = keeper.checkpoint(batch.passage, batch.counts if term == "acknowledged" else zeros())
    rows = [batch for batch in batches if len(batch)]
    ids = iter(await patiently(lambda: store.append(rows, books), store, warn))
    keeper.release()
    return [next(ids) if len(batch) else 0 for batch in batches]


async def patiently(call: Callable[[], T], store: Store, warn: Callable[[str], None]) -> T:
    """Run a store's call in a thread; while it is blocked (disk full), warn once and try again."""
    warned = False
    while True:
        try:
            return await trio.to_thread.run_sync(call)
        except BlockedError as error:
            if not warned:
                warn(f"{store.path} takes nothing ({error}); free some space: events wait in the rings")
                warned = True
        await trio.sleep(RETRY)
