"""F3: from rings to acknowledgements of Apache Kafka, beside a bare produce loop of the same bytes

Two synthetic rings of 16 MiB, written by another process as their positions move → the whole pipeline →
Apache Kafka on the same machine. An exec has ten arguments and an environment of 3 KB. The loop calls
confluent-kafka with the same settings, topic, bytes and a delivery callback per record. Runs alternate,
and medians are compared. CPU is that of the process, librdkafka's threads included and the broker's
left out. Kafka's own ProducerPerformance, with payloads of the same sizes, stands beside both.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Final

import trio

from config.kafka import broker
from pipeline.event import Records
from pipeline.kafka import ensure, producer
from pipeline.place import Kafka
from pipeline.sinks.kafka import KafkaSink
from pipeline.sinks.outbox import Outbox
from pipeline.sinks.sink import Keeper
from pipeline.store import OUTBOX, Store
from tests.bench.line import Run, records
from tests.bench.line import measure as run_line
from tests.bench.result import Figure, Part, Table, figure, tried
from tests.bench.rings import SyntheticRings, lap
from tests.broker import Broker

__all__ = ["LARGEST", "MIXES", "PARTITIONS", "RINGS", "kafka_sink", "measure"]

MIXES: Final = {"fork and exit": 0, "default mix, 40 % exec": 4}
"""Name → execs for three forks and three exits."""
SECONDS: Final = 4.0
"""That a run of the bare loop takes."""
ROUNDS: Final = 3
RING: Final = 16 << 20
RINGS: Final = 2
LARGEST: Final = 8 << 20
TRIED: Final = """
The tables say where the CPU goes: for fork and exit half of what is added to the loop is encode; in the
default mix an event is 7 chunks, and drain, merge and assemble alone cost as much as half the loop.
Tried, with effect: one join per record and order by plain lists (encode 638 → 580 ns for fork and exit,
2,120 → 1,546 in the mix); enrich looks only at rows that ask something new (194 → 152, 700 → 565);
payloads gathered in one copy (344 → 222 per event of the mix); produce called by position (521 → 377
per call). Tried, without: the garbage collector off, malloc's thresholds, smaller passes (2,048 chunks:
+60 %) and batches (1,024 events: +20 %).
"""
PARTITIONS: Final = 12


def say(text: str) -> None:
    """What the sink warns of; what went by way of the outbox stands in the run."""
    print(f"   {text}", file=sys.stderr)


def kafka_sink(place: Kafka, state: Path, keeper: Keeper) -> KafkaSink:
    """The real one, with an outbox of its own."""
    outbox = Outbox(Store(state / OUTBOX, "bench"), keeper, say)
    return KafkaSink(place, outbox, keeper, say, partitions=PARTITIONS)


def through(place: Kafka, chunks: Any, laps: int, **options: Any) -> Run:
    """One run of the pipeline into Kafka."""
    with (
        tempfile.TemporaryDirectory() as state,
        SyntheticRings(chunks, rings=RINGS, laps=laps) as rings,
    ):
        sink = partial(kafka_sink, place, Path(state))
        line = partial(run_line, rings.readers(), sink, **options)
        run = trio.run(partial(line, go=rings.go, ended=lambda: rings.written))
        assert run.events == rings.events, f"{run.events} of {rings.events} events were acknowledged"
        assert not run.lost, f"{run.lost} chunks were lost"
        return run


class Count:
    """The delivery callback of the bare loop: a bound method that counts, as the sink's."""

    def __init__(self) -> None:
        self.acknowledged = 0

    def delivered(self, error: object, message: object) -> None:
        assert error is None, error
        self.acknowledged += 1


def bare(place: Kafka, batches: Sequence[Records], times: int) -> Run:
    """A produce loop, as simple as can be: settings, bytes and callback are the sink's."""
    client = producer(place, {}, largest=LARGEST)
    client.list_topics(timeout=5)
    topic, count = place.topic("process"), Count()
    produce, poll, callback = client.produce, client.poll, count.delivered
    total = times * sum(len(batch.values) for batch in batches)
    begin, cpu = time.monotonic(), time.process_time()
    for batch in chain.from_iterable(repeat(batches, times)):
        for key, value, stamp in zip(batch.keys, batch.values, batch.times, strict=True):
            while True:
                try:
                    produce(topic, value, key, -1, callback, timestamp=stamp)
                    break
                except BufferError:
                    poll(0.002)
        poll(0)
    while count.acknowledged < total:
        poll(0.002)
    return Run(time.monotonic() - begin, time.process_time() - cpu, total)


PRINTABLE: Final = bytes(n if 32 < n < 127 else 97 + n % 26 for n in range(256))
"""Makes one line of text of any record: as long, and about as well compressed."""


def performance(place: Kafka, batches: Sequence[Records], number: int) -> float:
    """Records per second of Kafka's own ProducerPerformance, with payloads of the same sizes."""
    with tempfile.NamedTemporaryFile() as file:
        for batch in batches:
            file.writelines(value.translate(PRINTABLE) + b"\n" for value in batch.values)
        file.flush()
        settings = (
            f"bootstrap.servers={place.address} acks=all enable.idempotence=true linger.ms=2 "
            "compression.type=lz4 batch.size=1000000 buffer.memory=33554432"
        )
        done = subprocess.run(
            [
                *broker.java_command(),
                "org.apache.kafka.tools.ProducerPerformance",
                *("--topic", place.topic("process"), "--num-records", str(number), "--throughput", "-1"),
                *("--payload-file", file.name, "--producer-props", *settings.split()),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
    last = done.stdout.strip().splitlines()[-1]
    found = re.match(rf"{number} records sent, ([0-9.]+) records/sec", last)
    assert found, last
    return float(found[1])


def made(chunks: Any) -> list[Records]:
    """The records of one ring."""
    with SyntheticRings(chunks, rings=1, laps=1) as rings:
        rings.go()
        while not rings.written:
            time.sleep(0.01)
        encoded = records(rings.readers())
    return [batch.records["process"] for batch in encoded if batch.records]


def measure(seconds: float = SECONDS) -> Part:
    """Both mixes, three times in turn."""
    figures: list[Figure] = []
    tables: list[Table] = []
    remarks: list[str] = []
    with Broker() as kafka:
        place = Kafka(kafka.address, "bench")
        ensure(place, {}, partitions=PARTITIONS, largest=LARGEST)
        for name, execs in MIXES.items():
            _mix(place, name, execs, seconds, figures, tables, remarks)
    return Part(__doc__ or "", figures, tables, remarks + tried(figures, TRIED))


def _mix(
    place: Kafka,
    name: str,
    execs: int,
    seconds: float,
    figures: list[Figure],
    tables: list[Table],
    remarks: list[str],
) -> None:
    chunks = lap(RING, execs)
    batches = made(chunks)
    once = sum(len(batch.values) for batch in batches)
    size = sum(len(value) for batch in batches for value in batch.values) / once
    first = bare(place, batches, 1 + 50_000 // once)
    laps = max(1, round(first.rate * seconds / once / RINGS))
    loops, runs = [], []
    for _ in range(ROUNDS):
        loops.append(bare(place, batches, RINGS * laps))
        runs.append(through(place, chunks, laps))
    profile = through(place, chunks, laps, profile=True)
    java = performance(place, batches, RINGS * laps * once)
    rate, cpu = (statistics.median(getattr(run, what) for run in runs) for what in ("rate", "ns"))
    bare_rate, bare_cpu = (statistics.median(getattr(run, what) for run in loops) for what in ("rate", "ns"))
    what = f"{name} ({size:.0f} bytes per record)"
    figures += [
        figure(
            "F3", f"rate, {what}", rate, "events/s",
            anchor=("bare produce loop", bare_rate), goal=(">=", 0.7), of="ratio",
        ),
        figure(
            "F3", f"CPU, {what}", cpu, "ns per event",
            anchor=("bare produce loop", bare_cpu), goal=("<=", 1.5), of="ratio",
        ),
        figure("F3", f"rate, {what}", rate, "events/s", anchor=("Kafka's ProducerPerformance", java)),
    ]  # fmt: skip
    costs = [(stage, cost / profile.events * 1e9) for stage, cost in profile.stages.items()]
    rest = profile.ns - sum(cost for _, cost in costs)
    per_event = profile.chunks / profile.events
    tables.append(
        Table(
            f"CPU per event by stage, {name}, {per_event:.1f} chunks per event:",
            ("stage", "ns"),
            [*costs, ("drain, trio, produce, librdkafka", rest), ("bare produce loop", bare_cpu)],
        )
    )
    if spilled := sum(run.spilled for run in runs):
        remarks.append(f"{name}: {spilled} events went by way of the outbox.")
