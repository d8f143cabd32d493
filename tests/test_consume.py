"""What people downstream read: each event once, of the window that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from pipeline.consume import consume, source
from pipeline.errors import UserError
from pipeline.place import Folder, Kafka, Stdout
from pipeline.sources.log import LogSource
from pipeline.sources.topic import TopicSource
from pipeline.store import LOG, Store
from tests.broker import Broker
from tests.encoded import TIME, encoded, record, stream, with_beat
from tests.topics import fill

MS = 1_000_000


def log(folder: Path, *batches: Any) -> str:
    store = Store(folder / LOG)
    store.append(list(batches))
    store.close()
    return str(folder)


async def sequences(place: str, **asked: Any) -> list[int]:
    async with consume(place, **asked) as events:
        return [event["sequence"] async for event in events]


def test_what_it_reads_a_place_with(tmp_path: Path) -> None:
    assert isinstance(source(Folder(tmp_path)), LogSource)
    assert isinstance(source(Kafka("127.0.0.1:1")), TopicSource)
    with pytest.raises(UserError, match="only be written to"):
        source(Stdout())


async def test_in_ten_lines(tmp_path: Path) -> None:
    place = log(tmp_path, *stream(3, 10))
    assert await sequences(place) == list(range(30))
    assert await sequences(place, last=12) == list(range(18, 30))
    assert await sequences(place, since=TIME + 5 * MS, until=TIME + 25 * MS) == list(range(5, 25))
    assert await sequences(place, since=TIME + 5 * MS, last=3) == [27, 28, 29]
    assert await sequences(place, since=TIME + 30 * MS) == []


async def test_doubles_are_left_out_and_another_boot_is_none(tmp_path: Path) -> None:
    again = [encoded(n, [record(i) for i in range(10)]) for n in (1, 2)]
    other = encoded(3, [record(i, boot="c" * 32) for i in range(10)])
    assert sorted(await sequences(log(tmp_path, *again, other))) == sorted([*range(10), *range(10)])


async def test_notices_come_for_those_who_ask(tmp_path: Path) -> None:
    (batch,) = stream(1, 5)
    place = log(tmp_path, with_beat(batch, 5 * MS))
    for asked, kinds in ((False, set[str]()), (True, {"heartbeat"})):
        async with consume(place, notices=asked) as events:
            found = {event["kind"] async for event in events}
        assert found == {"exit", "fork"} | kinds


async def test_following_goes_on_with_what_comes(tmp_path: Path) -> None:
    first, second = stream(2, 5)
    place = log(tmp_path, first)
    with trio.fail_after(20):
        async with consume(place, follow=True) as events:
            found = [(await anext(events))["sequence"] for _ in range(5)]
            log(tmp_path, second)
            found += [(await anext(events))["sequence"] for _ in range(5)]
    assert found == list(range(10))


async def test_a_place_that_cannot_be_read_is_a_clear_error(tmp_path: Path) -> None:
    for place, says in (("-", "only be written to"), (str(tmp_path / "none"), "none"), ("kafka://", "kafka")):
        with pytest.raises(UserError, match=says):
            await sequences(place)


@pytest.mark.kafka
async def test_from_kafka(kafka: Broker) -> None:
    place = Kafka(kafka.address, "consumed")
    fill(place, stream(20, 100), partitions=5)
    assert await sequences(str(place), last=3) == [1997, 1998, 1999]
    fill(place, stream(1, 100), partitions=5)
    assert await sequences(str(place)) == list(range(2000)), "what is stored twice comes once"
