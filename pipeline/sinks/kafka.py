"""The Kafka sink: the end of the pipeline. Batches go to topics; while these do not take them, to the outbox.

While the broker is well the rings themselves are the log: a batch stays in flight until every record of it
was acknowledged, then its passage is retired. When acknowledgements stop coming, or hold the rings back,
everything goes through the outbox, in order, until that is empty again. One task, `_pump`, does all the
sending and counting, so that there is no order between tasks to get wrong; librdkafka is polled in line, and
not at all while nothing is under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio
from confluent_kafka import KafkaError, Producer

from pipeline.event import Encoded, Ints, Loss
from pipeline.kafka import AwayError, DistrustError, explain
from pipeline.ledger import zeros
from pipeline.place import Kafka
from pipeline.sinks.connection import Connection
from pipeline.sinks.flight import SINK, Flight, Sent, Trouble
from pipeline.sinks.outbox import Outbox
from pipeline.sinks.sink import Keeper
from pipeline.stages.stage import Link
from pipeline.store import Outcome, Row

__all__ = ["KafkaSink"]

NAP: Final = 0.002
"""Seconds between two looks at librdkafka while something is under way."""
AWAY_NAP: Final = 0.05
"""The same while the broker is away."""
STALL: Final = 1.0
"""Seconds without an acknowledgement after which the broker is away."""
SLOW: Final = 1.0
"""Seconds that a batch may take while the rings are more than half full."""
END: Final = 10.0
"""Seconds that the end of a run gives a broker that is well to take what is in the outbox."""
WAITING: Final = 2
"""Batches that may wait for the pump."""
ROWS: Final = 8 << 20
"""Bytes of outbox rows under way."""


class KafkaSink:
    """See Sink. `open` first; then `limits` are known, and `run` may begin."""

    name = SINK

    def __init__(
        self,
        place: Kafka,
        outbox: Outbox,
        keeper: Keeper,
        warn: Callable[[str], None],
        *,
        properties: Mapping[str, Any] | None = None,
        partitions: int = 12,
        largest: int = 8 << 20,
        boot_id: str = "",
    ) -> None:
        """`properties` are librdkafka's; `partitions`, `largest` (bytes of a record) are for new topics;
        `boot_id`: this boot, as its heartbeats name it.
        """
        self._place, self._boot_id = place, boot_id
        self._connection = Connection(place, dict(properties or {}), partitions, largest)
        self._outbox, self._keeper, self._warn = outbox, keeper, warn
        outbox.under_way = self._under_way
        self._incoming: deque[Encoded] = deque()
        self._sending: deque[Flight] = deque()  # not all of it is librdkafka's yet
        self._flying: deque[Flight] = deque()
        self._landed: dict[int, Flight] = {}  # by row: acknowledged, and still in the outbox
        self._trouble = Trouble()
        self._spilling = not outbox.is_empty
        self._row = 0  # the last row of the outbox that was made a flight
        self._progress = -STALL
        self._said = ""
        self._broke: int | None = None
        self._ended_at: float | None = None
        self._wake, self._room = trio.Event(), trio.Event()

    @property
    def limits(self) -> dict[str, int]:
        """Family → bytes of the largest record that its topic takes; filled once the broker was seen."""
        return self._connection.limits

    # -- the contract

    async def open(self) -> None:
        """Reach the broker. Raises BrokerError; an absent broker is a warning, and the outbox."""
        try:
            await self._connection.open()
            self._progress = trio.current_time()
        except (AwayError, DistrustError) as error:
            self._say_away(str(error))

    async def run(self, source: Link[Encoded]) -> None:
        """See Sink. Where the broker is away at the end, what is left is safe in the outbox."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._connection.stay, lambda: self._wake.set(), self._say_away)
            nursery.start_soon(self._take, source)
            await self._pump()
            nursery.cancel_scope.cancel()
        await self._connection.close()

    def held(self) -> Ints:
        """See Sink: what came in and is neither acknowledged nor in the outbox."""
        flights = (f.counts for f in (*self._flying, *self._sending) if f.encoded is not None)
        return sum(flights, sum((batch.counts for batch in self._incoming), zeros()))

    def in_outbox(self) -> Ints:
        """See Sink."""
        return self._outbox.counts

    def settled(self) -> Outcome:
        """See Sink."""
        return self._outbox.settled

    def tell(self, until: int) -> list[tuple[str, Loss]]:
        """What the outbox lost and nobody told: the heartbeat of that `until` does."""
        return self._outbox.tell(until)

    # -- the tasks

    async def _take(self, source: Link[Encoded]) -> None:
        async for batch in source:
            if not self._is_busy():
                self._progress = trio.current_time() if self._connection.producer else -STALL
            self._incoming.append(batch)
            self._wake.set()
            while len(self._incoming) >= WAITING:
                self._room = trio.Event()
                await self._room.wait()
        self._ended_at = trio.current_time()
        self._wake.set()

    async def _pump(self) -> None:
        while True:
            self._wake = trio.Event()
            await self._send()
            self._poll()
            await self._retire()
            if self._must_spill() and await self._outbox.make_room(self._row):
                await self._spill()
            self._room.set()
            if self._is_finished():
                return
            await self._nap()

    # -- what the pump does

    async def _send(self) -> None:
        """Make flights, and give librdkafka what it takes."""
        producer = self._connection.producer
        if not producer:
            return
        if self._spilling and not self._sending:
            await self._fetch()
        while self._sending or (self._incoming and not self._spilling):
            if not self._sending:
                self._sending.append(self._flight(self._incoming.popleft()))
            if not self._sending[0].send(producer):
                return
            self._flying.append(self._sending.popleft())

    async def _fetch(self) -> None:
        """Make flights of the outbox's next rows."""
        room = ROWS - sum(f.size for f in self._flying)
        if room > 0 and not self._outbox.is_empty:
            for row in await self._outbox.rows(self._row, room):
                self._sending.append(self._flight(row))
                self._row = row.id

    def _flight(self, what: Encoded | Row) -> Flight:
        return Flight(what, self._place, self._trouble, trio.current_time(), self._boot_id)

    def _poll(self) -> None:
        """Serve the callbacks; deal with what they reported."""
        served, errors = self._connection.poll()
        if served:
            self._progress = trio.current_time()
        for error in errors:
            if error.code() == KafkaError._FATAL:
                self._trouble.broken = error
            elif self._is_stalled():
                self._say_away(explain(error, self._place.address))
        if self._trouble.broken:
            self._begin_again(self._trouble.broken)
            return
        if self._trouble.refused:
            # Each goes again in a batch of its own: only the guilty is lost.
            self._send_each(self._trouble.refused, Flight.send_alone, self._connection.alone())
        if self._trouble.told and self._connection.producer:
            self._send_each(self._trouble.told, Flight.tell, self._connection.producer)

    def _send_each(
        self, records: list[tuple[Flight, Sent]], send: Callable[[Flight, Producer, Sent], None], to: Producer
    ) -> None:
        """As far as librdkafka takes them now."""
        while records:
            flight, record = records.pop()
            try:
                send(flight, to, record)
            except BufferError:
                records.append((flight, record))
                return

    def _begin_again(self, error: KafkaError) -> None:
        """The producer cannot go on: a new one sends again what is not acknowledged, in the same order."""
        if error.code() != self._broke:
            self._warn(f"{explain(error, self._place.address)}; what is not acknowledged is sent again")
        self._broke = error.code()
        flights = [*self._flying, *self._sending]
        self._incoming.extendleft(f.encoded for f in reversed(flights) if f.encoded is not None)
        self._row = min((f.row - 1 for f in flights if f.row), default=self._row)
        self._flying.clear()
        self._sending.clear()
        # Callbacks of the old producer would reach flights that nobody waits for.
        self._trouble = Trouble()
        self._connection.lose()

    async def _retire(self) -> None:
        """Everything before the first flight that is not acknowledged is safe."""
        until = 0
        number = len(self._flying)
        while self._flying and not self._flying[0].left:
            flight = self._flying.popleft()
            outcome = flight.outcome()
            until = max(until, flight.until)
            if flight.encoded is not None:
                passage = flight.encoded.passage
                for (_, stage, reason), counts in outcome.lost.items():
                    passage.book("lost", stage, reason, counts)
                self._keeper.checkpoint(passage, outcome.acknowledged)
            else:
                self._landed[flight.row] = flight
        if number - len(self._flying) > len(self._landed):
            self._keeper.release()
        if self._landed:
            await self._outbox.settle({row: flight.outcome() for row, flight in self._landed.items()})
            self._landed.clear()
        if until and await self._outbox.is_told(until):
            self._keeper.complete(until)
            self._keeper.release()
        if self._spilling and self._outbox.is_empty:
            self._recover()

    def _recover(self) -> None:
        """The outbox is empty: batches go straight to the broker again."""
        self._spilling, self._broke = False, None
        self._progress = trio.current_time()
        if self._said:
            self._warn(f"Kafka at {self._place.address} is back; the outbox is delivered")
            self._said = ""

    def _must_spill(self) -> bool:
        if not self._has_unsafe():
            return False
        if not self._spilling:
            slow = self._flying and trio.current_time() - self._flying[0].since > SLOW
            self._spilling = self._is_stalled() or bool(slow and self._keeper.pressure() > 0.5)
        return self._spilling

    async def _spill(self) -> None:
        """Bring all that is not acknowledged into the outbox; what librdkafka has of it is not sent twice."""
        if self._is_stalled():
            self._say_away(f"Kafka at {self._place.address} does not acknowledge")
        flights = [f for f in self._flying if f.encoded is not None]
        unsent = [f.encoded for f in self._sending if f.encoded is not None]
        batches = [*(f.encoded for f in flights if f.encoded is not None), *unsent, *self._incoming]
        incoming = len(self._incoming)
        ids = await self._outbox.put(batches)
        for flight, id in zip(flights, ids, strict=False):
            flight.row = id
        self._flying = deque(f for f in self._flying if f.row)
        self._sending = deque(f for f in self._sending if f.row)
        for _ in range(incoming):
            self._incoming.popleft()
        self._row = max((f.row for f in flights), default=self._row)

    async def _nap(self) -> None:
        """Until a batch comes; while something is under way, only for a moment."""
        nap = float("inf")
        if self._is_busy():
            nap = AWAY_NAP if self._is_stalled() else NAP
        with trio.move_on_after(nap):
            await self._wake.wait()

    # -- what it knows

    def _under_way(self) -> dict[int, Encoded | Row]:
        flights = (*self._landed.values(), *self._flying, *self._sending)
        return {flight.row: flight.what for flight in flights if flight.row}

    def _has_unsafe(self) -> bool:
        return bool(self._incoming) or any(f.encoded is not None for f in (*self._flying, *self._sending))

    def _is_busy(self) -> bool:
        return bool(self._incoming or self._sending or self._flying or not self._outbox.is_empty)

    def _is_stalled(self) -> bool:
        return trio.current_time() - self._progress > STALL

    def _is_finished(self) -> bool:
        if self._ended_at is None or self._has_unsafe():
            return False
        late = trio.current_time() - self._ended_at > END
        return not self._is_busy() or self._is_stalled() or late

    def _say_away(self, why: str) -> None:
        """One warning until the broker is back."""
        if not self._said:
            self._warn(f"{why}; events go to the outbox until it is back")
        self._said = why
