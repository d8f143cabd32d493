"""Re-publishes stored records, in order and unchanged to the byte, from one place to another.

Notices (notices.py) go along whatever a filter says of events: what was lost stays told. Into Kafka a replay
is one transaction: readers that read what is committed see all of it, exactly once, or nothing. Into a
folder's log and as JSON lines it goes batch by batch.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol
from uuid import uuid4

import numpy as np
import trio
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from pipeline.consume import source
from pipeline.errors import UserError
from pipeline.event import Encoded, Passage, Records
from pipeline.kafka import (
    OVERHEAD,
    AwayError,
    BrokerError,
    clear,
    ensure,
    explain,
    is_committed,
    present,
    producer,
)
from pipeline.ledger import zeros
from pipeline.notices import NOTICES
from pipeline.place import Folder, Kafka, Place
from pipeline.schema import by_name
from pipeline.sinks.jsonlines import write
from pipeline.sources.source import Record, Source, Window
from pipeline.store import LOG, BlockedError, Store

__all__ = ["Keep", "Progress", "replay"]

Keep = Callable[[list[dict[str, Any]]], list[bool]]
"""A filter: which of these decoded records go on (stages/filter.py)."""

TRANSACTION: Final = 900_000
"""ms that one transaction may take: the most that a broker allows unless told otherwise."""
TIMEOUT: Final = 60.0
"""Seconds to wait for the broker's word on a transaction."""
NAP: Final = 0.002
SIGHT: Final = 1000
"""Looks until what was committed must be seen; others may have transactions of their own there."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay is."""

    read: int
    written: int
    time: int
    """Of the record last read, ns since the epoch."""


class Target(Protocol):
    """Where records go."""

    async def put(self, records: list[Record]) -> None:
        """Write records, in order."""
        ...


async def replay(
    origin: Place,
    target: Place,
    *,
    since: int | None = None,
    until: int | None = None,
    keep: Keep | None = None,
    kafka: Mapping[str, Any] | None = None,
    partitions: int = 12,
    largest: int = 8 << 20,
    progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Read `origin` up to the ends it has now and write it to `target`; how much it was.

    `since`, `until`: ns since the epoch. `partitions`, `largest` (bytes of a record): for topics to be made.
    Raises UserError: a place that cannot be read or written, or `target` is what is read.
    """
    reader = source(origin, kafka)
    try:
        await trio.to_thread.run_sync(_refuse_itself, origin, target, kafka or {})
        async with _open(target, kafka or {}, partitions, largest) as writer:
            return await _copy(reader, Window(since, until), writer, keep, progress)
    except AwayError as error:
        raise BrokerError(f"{error}; start it, or check the address") from None


async def _copy(
    reader: Source,
    window: Window,
    writer: Target,
    keep: Keep | None,
    progress: Callable[[Progress], None] | None,
) -> Progress:
    state = Progress(0, 0, 0)
    async with reader.batches(window) as batches:
        async for records in batches:
            kept = _filtered(records, keep)
            if kept:
                await writer.put(kept)
            if records:
                state = Progress(state.read + len(records), state.written + len(kept), records[-1].time)
                if progress:
                    progress(state)
    return state


def _filtered(records: list[Record], keep: Keep | None) -> list[Record]:
    if not keep or not records:
        return records
    events = [record for record in records if record.family not in NOTICES]
    verdicts = iter(keep([event.fields for event in events]))
    return [record for record in records if record.family in NOTICES or next(verdicts)]


def _refuse_itself(origin: Place, target: Place, kafka: Mapping[str, Any]) -> None:
    """Reading what one writes would never end, or double what is there."""
    same = False
    if isinstance(origin, Folder) and isinstance(target, Folder):
        same = origin.path.resolve() == target.path.resolve()
    elif isinstance(origin, Kafka) and isinstance(target, Kafka) and origin.prefix == target.prefix:
        # One cluster has many addresses.
        same = present(origin, kafka)[0] == present(target, kafka)[0]
    if same:
        raise UserError(f"{origin} and {target} are the same; replay into another prefix or folder", status=2)


def _open(
    target: Place, kafka: Mapping[str, Any], partitions: int, largest: int
) -> AbstractAsyncContextManager[Target]:
    if isinstance(target, Kafka):
        return _topics(target, kafka, partitions, largest)
    if isinstance(target, Folder):
        return _log(target)
    return _lines()


# ---- the three kinds of target


class _Topics:
    """Topics, within a transaction."""

    def __init__(self, place: Kafka, client: Producer) -> None:
        self._place, self._client = place, client
        self._errors: list[KafkaError] = []

    async def put(self, records: list[Record]) -> None:
        """See Target."""
        for record in records:
            while not self._produce(record):
                self._client.poll(0)
                await trio.sleep(NAP)
        self._client.poll(0)
        self.check()

    def _produce(self, record: Record) -> bool:
        """Give librdkafka a record; False when its queue is full."""
        try:
            self._client.produce(
                self._place.topic(record.family),
                record.value,
                record.key,
                -1,
                self._delivered,
                timestamp=record.stamp,
            )
        except BufferError:
            return False
        except KafkaException as exception:
            self._errors.append(exception.args[0])
        return True

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error:
            self._errors.append(error)

    def check(self) -> None:
        """Raise BrokerError if a record was refused."""
        if self._errors:
            text = explain(self._errors[0], self._place.address)
            raise BrokerError(f"{text}; nothing was replayed: the transaction was taken back")


@asynccontextmanager
async def _topics(
    place: Kafka, kafka: Mapping[str, Any], partitions: int, largest: int
) -> AsyncIterator[_Topics]:
    client = await trio.to_thread.run_sync(_begin, place, kafka, partitions, largest)
    writer = _Topics(place, client)
    try:
        yield writer
        with clear(place.address):
            await trio.to_thread.run_sync(client.commit_transaction, TIMEOUT)
    except BaseException:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_abort, client)
        raise
    # The broker says that it is committed a moment before readers can see it.
    for _ in range(SIGHT):
        if await trio.to_thread.run_sync(is_committed, place, kafka):
            return
        await trio.sleep(NAP)


def _begin(place: Kafka, kafka: Mapping[str, Any], partitions: int, largest: int) -> Producer:
    """A producer in a transaction that has just begun. Blocks."""
    limits = ensure(place, kafka, partitions=partitions, largest=largest)
    client = producer(
        place,
        kafka,
        largest=max(limits.values(), default=largest + OVERHEAD),
        transactional_id=f"promissory-replay-{uuid4()}",
        transaction_timeout_ms=TRANSACTION,
    )
    with clear(place.address):
        client.init_transactions(TIMEOUT)
        client.begin_transaction()
    return client


def _abort(client: Producer) -> None:
    """Take back what was written; if the broker is away, it does so itself when the time is over."""
    try:
        client.purge()
        client.abort_transaction(5)
    except KafkaException:
        return


class _Log:
    """The local log of a state folder."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(self, records: list[Record]) -> None:
        """See Target."""
        try:
            await trio.to_thread.run_sync(self._store.append, [_encoded(records)])
            await trio.to_thread.run_sync(self._store.trim)
        except BlockedError as error:
            raise UserError(f"{self._store.path} takes nothing ({error}); free some space") from None


@asynccontextmanager
async def _log(place: Folder) -> AsyncIterator[_Log]:
    store = await trio.to_thread.run_sync(lambda: Store(place.path / LOG))
    try:
        yield _Log(store)
    finally:
        store.close()


def _encoded(records: list[Record]) -> Encoded:
    """Records as one batch of a log."""
    families: dict[str, Records] = {}
    kinds = zeros()
    for record in records:
        columns = families.setdefault(record.family, Records([], [], []))
        columns.keys.append(record.key)
        columns.values.append(record.value)
        columns.times.append(record.stamp)
        if record.family not in NOTICES:
            schema = by_name().get(record.fields.get("kind", ""))
            kinds[schema.number if schema else 0] += 1
    times = np.array([record.time for record in records], np.int64)
    return Encoded(families, kinds, Passage(0, {}), (int(times.min()), int(times.max())))


class _Lines:
    """JSON lines."""

    async def put(self, records: list[Record]) -> None:
        """See Target."""
        await trio.to_thread.run_sync(write, [record.value for record in records])


@asynccontextmanager
async def _lines() -> AsyncIterator[_Lines]:
    yield _Lines()
