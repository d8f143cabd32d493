"""The contract of a stage, and the one loop that runs every stage.

A stage is a plain object: it is called with a batch and returns the batches that go on, at once and without
awaiting. The loop around it (`run`) does what is asynchronous, the same for all. So no stage can await per
event, hold a batch across a cancellation, or forget to pass on the end.

The contract (tests/stages/test_contract.py runs it over every stage):

1. Order is kept. An empty batch is passed on: its `Passage` moves the rings' positions.
2. What is not passed on is booked, `passage.book("filtered" | "lost", stage, reason, counts)`, or still held.
3. `held()` counts what is inside, from the things themselves, at any moment between two calls.
4. `finish()` hands out everything that is held; the loop then closes the output. Ends go by end-of-channel.
5. A blocked output blocks the input: `run` takes nothing in while something waits to go out.
6. No clock, no /proc, no user database: such answers come through `answers.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, Self, TypeVar

import trio

from pipeline.event import Ints
from pipeline.ledger import zeros

__all__ = ["Countable", "Link", "Stage", "run"]


class Countable(Protocol):
    """Something that flows: it can say how many events of each kind it has."""

    @property
    def counts(self) -> Ints:
        """Events per kind number."""
        ...


In = TypeVar("In", bound=Countable)
Out = TypeVar("Out", bound=Countable)
T = TypeVar("T", bound=Countable)
In_contra = TypeVar("In_contra", bound=Countable, contravariant=True)
Out_co = TypeVar("Out_co", bound=Countable, covariant=True)


class Stage(Protocol[In_contra, Out_co]):
    """Turns batches into batches; see the contract above."""

    @property
    def name(self) -> str:
        """As the ledger and the logs call it."""
        ...

    def __call__(self, batch: In_contra, /) -> Iterable[Out_co]:
        """Take one batch; return what goes on now (none, one or several)."""
        ...

    def finish(self) -> Iterable[Out_co]:
        """The input has ended: return all that is held."""
        ...

    def held(self) -> Ints:
        """Events per kind that are inside."""
        ...


class Link(Generic[T]):
    """A small bounded channel between two stages that knows what is in it."""

    def __init__(self, name: str, size: int = 1) -> None:
        self.name = name
        self._send, self._receive = trio.open_memory_channel[T](size)
        self._inside: deque[T] = deque()
        self.taken = 0
        """Batches that went through."""

    async def send(self, batches: Iterable[T]) -> None:
        """Pass batches on, in order; waits while the link is full. All count as inside at once."""
        batches = list(batches)
        self._inside.extend(batches)
        for batch in batches:
            await self._send.send(batch)

    def close(self) -> None:
        """No more will come: the receiving side ends once it has taken what is inside."""
        self._send.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            batch = await self._receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        self._inside.popleft()
        self.taken += 1
        return batch

    def __len__(self) -> int:
        return len(self._inside)

    def held(self) -> Ints:
        """Events per kind that are inside."""
        return sum((batch.counts for batch in self._inside), zeros())


async def run(
    stage: Stage[In, Out], source: Link[In], target: Link[Out], keep: Callable[[], bool] = lambda: False
) -> None:
    """Run a stage until its input ends; pass on what it holds; close its output.

    `keep` says at the end whether what is held shall stay where it came from instead: in rings that live on,
    for the next run, because their positions have not moved over it.
    """
    async for batch in source:
        await target.send(stage(batch))
    if not keep():
        await target.send(stage.finish())
    target.close()
