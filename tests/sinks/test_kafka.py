"""The Kafka sink against a real Apache Kafka that hangs, dies and refuses; read back by a plain consumer."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from pipeline.event import Encoded, Ints
from pipeline.kafka import BrokerError
from pipeline.ledger import Tally, add, zeros
from pipeline.notices import LOSS, topics
from pipeline.place import Kafka
from pipeline.sinks.checkpoint import BookKeeper, restore
from pipeline.sinks.kafka import KafkaSink
from pipeline.sinks.outbox import Full, Outbox
from pipeline.stages.stage import Link
from pipeline.store import Store
from tests.broker import Broker
from tests.encoded import BOOT, Rings, encoded, record, stream, total, with_beat

pytestmark = pytest.mark.kafka


@dataclass
class Subject:
    """A sink with all that it stands on."""

    path: Path
    place: Kafka
    options: dict[str, Any] = field(default_factory=dict)
    full: Full = "block"
    limit: int = 4 << 30

    def __post_init__(self) -> None:
        self.rings, self.area = Rings(), bytearray(8192)
        self.warnings: list[str] = []
        self.sent: list[Encoded] = []
        self.link: Link[Encoded] = Link("encoded")
        self.store = Store(self.path / "outbox.db", "a", limit=self.limit, warn=self.warnings.append)
        books = restore(self.area, [self.store.books()])
        self.keeper = BookKeeper(books, self.area, move=self.rings.move, pressure=self.rings.pressure)
        self.outbox = Outbox(self.store, self.keeper, self.warnings.append, self.full)
        self.sink = KafkaSink(self.place, self.outbox, self.keeper, self.warnings.append, **self.options)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the sink, run it, and wait for its end."""
        await self.sink.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.sink.run, self.link)
            yield
            self.link.close()
        assert self.sink.held().sum() == 0
        self.check()
        self.store.close()

    async def send(self, batches: Iterable[Encoded]) -> None:
        """Feed batches; the books balance after each."""
        for batch in batches:
            self.sent.append(batch)
            await self.link.send([batch])
            self.check()

    def check(self) -> None:
        """acknowledged + lost + in outbox + in flight = all that was sent, at any moment."""
        acknowledged = self.keeper.books.acknowledged + self.sink.settled().acknowledged
        terms = acknowledged + sum(self.lost().values(), zeros()) + self.sink.in_outbox()
        assert (terms + self.sink.held() + self.link.held()).tolist() == self.all_sent().tolist()

    def all_sent(self) -> Ints:
        """Events per kind."""
        return total(self.sent)

    def lost(self) -> Tally:
        """What was lost, directly or by way of the outbox (where a busy machine may send any batch)."""
        tally = self.keeper.books.tally
        add(tally, self.sink.settled().lost)
        return tally

    def acknowledged(self) -> int:
        return int((self.keeper.books.acknowledged + self.sink.settled().acknowledged).sum())


async def until(condition: Callable[[], bool], seconds: float = 40) -> None:
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        await trio.sleep(0.02)
    pytest.fail("what was waited for did not come")


def stored(place: Kafka, family: str = "process") -> list[Message]:
    """All records of a place, each partition's in its own order."""
    options = {"bootstrap.servers": place.address, "group.id": "t", "enable.partition.eof": True}
    consumer = Consumer(options | {"auto.offset.reset": "earliest", "log_level": 0})
    try:
        topic = consumer.list_topics(place.topic(family), timeout=10).topics[place.topic(family)]
        consumer.assign([TopicPartition(topic.topic, n, OFFSET_BEGINNING) for n in topic.partitions])
        found, ends = [], 0
        while ends < len(topic.partitions):
            message = consumer.poll(20)
            assert message is not None
            if message.error():
                ends += 1
            else:
                found.append(message)
        return found
    finally:
        consumer.close()


def check_stored(place: Kafka, sent: list[Encoded], *, once: bool = True, missing: int = 0) -> None:
    """Everything that was sent stands in the topic, byte for byte, each process's in order."""
    messages = stored(place)
    expected = [v for batch in sent for v in batch.records["process"].values]
    values = [m.value() for m in messages]
    assert len(set(expected) - set(values)) == missing
    if once:
        assert len(values) == len(expected) - missing
    partitions: dict[bytes | None, set[int | None]] = {}
    order: dict[bytes | None, list[int]] = {}
    for message in messages:
        fields = msgpack.unpackb(message.value())
        assert message.key() == fields["process"]["id"].encode()
        assert message.timestamp()[1] == fields["time"] // 1_000_000
        assert message.headers() is None
        partitions.setdefault(message.key(), set()).add(message.partition())
        first_time = order.setdefault(message.key(), [])
        if fields["sequence"] not in first_time:
            first_time.append(fields["sequence"])
    assert all(len(numbers) == 1 for numbers in partitions.values())
    assert all(sequences == sorted(sequences) for sequences in order.values())


@pytest.fixture
def place(kafka: Broker, request: pytest.FixtureRequest) -> Kafka:
    return Kafka(kafka.address, request.node.name.replace("[", ".").replace("]", "")[:60])


async def test_all_is_acknowledged_and_in_order(place: Kafka, tmp_path: Path) -> None:
    subject = Subject(tmp_path, place, {"partitions": 5, "largest": 2 << 20})
    async with subject.running():
        await subject.send(stream(60, 200))
        await subject.send([encoded(61, [], {0: (61 * 200 * 256, 61 * 200)})])
        await until(lambda: subject.keeper.books.number == 61)
        await until(lambda: subject.acknowledged() == 12_000)  # some may have gone by way of the outbox
    assert subject.rings.positions == {0: 61 * 200 * 256}
    assert subject.sink.limits == dict.fromkeys(topics(), 2 << 20)
    assert subject.outbox.is_empty
    check_stored(place, subject.sent)
    assert len({m.partition() for m in stored(place)}) > 1


async def test_an_idle_sink_does_nothing(place: Kafka, tmp_path: Path) -> None:
    subject = Subject(tmp_path, place)
    async with subject.running():
        await subject.send(stream(1, 10))
        await until(lambda: subject.keeper.books.number == 1)
        steps = 0

        class Count(trio.abc.Instrument):
            def before_task_step(self, task: trio.lowlevel.Task) -> None:
                nonlocal steps
                steps += 1

        trio.lowlevel.add_instrument(counter := Count())
        before = time.process_time()
        await trio.sleep(1.5)
        cpu = time.process_time() - before
        trio.lowlevel.remove_instrument(counter)
    assert steps <= 3
    assert cpu < 0.05


async def test_a_broker_that_was_never_there(tmp_path: Path) -> None:
    subject = Subject(tmp_path, Kafka("127.0.0.1:1", "x"))
    async with subject.running():
        await subject.send(stream(20, 50))
        await until(lambda: subject.keeper.books.number == 20)
    assert subject.sink.in_outbox().sum() == 1000
    assert subject.rings.positions == {0: 1000 * 256}
    assert len(subject.warnings) == 1
    assert "127.0.0.1:1" in subject.warnings[0]
    assert "outbox" in subject.warnings[0]


async def test_the_next_run_delivers_what_the_last_one_kept(place: Kafka, tmp_path: Path) -> None:
    absent = Subject(tmp_path, Kafka("127.0.0.1:1", place.prefix))
    async with absent.running():
        await absent.send(stream(20, 50))
    subject = Subject(tmp_path, place)
    subject.sent = list(absent.sent)
    assert subject.sink.in_outbox().sum() == 1000
    async with subject.running():
        await subject.send(stream(20, 50, first=21))
        await until(lambda: subject.outbox.is_empty)
        await subject.send(stream(20, 50, first=41))
    assert subject.acknowledged() == 3000
    check_stored(place, subject.sent)


async def test_an_outage_with_an_outbox_that_is_full_and_removed(place: Kafka, tmp_path: Path) -> None:
    """It drops its oldest, goes on when its folder is gone, and what it holds then is delivered."""
    away = Kafka("127.0.0.1:1", place.prefix)
    absent = Subject(tmp_path / "state", away, full="drop-oldest", limit=150_000)
    async with absent.running():
        await absent.send(stream(30, 50, padding=200))
        await until(lambda: absent.keeper.books.number == 30)
        shutil.rmtree(tmp_path / "state")
        await absent.send(stream(2, 50, first=31, padding=200))
        await until(lambda: absent.keeper.books.number == 32)
        losses = [loss for _, loss in absent.store.losses().values()]
    (key,) = absent.lost()
    assert key == ("lost", "outbox", "dropped")
    assert [w for w in absent.warnings if "was taken away" in w]
    missing = int(absent.lost()[key].sum())
    subject = Subject(tmp_path / "state", place)
    subject.sent = list(absent.sent)
    async with subject.running():
        await until(lambda: subject.outbox.is_empty)
    assert subject.acknowledged() == 1600 - missing
    gone = subject.sent[: missing // 50]
    covered = [id for loss in losses for a, b in loss.spans for id in range(a, b + 1)]
    assert sorted(covered) == [id for batch in gone for a, b in batch.spans for id in range(a, b + 1)]
    check_stored(place, subject.sent, missing=missing)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["pause", "kill"])
async def test_a_broker_that_goes_and_comes_back(tmp_path: Path, way: str) -> None:
    """Under load: nothing is lost, order is kept, rings go free, the outbox is emptied."""
    with Broker() as broker:
        subject = Subject(tmp_path, Kafka(broker.address, way))
        async with subject.running():
            await subject.send(stream(30, 200))
            getattr(broker, way)()
            await subject.send(stream(60, 200, first=31))
            await until(lambda: subject.keeper.books.number == 90)
            assert subject.rings.positions == {0: 90 * 200 * 256}
            assert subject.sink.in_outbox().sum() > 0
            if way == "pause":
                broker.resume()
            else:
                await trio.to_thread.run_sync(broker.start)
            await subject.send(stream(30, 200, first=91))
            await until(lambda: subject.outbox.is_empty and not subject.sink.held().sum())
            assert await goes_straight(subject)
        assert subject.acknowledged() == len(subject.sent) * 200
        assert [w for w in subject.warnings if "go to the outbox" in w]
        assert "is back" in subject.warnings[-1]
        assert len(subject.warnings) == 2
        check_stored(subject.place, subject.sent, once=way == "pause")


async def goes_straight(subject: Subject) -> bool:
    """Whether a batch passes by the outbox again; on a busy machine one may still take too long for that."""
    for _ in range(20):
        before = subject.sink.settled().acknowledged.sum()
        await subject.send(stream(1, 200, first=len(subject.sent) + 1))
        await until(lambda: not subject.sink.held().sum() and subject.outbox.is_empty)
        if subject.sink.settled().acknowledged.sum() == before:
            return True
    return False


async def test_rings_that_fill_up_are_relieved(
    place: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sinks.kafka.SLOW", 0.2)
    subject = Subject(tmp_path, place, {"properties": {"linger.ms": 700}})
    subject.rings.full = 0.8
    async with subject.running():
        await subject.send(stream(5, 50))
        await until(lambda: subject.rings.positions == {0: 250 * 256})
        await until(lambda: subject.acknowledged() == 250)
    assert subject.sink.settled().acknowledged.sum() == 250, "acknowledged by way of the outbox"
    check_stored(place, subject.sent)


def lower_limit(place: Kafka, size: int) -> None:
    """The broker goes by it some time after it said yes: a topic whose limit was lowered later tells when."""
    client = AdminClient({"bootstrap.servers": place.address, "log_level": 0})
    topic, later = place.topic("process"), f"{place.topic('process')}.later"
    client.create_topics([NewTopic(later, 1)])[later].result(20)
    for name in (topic, later):
        entry = ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])
        for future in client.incremental_alter_configs([resource]).values():
            future.result(20)
    refused: list[int] = []

    def told(error: KafkaError | None, _: Message) -> None:
        refused.extend([error.code()] if error else [])

    producer = Producer({"bootstrap.servers": place.address, "log_level": 0})
    end = time.monotonic() + 20
    while KafkaError.MSG_SIZE_TOO_LARGE not in refused:
        assert time.monotonic() < end, "the limit is not in force"
        producer.produce(later, bytes(2 * size), on_delivery=told)
        producer.flush(5)


async def test_a_record_over_the_limit_is_lost_alone(place: Kafka, tmp_path: Path) -> None:
    """The limit is lowered behind the sink's back: the broker refuses the batch, neighbours and all."""
    subject = Subject(tmp_path, place, {"partitions": 1, "properties": {"compression.type": "none"}})
    async with subject.running():
        await subject.send(stream(1, 10))
        await until(lambda: subject.keeper.books.number == 1)
        await trio.to_thread.run_sync(lower_limit, place, 20_000)
        records = [record(i, padding=30_000 if i == 25 else 100) for i in range(10, 60)]
        await subject.send([encoded(2, records, {0: (60 * 256, 60)})])
        await until(lambda: subject.keeper.books.number == 2)
        await subject.send(stream(1, 20, first=4))
        await until(lambda: bool(subject.lost()))
    assert list(subject.lost()) == [("lost", "kafka", "too large")]
    (told,) = (msgpack.unpackb(message.value()) for message in stored(place, LOSS))
    assert (told["stage"], told["reason"], told["kinds"]) == ("kafka", "too large", {"fork": 1})
    assert (told["ring"], told["first"], told["last"]) == (0, 25, 25), "in the place of what is missing"
    assert sum(subject.lost().values(), zeros()).tolist() == encoded(0, [record(25)]).counts.tolist()
    assert subject.acknowledged() == 79
    check_stored_unordered(place, subject.sent, missing=1)


def check_stored_unordered(place: Kafka, sent: list[Encoded], missing: int) -> None:
    expected = {v for batch in sent for v in batch.records["process"].values}
    values = [m.value() for m in stored(place)]
    assert len(expected - set(values)) == missing
    assert len(values) == len(expected) - missing


async def test_a_record_too_large_for_the_producer_is_lost_alone(place: Kafka, tmp_path: Path) -> None:
    subject = Subject(tmp_path, place, {"largest": 50_000})
    async with subject.running():
        records = [record(i, padding=60_000 if i == 5 else 100) for i in range(20)]
        await subject.send([encoded(1, records, {0: (20 * 256, 20)})])
        await until(lambda: bool(subject.lost()))
    assert [int(n.sum()) for n in subject.lost().values()] == [1]
    check_stored(place, subject.sent, missing=1)


async def test_partitions_that_are_added_under_way(place: Kafka, tmp_path: Path) -> None:
    """Keys move to other partitions; nothing is lost or doubled."""
    properties = {"topic.metadata.refresh.interval.ms": 200}
    subject = Subject(tmp_path, place, {"partitions": 3, "properties": properties})
    async with subject.running():
        await subject.send(stream(5, 100))
        client = AdminClient({"bootstrap.servers": place.address, "log_level": 0})
        more = client.create_partitions([NewPartitions(place.topic("process"), 8)])
        await trio.to_thread.run_sync(more[place.topic("process")].result)
        while len({message.partition() for message in stored(place)}) <= 3:
            await subject.send(stream(5, 100, first=len(subject.sent) + 1))
            await until(lambda: subject.acknowledged() == len(subject.sent) * 100)
    check_stored_unordered(place, subject.sent, missing=0)


@pytest.mark.slow
async def test_a_deleted_topic_is_made_again(place: Kafka, tmp_path: Path) -> None:
    subject = Subject(tmp_path, place, {"properties": {"topic.metadata.refresh.interval.ms": 500}})
    async with subject.running():
        await subject.send(stream(5, 100))
        await until(lambda: subject.acknowledged() == 500)
        client = AdminClient({"bootstrap.servers": place.address, "log_level": 0})
        topic = place.topic("process")
        await trio.to_thread.run_sync(client.delete_topics([topic])[topic].result)
        # The answer comes before the topic is gone: what is written until then is acknowledged.
        await until(lambda: topic not in client.list_topics(timeout=5).topics)
        await subject.send(stream(5, 100, first=6))
        await until(lambda: subject.acknowledged() == 1000)
    assert any(place.address in warning for warning in subject.warnings)
    check_stored(place, subject.sent[5:], once=False)


async def test_settings_that_would_break_the_promise_are_refused(place: Kafka, tmp_path: Path) -> None:
    for properties, says in [
        ({"acks": 1}, "kafka.acks cannot be set"),
        ({"no.such.thing": 1}, "No such configuration property"),
        ({"linger.ms": "long"}, "Invalid value"),
        ({"security.protocol": "sasl_plaintext", "sasl.mechanism": "PLAIN"}, "sasl.username"),
    ]:
        with pytest.raises(BrokerError, match=says):
            await Subject(tmp_path, place, {"properties": properties}).sink.open()
    with pytest.raises(BrokerError, match="no such host"):
        await Subject(tmp_path, Kafka("no-such-host.invalid:9092", "x")).sink.open()


async def test_complete_is_what_heartbeats_say_that_are_acknowledged(place: Kafka, tmp_path: Path) -> None:
    """Straight, by way of the outbox, and not those of another boot."""
    subject = Subject(tmp_path / "first", place, {"boot_id": BOOT})
    async with subject.running():
        await subject.send(with_beat(batch, 1_000) for batch in stream(1, 10))
        await until(lambda: subject.keeper.books.complete == 1_000)
    away = Subject(tmp_path, Kafka("127.0.0.1:1"), {"boot_id": BOOT})
    await away.outbox.put([with_beat(batch, 2_000) for batch in stream(1, 10, first=2)])
    await away.outbox.put([with_beat(batch, 9_000, "c" * 32) for batch in stream(1, 10, first=3)])
    away.store.close()
    assert away.keeper.books.complete == 0, "what waits is not complete"
    again = Subject(tmp_path, place, {"boot_id": BOOT})
    again.sent = list(stream(2, 10, first=2))
    async with again.running():
        await until(lambda: again.keeper.books.complete == 2_000)
        await until(lambda: again.outbox.is_empty)
    assert again.keeper.books.complete == 2_000, "another boot has other times"
