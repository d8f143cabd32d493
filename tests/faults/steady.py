"""Records at a steady rate through the real Kafka sink and outbox, while something happens to the broker."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import trio

from pipeline.event import Ints
from pipeline.ledger import zeros
from pipeline.place import Kafka
from tests.encoded import record, stream
from tests.faults.conftest import Row
from tests.sinks.test_kafka import Subject, stored, until

__all__ = ["SIZE", "Steady", "Watched", "judge", "resident"]

SIZE = 200
"""Records in a batch."""
PADDING = 250
"""Bytes; records are then as large as those of a fork."""
LOOK = 0.02
"""Seconds between two looks."""
PATIENCE = 120
"""Seconds that a busy machine may take."""
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident(pid: int | str = "self") -> int:
    """MiB of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE >> 20


class Watched:
    """The most that waited in the outbox, the most memory; and how fast what waited went."""

    def __init__(self, memory: int) -> None:
        """`memory`: what it is at the beginning, MiB."""
        self.before = self.memory = memory
        self.waiting = 0
        self._since, self._sent = 0.0, 0

    def look(self, now: float, waiting: int, sent: int, memory: int) -> None:
        """`waiting`: events in the outbox; `sent`: all that ever came in."""
        self.memory = max(self.memory, memory)
        if waiting >= self.waiting:
            self.waiting, self._since, self._sent = waiting, now, sent

    def figures(self, now: float, sent: int) -> dict[str, Any]:
        """For a row, now that the outbox is empty: what was delivered since it was at its fullest, as a
        multiple of what came in meanwhile.
        """
        incoming = max(sent - self._sent, 1)
        rate = incoming / (now - self._since)
        return {
            "most_in_outbox": self.waiting,
            "catch_up": f"{1 + self.waiting / incoming:.1f} × the incoming rate of {rate:,.0f}/s",
            "MiB_resident_before": self.before,
            "at_most": self.memory,
        }


class Steady(Subject):
    """A sink to which records come, `rate` in a second. None is kept here (its number says what a record
    was): memory is then the sink's own.
    """

    rate = 3000
    number = 0
    """Batches that came."""
    held_back = False
    """Nothing comes."""

    def all_sent(self) -> Ints:
        """Events per kind; both kinds come alike."""
        return self._each * self.number

    @property
    def records(self) -> int:
        return self.number * SIZE

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """Records come until the end of the block; the books balance after each batch."""
        self._each = next(stream(1, SIZE)).counts
        self.seen, self._ending = Watched(resident()), False
        async with self.running():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._come)
                nursery.start_soon(self._look)
                try:
                    await until(lambda: self.acknowledged() > self.rate / 2, PATIENCE)
                    self.seen.before = resident()
                    yield
                finally:
                    self._ending = True
            await until(lambda: not self.waits(), PATIENCE)

    async def _come(self) -> None:
        at = trio.current_time()
        while not self._ending:
            if self.held_back:
                await trio.sleep(LOOK)
                continue
            self.number += 1
            await self.link.send(list(stream(1, SIZE, first=self.number, padding=PADDING)))
            self.check()
            at = max(at + SIZE / self.rate, trio.current_time() - 1)  # at most a second is made up for
            await trio.sleep_until(at)

    async def _look(self) -> None:
        while not self._ending:
            waiting = int(self.sink.in_outbox().sum())
            self.seen.look(trio.current_time(), waiting, self.records, resident())
            await trio.sleep(LOOK)

    def waits(self) -> int:
        """Events in the outbox or under way."""
        return int((self.sink.in_outbox() + self.sink.held() + self.link.held()).sum())

    async def away(self, seconds: float) -> None:
        """The broker is not there for so long: what comes goes to the outbox."""
        await trio.sleep(seconds)
        await until(lambda: not self.outbox.is_empty, PATIENCE)

    async def quiet(self) -> None:
        """Nothing comes any more, and all is acknowledged."""
        self.held_back = True
        await until(lambda: not self.waits(), PATIENCE)

    async def caught_up(self) -> dict[str, Any]:
        """Wait until nothing is in the outbox any more; figures of that."""
        await until(lambda: self.outbox.is_empty, PATIENCE)
        return self.seen.figures(trio.current_time(), self.records)


def judge(subject: Steady, row: Row, place: Kafka, first: int = 0) -> None:
    """What is in the topic is what was sent from the record `first` on; each process's in order."""
    times: Counter[int] = Counter()
    newest: dict[tuple[bytes | None, int | None], int] = {}
    backwards = wrong = 0
    for message in stored(place):
        number = msgpack.unpackb(message.value())["sequence"]
        wrong += message.value() != msgpack.packb(record(number, padding=PADDING))
        stream_ = (message.key(), message.partition())
        if not times[number]:
            backwards += number < newest.get(stream_, -1)
            newest[stream_] = number
        times[number] += 1
    found = sum(first <= number < subject.records for number in times)
    missing = subject.records - first - found
    row.saw(
        sent=subject.records,
        missing=missing,
        doubles=times.total() - len(times),
        out_of_order=backwards,
        lost_in_ledger=int(sum(subject.lost().values(), zeros()).sum()),
        warnings=len(subject.warnings),
    )
    assert missing == backwards == wrong == 0
    assert not subject.lost()
    assert subject.acknowledged() == subject.records
