"""Reads a place's topics: all partitions as one stream in order of time. For tail, replay and consume.

Partitions are assigned by hand, from and to fixed offsets: no group, nothing is committed. A record goes out
when every partition has shown its next one or its end, the earliest first; partitions that run ahead are
paused, so that what is held stays bounded.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from typing import Any, Final

import trio
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from pipeline.kafka import REMEDIES, AwayError, BrokerError, clear, explain, patiently, present, settings
from pipeline.place import Kafka
from pipeline.sources.source import Picked, Record, Window

__all__ = ["TopicSource"]

AHEAD: Final = 4096
"""Records of one partition that may wait for the others."""
AT_ONCE: Final = 1000
"""Records taken from librdkafka at once."""
NAP: Final = 0.02
"""Seconds between two looks when nothing came."""
TIMEOUT: Final = 20.0
"""Seconds until a broker that answers nothing has gone."""
MARKERS: Final = 16
"""Offsets that hold no record (ends of transactions), beside as many again as are asked for."""


@dataclass(slots=True)
class Partition:
    """One partition while it is read."""

    family: str
    name: TopicPartition
    """With the offset to start from."""
    end: int
    """The offset at which it ended when reading began."""
    past: bool
    """It was read up to there."""
    at_end: bool = False
    """Nothing more stands there now."""
    waiting: deque[Record] = field(default_factory=deque)
    paused: bool = False

    def take(self, message: Message, *, bounded: bool) -> None:
        """Take what the consumer got; `bounded`: only what stood there when reading began."""
        offset = message.offset()
        assert offset is not None
        self.at_end = False
        self.past = self.past or offset >= self.end - 1
        if bounded and offset >= self.end:
            return
        place = f"{self.family}/{self.name.partition}@{offset}"
        stamp = message.timestamp()[1]
        self.waiting.append(Record(self.family, message.key() or b"", message.value() or b"", stamp, place))


class TopicSource:
    """The topics of a place, read like one log."""

    def __init__(self, place: Kafka, properties: Mapping[str, Any] | None = None) -> None:
        """`properties` are librdkafka's own."""
        self._place, self._properties = place, dict(properties or {})

    @trio.as_safe_channel
    async def batches(self, window: Window) -> AsyncGenerator[list[Record], None]:
        """See Source. Raises BrokerError where there are no topics, or a broker that is away or refuses."""
        reading = await trio.to_thread.run_sync(_Reading, self._place, self._properties, window)
        picked = Picked(window)
        try:
            while True:
                came = reading.fill()
                records = picked.take(reading.merged(wait=window.follow and picked.is_whole))
                if records:
                    yield records
                if reading.is_past():
                    yield picked.newest()
                    if not window.follow:
                        return
                await trio.sleep(0 if came else NAP)
        finally:
            reading.close()


class _Reading:
    """One reading of a place: a consumer and its partitions."""

    def __init__(self, place: Kafka, properties: Mapping[str, Any], window: Window) -> None:
        """Blocks while it looks for the offsets."""
        self._address, self._follow = place.address, window.follow
        options = settings(
            place,
            {"queued.max.messages.kbytes": 8192, "fetch.message.max.bytes": 1 << 20, **properties},
            group_id="promissory",
            enable_auto_commit=False,
            enable_partition_eof=True,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        try:
            _, topics = present(place, properties)
            if not topics:
                raise BrokerError(
                    f"{place} has no topics {place.topic('*')}; check the prefix, or `run` first"
                )
            with clear(place.address):
                self._consumer = Consumer(options)
                left_out = {place.topic(family) for family in window.without}
                wanted = (topic for topic in topics if topic not in left_out)
                names = [TopicPartition(topic, n) for topic in wanted for n in topics[topic]]
                starts = self._by_time(names, window.since) if window.since else None
                found = [self._partition(place, n, window, starts) for n in names]
                self._partitions = {(p.name.topic, p.name.partition): p for p in found}
                self._consumer.assign([p.name for p in found if self._follow or not p.past])
        except AwayError as error:
            raise BrokerError(f"{error}; start it, or check the address") from None
        self._silent_since = time.monotonic()

    def _by_time(self, names: list[TopicPartition], since: int) -> dict[str, int]:
        """(topic/partition) → the first offset whose stamp is not before; every earlier record is too old."""
        asked = [TopicPartition(n.topic, n.partition, since // 1_000_000) for n in names]
        found = patiently(self._consumer.offsets_for_times, asked, TIMEOUT)
        return {f"{n.topic}/{n.partition}": n.offset for n in found}

    def _partition(
        self, place: Kafka, name: TopicPartition, window: Window, starts: Mapping[str, int] | None
    ) -> Partition:
        low, end = patiently(self._consumer.get_watermark_offsets, name, TIMEOUT)
        start = low
        if starts is not None:
            found = starts[f"{name.topic}/{name.partition}"]
            start = end if found < 0 else max(low, found)
        if window.last is not None:
            start = max(start, end - 2 * window.last - MARKERS)
        family = name.topic.removeprefix(place.topic(""))
        at = TopicPartition(name.topic, name.partition, start)
        return Partition(family, at, end, past=start >= end)

    def fill(self) -> bool:
        """Take what librdkafka has; whether there was anything."""
        messages = self._consumer.consume(AT_ONCE, timeout=0)
        for message in messages:
            self._take(message)
        now = time.monotonic()
        if messages:
            self._silent_since = now
        elif not self._follow and now - self._silent_since > TIMEOUT:
            raise BrokerError(f"Kafka at {self._address} stopped answering; start it and read again")
        for partition in self._partitions.values():
            self._balance(partition)
        return bool(messages)

    def _take(self, message: Message) -> None:
        error, topic, number = message.error(), message.topic(), message.partition()
        if error and error.code() != KafkaError._PARTITION_EOF:
            if error.code() in REMEDIES or error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise BrokerError(explain(error, self._address))
            return  # librdkafka goes on by itself
        assert topic is not None
        assert number is not None
        partition = self._partitions[topic, number]
        if error:
            partition.at_end = partition.past = True
        else:
            partition.take(message, bounded=not self._follow)

    def _balance(self, partition: Partition) -> None:
        """Pause a partition that runs ahead of the others, until its records are gone."""
        if not partition.paused and len(partition.waiting) > AHEAD:
            self._consumer.pause([partition.name])
            partition.paused = True
        elif partition.paused and not partition.waiting:
            self._consumer.resume([partition.name])
            partition.paused = False

    def merged(self, *, wait: bool) -> Iterator[Record]:
        """The records that can go out, in order of time. `wait`: also for partitions read past their end."""
        partitions = list(self._partitions.values())

        def holds_back(p: Partition) -> bool:
            return not p.waiting and not p.at_end and (wait or not p.past)

        if any(holds_back(p) for p in partitions):
            return
        heap = [(p.waiting[0].time, n) for n, p in enumerate(partitions) if p.waiting]
        heapify(heap)
        while heap:
            partition = partitions[heap[0][1]]
            yield partition.waiting.popleft()
            if partition.waiting:
                heapreplace(heap, (partition.waiting[0].time, heap[0][1]))
            elif holds_back(partition):
                return
            else:
                heappop(heap)

    def is_past(self) -> bool:
        """Everything that stood there when reading began has gone out."""
        return all(p.past and not p.waiting for p in self._partitions.values())

    def close(self) -> None:
        """Let the consumer go."""
        self._consumer.close()
