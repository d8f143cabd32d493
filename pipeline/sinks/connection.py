"""The Kafka sink's hold on its broker: one producer that is there or not, and how it is got (again)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import trio
from confluent_kafka import KafkaError, Producer

from pipeline.kafka import OVERHEAD, AwayError, BrokerError, DistrustError, clear, ensure, producer
from pipeline.place import Kafka

__all__ = ["Connection"]

RETRY: Final = 1.0
"""Seconds between two tries to reach a broker."""
FIRST_LOOK: Final = 1.0
"""Seconds for a new producer's first look at the cluster."""


class Connection:
    """A producer, while there is one."""

    def __init__(self, place: Kafka, properties: Mapping[str, Any], partitions: int, largest: int) -> None:
        """`partitions` and `largest` (bytes of a record) are for topics that are made."""
        self._place, self._properties = place, properties
        self._partitions, self._largest = partitions, largest
        self.producer: Producer | None = None
        self._alone: Producer | None = None
        self._heard: list[KafkaError] = []
        self._lost = trio.Event()
        self.limits: dict[str, int] = {}
        """Family → bytes of the largest record that its topic takes; known once the broker was seen."""

    async def open(self) -> None:
        """Reach the broker; missing topics are made. Raises BrokerError, AwayError: after that, and after
        DistrustError, `stay` goes on trying.
        """
        try:
            await self._reach()
        except (AwayError, DistrustError):
            self._lost.set()
            raise

    async def stay(self, came: Callable[[], None], failed: Callable[[str], None]) -> None:
        """A task: whenever there is no producer, get one, and say how it went."""
        while True:
            await self._lost.wait()
            try:
                await self._reach()
                self._lost = trio.Event()
                came()
            except (AwayError, BrokerError) as error:
                failed(str(error))
            await trio.sleep(RETRY)

    async def _reach(self) -> None:
        self.producer = await trio.to_thread.run_sync(self._connected, abandon_on_cancel=True)

    def _connected(self) -> Producer:
        """Make sure of the topics and of a producer that is connected. Blocks."""
        limits = ensure(self._place, self._properties, partitions=self._partitions, largest=self._largest)
        self.limits.update({family: limit - OVERHEAD for family, limit in limits.items()})
        client = self._make()
        # Without this the first record waits a second for librdkafka's own first look.
        with clear(self._place.address):
            client.list_topics(timeout=FIRST_LOOK)
        return client

    def _make(self, **own: Any) -> Producer:
        largest = max(self.limits.values(), default=self._largest) + OVERHEAD
        return producer(self._place, self._properties, largest=largest, heard=self._heard.append, **own)

    def alone(self) -> Producer:
        """A second producer, which puts every record into a batch of its own."""
        self._alone = self._alone or self._make(batch_num_messages=1)
        return self._alone

    def poll(self) -> tuple[int, list[KafkaError]]:
        """Serve the callbacks; how many there were for records, and the errors that were for nobody."""
        served = self.producer.poll(0) if self.producer else 0
        if self._alone:
            served += self._alone.poll(0)
            if not len(self._alone):
                self._alone = None
        heard = self._heard.copy()
        self._heard.clear()
        return served - len(heard), heard

    def lose(self) -> None:
        """These producers cannot go on: `stay` gets a new one."""
        self.producer = self._alone = None
        self._lost.set()

    async def close(self) -> None:
        """Let the producers go with what they have not delivered: that is safe elsewhere."""
        for client in (self.producer, self._alone):
            if client:
                client.purge(blocking=False)
                await trio.to_thread.run_sync(client.flush, 0.1)
        self.producer = self._alone = None
