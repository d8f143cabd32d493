"""Replay: the same bytes again, elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from pipeline.consume import source
from pipeline.errors import UserError
from pipeline.kafka import BrokerError
from pipeline.place import Folder, Kafka, Place, PlaceError, Stdout
from pipeline.replay import Progress, replay
from pipeline.sources.source import Record, Window
from pipeline.store import LOG, Store
from tests.broker import Broker
from tests.encoded import TIME, stream
from tests.topics import fill

MS = 1_000_000


def fill_log(folder: Path, batches: Iterable[Any]) -> Folder:
    store = Store(folder / LOG)
    store.append(list(batches))
    store.close()
    return Folder(folder)


async def contents(place: Place) -> list[tuple[str, bytes, bytes, int]]:
    async with source(place).batches(Window()) as batches:
        found: list[Record] = [record async for records in batches for record in records]
    return [(r.family, r.key, r.value, r.stamp) for r in found]


async def test_from_log_to_log(tmp_path: Path) -> None:
    origin, target = fill_log(tmp_path / "a", stream(10, 100)), Folder(tmp_path / "b")
    steps: list[Progress] = []
    done = await replay(origin, target, progress=steps.append)
    assert done == Progress(1000, 1000, TIME + 999 * MS) == steps[-1]
    assert await contents(target) == await contents(origin)
    assert len(await contents(target)) == 1000


async def test_by_time_and_filter(tmp_path: Path) -> None:
    origin, target = fill_log(tmp_path / "a", stream(10, 100)), Folder(tmp_path / "b")

    def forks(records: list[dict[str, Any]]) -> list[bool]:
        return [record["kind"] == "fork" for record in records]

    done = await replay(origin, target, since=TIME + 100 * MS, until=TIME + 300 * MS, keep=forks)
    assert (done.read, done.written) == (200, 100)
    expected = [r for r in await contents(origin) if TIME // MS + 100 <= r[3] < TIME // MS + 300][1::2]
    assert await contents(target) == expected


async def test_as_json_lines(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    origin = fill_log(tmp_path, stream(2, 10))
    await replay(origin, Stdout())
    lines = capfdbinary.readouterr().out.splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == list(range(20))


async def test_into_what_is_read_it_refuses(tmp_path: Path) -> None:
    origin = fill_log(tmp_path, stream(1, 10))
    (tmp_path / "link").symlink_to(tmp_path)
    for target in (origin, Folder(tmp_path / "link")):
        with pytest.raises(UserError, match="are the same"):
            await replay(origin, target)
    with pytest.raises(PlaceError, match="only be written"):
        await replay(Stdout(), origin)
    assert len(await contents(origin)) == 10


@pytest.mark.kafka
async def test_from_kafka_to_kafka_and_to_a_log(kafka: Broker, tmp_path: Path) -> None:
    origin, target = Kafka(kafka.address, "origin"), Kafka(kafka.address, "copy")
    fill(origin, stream(20, 100), partitions=5)
    done = await replay(origin, target, partitions=5)
    assert done.written == 2000
    assert await contents(target) == await contents(origin)
    assert partitions(target) == partitions(origin)
    await replay(target, Folder(tmp_path))
    assert await contents(Folder(tmp_path)) == await contents(origin)


def partitions(place: Kafka) -> dict[bytes | None, int | None]:
    """Key → partition: Java's partitioner, whoever produced it."""
    consumer = Consumer({"bootstrap.servers": place.address, "group.id": "t", "enable.partition.eof": True})
    topic = place.topic("process")
    consumer.assign([TopicPartition(topic, n, OFFSET_BEGINNING) for n in range(5)])
    found: dict[bytes | None, int | None] = {}
    ends = 0
    while ends < 5:
        message = consumer.poll(20)
        assert message is not None
        if message.error():
            ends += 1
        else:
            found[message.key()] = message.partition()
    consumer.close()
    return found


@pytest.mark.kafka
async def test_into_the_topics_that_are_read_it_refuses(kafka: Broker) -> None:
    origin = Kafka(kafka.address, "itself")
    fill(origin, stream(1, 10))
    other_name = kafka.address.replace("127.0.0.1", "localhost")
    for target in (origin, Kafka(other_name, "itself")):
        with pytest.raises(UserError, match="are the same"):
            await replay(origin, target)
    assert len(await contents(origin)) == 10


@pytest.mark.kafka
async def test_what_is_cut_short_leaves_nothing(kafka: Broker) -> None:
    """A reader of what is committed sees all of a replay, or nothing."""
    origin, target = Kafka(kafka.address, "whole"), Kafka(kafka.address, "nothing-of-it")
    fill(origin, stream(20, 500))
    with trio.CancelScope() as scope:
        await replay(origin, target, progress=lambda p: scope.cancel() if p.written > 3000 else None)
    assert scope.cancelled_caught
    assert await contents(target) == []
    await replay(origin, target)
    assert len(await contents(target)) == 10_000


async def test_a_broker_that_is_away_is_one_clear_line(tmp_path: Path) -> None:
    origin = fill_log(tmp_path, stream(1, 10))
    with pytest.raises(BrokerError, match="check the address"):
        await replay(origin, Kafka("127.0.0.1:1"))
