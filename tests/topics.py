"""Topics with known records, for the tests of those who read them."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.event import Encoded
from pipeline.kafka import ensure, producer
from pipeline.place import Kafka

__all__ = ["fill"]


def fill(place: Kafka, batches: Iterable[Encoded], *, partitions: int = 4) -> None:
    """Make a place's topics and produce batches into them."""
    limits = ensure(place, {}, partitions=partitions, largest=1 << 20)
    client = producer(place, {}, largest=max(limits.values()))
    errors: list[object] = []

    def delivered(error: object, _: object) -> None:
        if error:
            errors.append(error)

    for batch in batches:
        for family, columns in batch.records.items():
            for key, value, time in zip(columns.keys, columns.values, columns.times, strict=True):
                client.produce(place.topic(family), value, key, -1, delivered, timestamp=time)
        client.poll(0)
    client.flush()
    assert errors == []
