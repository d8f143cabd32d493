"""One batch on its way through librdkafka: what the Kafka sink sends, and what comes back for each record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any, Final

import msgpack
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from pipeline.event import Encoded, Records
from pipeline.ledger import Tally, add, zeros
from pipeline.notices import LOSS, NOTICES, complete_of, of_record
from pipeline.place import Kafka
from pipeline.schema import by_name
from pipeline.store import Outcome, Row

__all__ = ["SINK", "Flight", "Sent", "Trouble"]

REFUSED: Final = {
    KafkaError.MSG_SIZE_TOO_LARGE: "too large",
    KafkaError.RECORD_LIST_TOO_LARGE: "too large",
    KafkaError.INVALID_RECORD: "refused by the broker",
    KafkaError.INVALID_TIMESTAMP: "time refused by the broker",
}
"""Errors that mean a record, or one beside it in its batch, will never be taken."""

SINK: Final = "kafka"
"""As the ledger calls it."""
Sent = tuple[str, bytes, bytes, int]
"""Topic, key, value, ms since the epoch."""


@dataclass(slots=True)
class Trouble:
    """What callbacks reported, for the sink to deal with."""

    refused: list[tuple[Flight, Sent]] = field(default_factory=list)
    """Records whose whole batch was refused: each is to be tried alone."""
    told: list[tuple[Flight, Sent]] = field(default_factory=list)
    """Loss records in the place of those that were refused for good."""
    broken: KafkaError | None = None
    """The producer cannot deliver what it has."""


class Flight:
    """Counts the delivery callbacks of one batch, new (`encoded`) or from the outbox (`row`)."""

    __slots__ = (
        "_notices", "_rest", "_trouble", "counts", "left", "lost", "row", "since", "size", "until", "what"
    )  # fmt: skip

    def __init__(
        self, what: Encoded | Row, place: Kafka, trouble: Trouble, now: float, boot_id: str = ""
    ) -> None:
        """`boot_id`: the boot whose heartbeats count."""
        records: Mapping[str, Records]
        if isinstance(what, Row):
            self.row, self.size, records = what.id, len(what.body), what.unpack()
        else:
            self.row, self.size, records = 0, 0, what.records
        self.what = what
        """What it was made of: should the outbox lose its row, this is where that is still whole."""
        self.counts = what.counts
        self.since = now
        self.lost: Tally = {}
        self.left = sum(len(r.values) for r in records.values())
        """Records that have not found their end."""
        self.until = complete_of(records, boot_id)
        """What is acknowledged with this batch is all up to this boottime, ns (0: nothing says so)."""
        self._notices = {notice: place.topic(notice) for notice in NOTICES}
        self._trouble = trouble
        self._rest: Iterator[Sent] = chain.from_iterable(
            zip(repeat(place.topic(family)), r.keys, r.values, r.times, strict=False)
            for family, r in records.items()
        )

    @property
    def encoded(self) -> Encoded | None:
        """The batch, as long as the outbox has no row of it."""
        return None if self.row or isinstance(self.what, Row) else self.what

    def send(self, producer: Producer) -> bool:
        """Give records to librdkafka; True when all are given, False when its queue is full."""
        produce, callback = producer.produce, self.delivered
        for record in self._rest:
            topic, key, value, time = record
            try:
                # All by position: a keyword costs 150 ns, and there is one call per record.
                produce(topic, value, key, -1, callback, None, time)
            except BufferError:
                self._rest = chain((record,), self._rest)
                return False
            except KafkaException as exception:
                self._failed(exception.args[0], record)
        return True

    def delivered(self, error: KafkaError | None, message: Message) -> None:
        """The delivery callback of every record."""
        if error is None:
            self.left -= 1
        elif error.code() in REFUSED:
            self._trouble.refused.append((self, _sent(message)))
        else:
            self._trouble.broken = error

    def tell(self, producer: Producer, record: Sent) -> None:
        """Send a loss record. Raises BufferError."""
        topic, key, value, time = record
        producer.produce(topic, value, key, -1, self.delivered, timestamp=time)

    def send_alone(self, producer: Producer, record: Sent) -> None:
        """Try a record again that was refused in company. Raises BufferError."""
        topic, key, value, time = record
        try:
            producer.produce(topic, value, key, -1, self._delivered_alone, timestamp=time)
        except KafkaException as exception:
            self._failed(exception.args[0], record)

    def _delivered_alone(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.left -= 1
        else:
            self._failed(error, _sent(message))

    def _failed(self, error: KafkaError, record: Sent) -> None:
        """A record that was alone with its error: if Kafka will never take it, book it as lost, and let a
        loss record take its place. The batch is not safe before that is.
        """
        if error.code() not in REFUSED:
            self._trouble.broken = error
            return
        topic, _, value, time = record
        if topic in self._notices.values():  # nothing is left to tell it with
            self.left -= 1
            self.until = 0
            return
        event, reason = _unpack(value), REFUSED[error.code()]
        counts = zeros()
        counts[by_name()[event["kind"]].number] = 1
        add(self.lost, {("lost", SINK, reason): counts})
        key = event["host"]["boot_id"].encode()
        told = self._notices[LOSS], key, of_record(event, SINK, reason), time
        self._trouble.told.append((self, told))

    def outcome(self) -> Outcome:
        """What became of its events, once `left` is 0."""
        return Outcome(self.counts - sum(self.lost.values(), zeros()), self.lost)


def _sent(message: Message) -> Sent:
    topic, key, value = message.topic(), message.key(), message.value()
    assert topic is not None
    return topic, key or b"", value or b"", message.timestamp()[1]


def _unpack(value: bytes) -> dict[str, Any]:
    record: dict[str, Any] = msgpack.unpackb(value, strict_map_key=False, unicode_errors="surrogateescape")
    return record
