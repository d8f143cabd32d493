"""Reading topics of a real Apache Kafka."""

from __future__ import annotations

import pytest
import trio

from pipeline.kafka import BrokerError
from pipeline.place import Kafka
from pipeline.sources.source import Window
from pipeline.sources.topic import AHEAD, TopicSource
from tests.broker import Broker
from tests.encoded import TIME, encoded, record, stream
from tests.topics import fill

pytestmark = pytest.mark.kafka
MS = 1_000_000


async def read(place: Kafka, window: Window) -> list[int]:
    """The sequences of the records that a window shows."""
    found: list[int] = []
    with trio.fail_after(60):
        async with TopicSource(place).batches(window) as batches:
            async for records in batches:
                found += [r.fields["sequence"] for r in records]
    return found


@pytest.fixture(scope="module")
def place(kafka: Broker) -> Kafka:
    """Records 0 to 1999, over four partitions."""
    place = Kafka(kafka.address, "read")
    fill(place, stream(20, 100))
    return place


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (Window(), range(2000)),
        (Window(last=7), range(1993, 2000)),
        (Window(last=50_000), range(2000)),
        (Window(since=TIME + 1200 * MS), range(1200, 2000)),
        (Window(since=TIME + 1200 * MS - 1, until=TIME + 1310 * MS), range(1200, 1310)),
        (Window(since=TIME + 1200 * MS + 1), range(1201, 2000)),
        (Window(since=TIME + 2000 * MS), range(0)),
    ],
)
async def test_windows_in_order_of_time(place: Kafka, window: Window, expected: range) -> None:
    assert await read(place, window) == list(expected)


async def test_a_record_is_as_it_was_stored(place: Kafka) -> None:
    async with TopicSource(place).batches(Window(last=1)) as batches:
        found = [r async for records in batches for r in records]
    (batch,) = stream(1, 100, first=20)
    (record,) = found
    columns = batch.records["process"]
    assert (record.family, record.key, record.value) == ("process", columns.keys[-1], columns.values[-1])
    assert (record.stamp, record.time) == (columns.times[-1], TIME + 1999 * MS)
    assert record.place.startswith("process/")


async def test_following_goes_on_after_the_end(kafka: Broker) -> None:
    place = Kafka(kafka.address, "follow")
    fill(place, stream(1, 50))
    found: list[int] = []
    async with TopicSource(place).batches(Window(last=5, follow=True)) as batches:
        with trio.fail_after(30):
            async for records in batches:
                found += [r.fields["sequence"] for r in records]
                if len(found) == 5:
                    await trio.to_thread.run_sync(fill, place, list(stream(1, 50, first=2)))
                if len(found) >= 55:
                    break
    assert found[:5] == list(range(45, 50))
    assert sorted(found[5:]) == list(range(50, 100))


async def test_it_stops_at_the_end_it_saw(kafka: Broker) -> None:
    place = Kafka(kafka.address, "ends")
    fill(place, stream(1, 50))
    found: list[int] = []
    async with TopicSource(place).batches(Window()) as batches:
        await trio.to_thread.run_sync(fill, place, list(stream(1, 50, first=2)))
        async for records in batches:
            found += [r.fields["sequence"] for r in records]
    # The ends were looked at when reading began, in the background: before or after the second fifty.
    assert found in (list(range(50)), list(range(100)))


async def test_an_event_that_is_stored_twice_is_read_once(kafka: Broker) -> None:
    place = Kafka(kafka.address, "twice")
    fill(place, stream(4, 100))
    fill(place, stream(3, 100, first=3))
    fill(place, [encoded(9, [record(499, boot="c" * 32)])])
    assert await read(place, Window()) == [*range(500), 499]


async def test_partitions_of_unequal_length(kafka: Broker) -> None:
    """One process fills one partition far ahead of the others: it is held back, and all comes in order."""
    place = Kafka(kafka.address, "unequal")
    many = 3 * AHEAD
    fill(place, [encoded(1, (record(i) for i in range(7)))])
    fill(place, [encoded(2, (record(i * 7) for i in range(1, many)))])
    fill(place, [encoded(3, (record(7 * many + i) for i in range(7)))])
    assert await read(place, Window()) == [*range(7), *range(7, 7 * many, 7), *range(7 * many, 7 * many + 7)]


async def test_places_that_cannot_be_read(kafka: Broker) -> None:
    with pytest.raises(BrokerError, match=r"has no topics nothing\.\*"):
        await read(Kafka(kafka.address, "nothing"), Window())
    with pytest.raises(BrokerError, match=r"refused.*start it, or check the address"):
        await read(Kafka("127.0.0.1:1"), Window())
    with pytest.raises(BrokerError, match="no such host"):
        await read(Kafka("no-such-host.invalid:9092"), Window())
