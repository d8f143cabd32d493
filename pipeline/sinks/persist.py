"""Putting batches into a store, with the books that count them: what the local log and the outbox share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, Protocol, TypeVar

import trio

from pipeline.event import Encoded
from pipeline.ledger import zeros
from pipeline.sinks.sink import Keeper
from pipeline.store import BlockedError, BrokenError, Store

__all__ = ["Shelf", "patiently", "persist"]

RETRY: Final = 0.5
"""Seconds between two tries on a full disk."""
T = TypeVar("T")


class Shelf(Protocol):
    """A store, and whoever answers for what is in it."""

    @property
    def store(self) -> Store:
        """What is asked. One call at a time."""
        ...

    def warn(self, text: str, /) -> None:
        """Say something to a person."""
        ...

    async def renew(self, why: str) -> None:
        """The file is broken: begin a new one, and book what is lost. Raises BlockedError."""
        ...


async def persist(
    shelf: Shelf, keeper: Keeper, batches: Sequence[Encoded], term: Literal["acknowledged", "in_outbox"]
) -> list[int]:
    """Store batches and the books in one transaction, then release; the rows' ids (0: it had no records).

    `term` says what the events count as from now on.
    """
    books: dict[str, Any] | None = None
    for batch in batches:
        if term == "acknowledged" and batch.passage.beat:
            keeper.complete(batch.passage.beat.until)
        if term == "acknowledged":
            books = keeper.checkpoint(batch.passage, batch.counts)
        else:
            books = keeper.checkpoint(batch.passage, zeros(), spilled=batch.counts)
    rows = [batch for batch in batches if len(batch)]
    ids = iter(await patiently(shelf, lambda: shelf.store.append(rows, books)))
    keeper.release()
    return [next(ids) if len(batch) else 0 for batch in batches]


async def patiently(shelf: Shelf, call: Callable[[], T]) -> T:
    """Run a store's call in a thread until it works. While it is blocked (disk full), warn once and try
    again; a broken file is renewed first.
    """
    broken, warned = "", False
    while True:
        try:
            if broken:
                await shelf.renew(broken)
                broken = ""
            return await trio.to_thread.run_sync(call)
        except BrokenError as error:
            broken = str(error)
            await trio.lowlevel.checkpoint()
        except BlockedError as error:
            if not warned:
                path = shelf.store.path
                shelf.warn(f"{path} takes nothing ({error}); free some space: events wait in the rings")
                warned = True
            await trio.sleep(RETRY)
