"""F10: the outbox, and how soon a run that begins has an event acknowledged

Fork and exit, as in F3, runs by turns: straight to Apache Kafka; with every batch forced through the outbox
(SQLite, on the disk of the temporary folder); the outbox alone, as when the broker is away: batches that are
encoded already, put in as fast as it takes them; and what is in it then delivered, by a sink with no other
input. The restart is of `promissory run` over probes that are attached: from its exec until its ledger says
that Kafka acknowledged an event.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any, Final

import trio

from pipeline.books import ask
from pipeline.event import Encoded, Passage
from pipeline.kafka import ensure
from pipeline.kernel.layout import AREA_SIZE
from pipeline.ledger import Books
from pipeline.place import Kafka
from pipeline.sinks import kafka as kafka_sink
from pipeline.sinks.checkpoint import BookKeeper
from pipeline.sinks.kafka import KafkaSink
from pipeline.sinks.outbox import Outbox
from pipeline.sinks.sink import Keeper
from pipeline.stages.stage import Link
from pipeline.store import OUTBOX, Outcome, Store
from tests.bench.line import Run, records
from tests.bench.line import measure as run_line
from tests.bench.produce import LARGEST, PARTITIONS, RINGS, say
from tests.bench.result import Part, figure
from tests.bench.rings import SyntheticRings, lap
from tests.broker import Broker

__all__ = ["measure"]

RING: Final = 16 << 20
LAPS: Final = 3
ROUNDS: Final = 3
PATIENCE: Final = 600.0
"""Seconds for what went through the outbox to be delivered: a busy machine takes its time."""
GROUP: Final = 3
"""Batches that the sink puts in together while the broker is away."""
KINDS: Final = "process,exec,fork,exit"


class Counted(Store):
    """A store that counts its transactions."""

    writes = 0

    def append(self, batches: Sequence[Encoded], books: Mapping[str, Any] | None = None) -> list[int]:
        self.writes += 1
        return super().append(batches, books)

    def settle(self, outcomes: Mapping[int, Outcome]) -> Outcome:
        self.writes += 1
        return super().settle(outcomes)


class Forced(KafkaSink):
    """A sink that believes its broker to be slow for ever."""

    def _must_spill(self) -> bool:
        self._spilling = True
        return self._has_unsafe()

    def _recover(self) -> None:
        """It never does."""


def measure() -> Part:
    """All of it, by turns."""
    chunks = lap(RING, 0)
    kafka_sink.END = PATIENCE  # type: ignore[misc]
    direct, forced, taken, drained, writes = [], [], [], [], 0
    with Broker() as kafka:
        place = Kafka(kafka.address, "bench")
        ensure(place, {}, partitions=PARTITIONS, largest=LARGEST)
        batches = _made(chunks)
        _through(place, chunks, KafkaSink)  # a broker that has just begun is slow
        for _ in range(ROUNDS):
            run, n = _through(place, chunks, KafkaSink)
            direct.append(run.rate)
            writes += n if not run.spilled else 0
            forced.append(_through(place, chunks, Forced)[0].rate)
            with tempfile.TemporaryDirectory() as state:
                put, drain = trio.run(_away, place, Path(state), batches)
            taken.append(put)
            drained.append(drain)
        restarts = _restarts(place)
    f3, through, put, drain = map(statistics.median, (direct, forced, taken, drained))
    anchor = ("straight to Kafka", f3)
    return Part(
        __doc__ or "",
        [
            figure(
                "F10", "rate, every batch through the outbox", through, "events/s",
                anchor=anchor, goal=(">=", 0.55), of="ratio",
            ),
            figure("F10", "the outbox takes, broker away", put, "events/s", goal=(">=", 300_000)),
            figure(
                "F10", "the outbox drains", drain, "events/s", anchor=anchor, goal=(">=", 0.8), of="ratio"
            ),
            figure("F10", "writes of the outbox while the broker is well", writes, "writes", goal=("==", 0)),
            figure("F10", "restart to first event", statistics.median(restarts), "s", goal=("<=", 1)),
        ],
    )  # fmt: skip


def _through(place: Kafka, chunks: Any, sink: type[KafkaSink]) -> tuple[Run, int]:
    """One run of the whole pipeline, and the outbox's transactions."""
    with (
        tempfile.TemporaryDirectory() as state,
        SyntheticRings(chunks, rings=RINGS, laps=LAPS) as rings,
    ):
        store = Counted(Path(state) / OUTBOX, "bench")

        def make(keeper: Keeper) -> KafkaSink:
            return sink(place, Outbox(store, keeper, say), keeper, say, partitions=PARTITIONS)

        line = partial(run_line, rings.readers(), make)
        run = trio.run(partial(line, go=rings.go, ended=lambda: rings.written))
        store.close()
        assert run.events == rings.events, f"{run.events} of {rings.events} events were acknowledged"
        assert sink is KafkaSink or run.spilled == run.events
        return run, store.writes


def _made(chunks: Any) -> list[Encoded]:
    """The batches of one ring."""
    with SyntheticRings(chunks, rings=1, laps=1) as rings:
        rings.go()
        while not rings.written:
            time.sleep(0.01)
        return [batch for batch in records(rings.readers()) if len(batch)]


async def _away(place: Kafka, state: Path, batches: list[Encoded]) -> tuple[float, float]:
    """Events per second into the outbox, and out of it."""
    keeper = BookKeeper(Books(), bytearray(AREA_SIZE), move=lambda *_: None, pressure=lambda: 0.0)
    store = Store(state / OUTBOX, "bench")
    outbox = Outbox(store, keeper, say)
    numbers = count(1)
    rows = [
        replace(batch, passage=Passage(next(numbers), {}))
        for batch in chain.from_iterable(repeat(batches, RINGS * LAPS))
    ]
    begin = time.monotonic()
    for at in range(0, len(rows), GROUP):
        await outbox.put(rows[at : at + GROUP])
    put = time.monotonic() - begin
    events = int(outbox.counts.sum())
    sink = KafkaSink(place, outbox, keeper, say, partitions=PARTITIONS)
    await sink.open()
    link: Link[Encoded] = Link("nothing")
    begin = time.monotonic()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.run, link)
        while not outbox.is_empty:  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.005)
        drained = time.monotonic() - begin
        link.close()
    store.close()
    return events / put, events / drained


def _restarts(place: Kafka) -> list[float]:
    """Seconds from exec to the first acknowledgement, of runs over probes that are attached."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        state, pins = Path(folder) / "state", Path(f"/sys/fs/bpf/promissory-bench-{Path(folder).name}")
        command = [sys.executable, "-m", "pipeline.cli"]
        where = ["--state", str(state)]
        Path(folder).chmod(0o755)
        to = f"kafka://{place.address}/restart"
        env = os.environ | {"PROMISSORY_PINS": str(pins)}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # as installed: nothing is compiled at each start
        call = partial(subprocess.run, env=env, capture_output=True)
        call([*command, "attach", *where, "--events", KINDS], check=True)
        try:
            for _ in range(ROUNDS + 1):
                said = call(
                    [*command, "ledger", *where, "--json"]
                ).stdout  # acts of its own: all are in rings
                before = json.loads(said)["acknowledged"]
                begin = time.monotonic()
                with subprocess.Popen(
                    [*command, "run", *where, "--events", KINDS, "--to", to, "--quiet"],
                    env=env,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                ) as run:
                    while (ask(state) or {}).get("acknowledged", 0) <= before:
                        assert run.poll() is None
                        time.sleep(0.005)
                    found.append(time.monotonic() - begin)
                    run.terminate()
        finally:
            call([*command, "detach", *where], check=True)
    return found[1:]  # the first one makes the topics
