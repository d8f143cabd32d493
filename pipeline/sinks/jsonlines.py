"""JSON lines on standard output: the end of the pipeline for `run --to -`. Written is acknowledged."""

from __future__ import annotations

import sys
from collections.abc import Collection
from heapq import merge

import msgpack
import trio

from pipeline.event import Encoded, Ints, Records
from pipeline.jsonl import record_to_json
from pipeline.ledger import zeros
from pipeline.sinks.sink import Keeper
from pipeline.stages.stage import Link
from pipeline.store import Outcome

__all__ = ["JsonLines", "write"]


def write(values: list[bytes]) -> None:
    """Print records, and wait until the reader took them. Raises BrokenPipeError."""
    text = "".join(record_to_json(value) + "\n" for value in values)
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


def _write(families: Collection[Records]) -> None:
    """Each family is in order: it is among several that one event can stand behind a later one."""
    values = [records.values for records in families]
    write(values[0] if len(values) == 1 else list(merge(*values, key=_time)))


def _time(value: bytes) -> int:
    time: int = msgpack.unpackb(value, strict_map_key=False)["time"]
    return time


class JsonLines:
    """Writes every batch before it takes the next."""

    name = "jsonlines"

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._held = zeros()

    async def run(self, source: Link[Encoded]) -> None:
        """See Sink. Raises BrokenPipeError when the reader has gone: the batch is not acknowledged then."""
        async for batch in source:
            self._held = batch.counts
            await trio.to_thread.run_sync(_write, batch.records.values())
            if batch.passage.beat:
                self._keeper.complete(batch.passage.beat.until)
            self._keeper.checkpoint(batch.passage, batch.counts)
            self._keeper.release()
            self._held = zeros()

    def held(self) -> Ints:
        """See Sink."""
        return self._held

    def in_outbox(self) -> Ints:
        """See Sink: there is none."""
        return zeros()

    def settled(self) -> Outcome:
        """See Sink: nothing is settled later."""
        return Outcome(zeros())
