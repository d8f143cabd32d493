"""For people downstream: a place's events as plain dicts, in ten lines of Python.

import trio
from pipeline.consume import consume

async def main():
    async with consume("kafka://127.0.0.1:9092", follow=True) as events:
        async for event in events:
            print(event["kind"], event["process"]["id"])

trio.run(main)
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from pipeline.notices import NOTICES
from pipeline.place import Kafka, Place, PlaceError, Stdout, parse
from pipeline.sources.log import LogSource
from pipeline.sources.source import Record, Source, Window
from pipeline.sources.topic import TopicSource

__all__ = ["Events", "consume", "source"]


def source(place: Place, kafka: Mapping[str, Any] | None = None) -> Source:
    """What reads a place; `kafka` are librdkafka's own properties. Raises PlaceError: `-` cannot be read."""
    if isinstance(place, Kafka):
        return TopicSource(place, kafka)
    if isinstance(place, Stdout):
        raise PlaceError("- can only be written to; read from kafka://HOST:PORT or a state folder")
    return LogSource(place.path)


class Events:
    """Decoded records, one by one."""

    def __init__(self, batches: AsyncIterable[list[Record]]) -> None:
        self._batches = aiter(batches)
        self._ready: list[Record] = []

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self

    async def __anext__(self) -> dict[str, Any]:
        while not self._ready:
            self._ready = (await anext(self._batches))[::-1]
        return self._ready.pop().fields


@asynccontextmanager
async def consume(
    place: str,
    *,
    since: int | None = None,
    until: int | None = None,
    last: int | None = None,
    follow: bool = False,
    notices: bool = False,
    kafka: Mapping[str, Any] | None = None,
) -> AsyncIterator[Events]:
    """Read a PLACE: its events in order of time, each once, though it may be stored twice.

    `since`, `until`: ns since the epoch. `last`: only the newest so many. `follow`: go on with what comes.
    `notices`: also loss records and heartbeats, which are no events (docs/notices.md).
    Raises UserError: a place that cannot be read.
    """
    window = Window(since, until, last, follow, () if notices else NOTICES)
    async with source(parse(place), kafka).batches(window) as batches:
        yield Events(batches)
