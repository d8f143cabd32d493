"""Row 2: brokers that hang, die, forget and refuse, under records that come at a steady rate."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from pipeline.place import Kafka
from tests.broker import Broker
from tests.encoded import encoded, record
from tests.faults.cluster import address, cluster
from tests.faults.conftest import Row
from tests.faults.results import LONG, times
from tests.faults.scene import Scene
from tests.faults.steady import PATIENCE, Steady, Watched, judge, resident
from tests.faults.storms import UID, Storms
from tests.live.run import Live
from tests.sinks.test_kafka import Subject, lower_limit, stored, until

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

GROWTH = 96
"""MiB of memory that an outage may cost, however long: what librdkafka and the sink may hold."""
QUICK = {
    "socket.timeout.ms": 3000,
    "request.timeout.ms": 2000,
    "socket.connection.setup.timeout.ms": 1000,
    "topic.metadata.refresh.interval.ms": 500,
    "metadata.max.age.ms": 1500,
}
"""Time-outs that an outage of some seconds is longer than; the usual ones take up to 15 minutes."""
PARTITIONS = 4
Way = Callable[[Broker], AbstractAsyncContextManager[None]]


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    """One that things happen to, one after the other."""
    with Broker() as started:
        yield started


@asynccontextmanager
async def hanging(broker: Broker) -> AsyncIterator[None]:
    broker.pause()
    try:
        yield
    finally:
        broker.resume()


@asynccontextmanager
async def killed(broker: Broker) -> AsyncIterator[None]:
    broker.kill()
    yield
    await trio.to_thread.run_sync(broker.start)


@asynccontextmanager
async def ended(broker: Broker) -> AsyncIterator[None]:
    await trio.to_thread.run_sync(broker.stop)
    yield
    await trio.to_thread.run_sync(broker.start)


SHORT: list[tuple[str, Way, int, int, dict[str, int]]] = [
    ("SIGSTOP for 8 s, with time-outs of 3 s and less", hanging, 8, 3000, QUICK),
    ("SIGKILL, started again after 2 s", killed, 2, 3000, {}),
]
OUTAGES = [
    *SHORT,
    ("SIGSTOP for 60 s", hanging, 60, 10_000, {}),
    ("SIGSTOP for 1000 s, longer than every time-out", hanging, 1000, 1000, {}),
    ("SIGKILL, started again after 60 s", killed, 60, 10_000, {}),
    ("ended in good order, started again after 5 s", ended, 5, 10_000, {}),
]


@pytest.mark.parametrize("outage", OUTAGES if LONG else SHORT, ids=lambda outage: outage[0])
async def test_a_broker_that_is_away(
    broker: Broker, tmp_path: Path, row: Row, outage: tuple[str, Way, int, int, dict[str, int]]
) -> None:
    did, way, seconds, rate, properties = outage
    row("2 outage", f"the broker: {did}")
    place = Kafka(broker.address, f"away-{OUTAGES.index(outage)}")
    subject = Steady(tmp_path, place, {"partitions": PARTITIONS, "properties": properties})
    subject.rate = rate
    async with subject.flowing():
        async with way(broker):
            await subject.away(seconds)
        row.saw(**await subject.caught_up())
    judge(subject, row, place)
    assert subject.seen.memory - subject.seen.before < GROWTH


async def test_one_of_three_is_killed(tmp_path: Path, row: Row) -> None:
    row("2 three brokers", "three brokers, each record on two of them at least; one after the other: SIGKILL")
    with cluster() as brokers:
        place = Kafka(address(brokers), "three")
        subject = Steady(tmp_path, place, {"partitions": PARTITIONS})
        async with subject.flowing():
            for broker in brokers[: times(1, 3)]:
                async with killed(broker):
                    await more(subject)
                    assert not broker.pid, "two go on without it"
            row.saw(killed=times(1, 3), **await subject.caught_up())
        judge(subject, row, place)
    assert subject.seen.memory - subject.seen.before < GROWTH


@pytest.mark.parametrize("after", [None, 1], ids=["deleted", "made by others"])
async def test_a_topic_is_deleted(broker: Broker, tmp_path: Path, row: Row, after: int | None) -> None:
    again = "" if after is None else f", and made again by somebody, with {after} partition instead of 4"
    row("2 topic deleted", f"the topic deleted{again}; counted from there on")
    place = Kafka(broker.address, f"deleted-{after}")
    subject = Steady(tmp_path, place, {"partitions": PARTITIONS, "properties": QUICK})
    client, topic = admin(place), place.topic("process")
    async with subject.flowing():
        await subject.quiet()
        first = subject.records
        await trio.to_thread.run_sync(client.delete_topics([topic])[topic].result)
        # The answer comes before the topic is gone: what is written until then is acknowledged.
        await until(lambda: topic not in client.list_topics(timeout=5).topics)
        if after:
            made = client.create_topics([NewTopic(topic, num_partitions=after)])
            await trio.to_thread.run_sync(made[topic].result)
        subject.held_back = False
        await more(subject)
        row.saw(**await subject.caught_up())
    judge(subject, row, place, first)


async def test_partitions_are_added(broker: Broker, tmp_path: Path, row: Row) -> None:
    row("2 partitions", f"{PARTITIONS} partitions become {2 * PARTITIONS} while records come")
    place = Kafka(broker.address, "partitions")
    subject = Steady(tmp_path, place, {"partitions": PARTITIONS, "properties": QUICK})
    client, topic = admin(place), place.topic("process")
    async with subject.flowing():
        changed = client.create_partitions([NewPartitions(topic, 2 * PARTITIONS)])
        await trio.to_thread.run_sync(changed[topic].result)
        await more(subject)
    used = len({message.partition() for message in stored(place)})
    row.saw(used=used)
    judge(subject, row, place)
    assert used > PARTITIONS


async def test_a_record_is_too_large(broker: Broker, tmp_path: Path, row: Row) -> None:
    row("2 too large", "a record larger than the topic takes since a moment ago, amid 98 others of its batch")
    place = Kafka(broker.address, "large")
    subject = Subject(tmp_path, place, {"partitions": 1, "properties": {"compression.type": "none"}})
    async with subject.running():
        await trio.to_thread.run_sync(lower_limit, place, 20_000)
        records = [record(number, padding=30_000 if number == 50 else 100) for number in range(99)]
        await subject.send([encoded(1, records, {0: (99 * 256, 99)})])
        await until(lambda: subject.keeper.books.number == 1)
    sizes = [len(message.value() or b"") for message in stored(place)]
    lost = {reason: int(counts.sum()) for (_, _, reason), counts in subject.lost().items()}
    row.saw(delivered=len(sizes), lost_as_too_large=lost.get("too large", 0), told=len(stored(place, "loss")))
    assert lost == {"too large": 1}
    assert len(sizes) == 98
    assert max(sizes) < 20_000
    assert len(stored(place, "loss")) == 1


@pytest.mark.kernel
def test_a_real_pipeline(make_live: Callable[..., Live], broker: Broker, acts: bytes, row: Row) -> None:
    seconds = times(4, 60)
    row(
        "2 real pipeline",
        f"a pipeline over this kernel, execs all the time: the broker hangs for {seconds} s, then SIGKILL "
        "and started again",
    )
    live = make_live(kernel__uids=str(UID))
    scene = Scene(live, broker, "real")
    with Storms(acts, pause=10_000) as storms:
        broker.pause()
        row.saw(**watched(scene, seconds, broker.resume))
        broker.kill()
        watched(scene, 1, broker.start)
    scene.executed = storms.executed
    assert scene.judge(row) == 0


def watched(scene: Scene, seconds: float, mend: Callable[[], object]) -> dict[str, Any]:
    """The broker is away for so long, then well: figures of the outbox and of memory."""
    process = scene.live.process
    assert process
    seen, mended = Watched(resident(process.pid)), False
    end = time.monotonic() + seconds
    while True:
        ledger = scene.live.ledger()
        came = ledger["attempted"] - ledger["filtered"]
        seen.look(time.monotonic(), ledger["in_outbox"], came, resident(process.pid))
        if mended and not ledger["in_outbox"]:
            break
        if not mended and time.monotonic() > end and ledger["in_outbox"]:
            mend()
            mended, end = True, time.monotonic() + PATIENCE
        assert not mended or time.monotonic() < end, "the outbox is not emptied"
        time.sleep(0.05)
    assert seen.memory - seen.before < GROWTH
    return seen.figures(time.monotonic(), came)


async def more(subject: Steady) -> None:
    """What comes in two seconds was acknowledged meanwhile."""
    enough = subject.acknowledged() + 2 * subject.rate
    await until(lambda: subject.acknowledged() > enough, PATIENCE)


def admin(place: Kafka) -> AdminClient:
    return AdminClient({"bootstrap.servers": place.address, "log_level": 0})
