"""Row 7: whatever stands in the rings, nothing crashes, and each chunk and each event is booked."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import ormsgpack
import trio
from trio.testing import MockClock

from pipeline.app import Tap
from pipeline.chunk import PAYLOAD, STRIDE
from pipeline.columns import Columns
from pipeline.event import Batch, Encoded, Ints
from pipeline.kernel.layout import AREA_SIZE
from pipeline.ledger import SHOWN, Books, zeros
from pipeline.notices import LOSS
from pipeline.redact import Redaction
from pipeline.schema import by_name, by_number
from pipeline.sinks.checkpoint import BookKeeper
from pipeline.sources.rings import Rings
from pipeline.stages import stage
from pipeline.stages.assemble import Assemble
from pipeline.stages.encode import Encode
from pipeline.stages.enrich import Enrich
from pipeline.stages.filter import Filter, Judge
from pipeline.stages.join import FATES
from pipeline.stages.merge import Merge
from pipeline.stages.stage import Link
from pipeline.stages.tell import Look, Tell
from tests.batches import HOST, FixedAnswers
from tests.faults.conftest import Row
from tests.faults.fuzz import Fuzz
from tests.faults.results import times

SURFACES = dict.fromkeys(by_name(), "tracepoint")
EXPIRY = 20_000_000
REDACTION = Redaction(["PATH"], ["token=[^ ]+"])
REPORT = 1_000_000
"""Chunks between two lines for who waits."""


class Run:
    """One pipeline over fuzzed rings; everything but the writer of the chunks is the real thing."""

    def __init__(self, fuzz: Fuzz, row: Row) -> None:
        self.fuzz, self._row = fuzz, row
        self.source = Rings(fuzz.rings, {}, fuzz.now, feeds=[fuzz])
        self.keeper = BookKeeper(
            Books(),
            bytearray(AREA_SIZE),
            move=lambda ring, position: fuzz.rings[ring].release(position),
            pressure=lambda: 0.0,
        )
        boundary = {number: ring.expected for number, ring in fuzz.rings.items()}
        self.stages: list[stage.Stage[Any, Any]] = [
            Merge(),
            Assemble(boundary, expiry=EXPIRY, limit=2 << 20),
            Tap[Batch]("looked at", self._look),
            Enrich(FixedAnswers()),
            Filter(Judge("kind <> 'fork'", row.say), Columns(HOST, SURFACES, REDACTION)),
            Encode(HOST, SURFACES, REDACTION, {schema.family: 4096 for schema in by_name().values()}),
            Tell(HOST, self._no_beat, {}, 0),
        ]
        self.links: list[Link[Any]] = [Link(str(i)) for i in range(len(self.stages) + 1)]
        self.used = self.events = self.unsettled = self.gaps = 0
        self.records = [0, 0]
        """Of events, and of losses."""

    async def run(self) -> None:
        """To the end, with a clock that does not wait."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.source.run, self.links[0])
            for i, each in enumerate(self.stages):
                nursery.start_soon(stage.run, each, self.links[i], self.links[i + 1])
            nursery.start_soon(self._sink, self.links[-1])
            await self.fuzz.over.wait()
            self.source.stop(drain=True)

    def _no_beat(self, until: int) -> Look:
        raise AssertionError("nobody asked for a heartbeat")

    def _look(self, batch: Batch) -> None:
        """How many chunks its events are made of."""
        self.keeper.open(batch.passage)
        parts = np.where(batch.heads["parts"] == 1, 1, 1 + -(-batch.size // PAYLOAD))
        self.used += int(parts.sum())
        for at, hole in batch.holes.items():
            self.used -= int((hole.parts < parts[at]).sum())
        self.events += len(batch)

    async def _sink(self, source: Link[Encoded]) -> None:
        done = REPORT
        async for batch in source:
            for family, records in batch.records.items():
                for value in records.values:
                    self.unsettled += "unsettled" in ormsgpack.unpackb(value)
                self.records[family == LOSS] += len(records.values)
            self.gaps += len(batch.passage.gaps)
            self.keeper.checkpoint(batch.passage, batch.counts)
            self.keeper.release()
            if sum(self.fuzz.written.values()) >= done:
                self._row.say(f"{done:,} chunks")
                done += REPORT

    def held(self) -> Ints:
        """What did not come out."""
        inside = [each.held() for each in self.stages] + [each.held() for each in self.links]
        return sum(inside, zeros())


def test_fuzzed_chunks(row: Row) -> None:
    total = times(300_000, 10_000_000)
    seed = int(os.environ.get("FAULTS_SEED", random.randrange(1 << 32)))
    row(
        "7 fuzzed chunks",
        f"{total:,} chunks, of every kind, with flipped bits, swapped, doubled, dropped, cut, contradictory "
        "or random; through the reader and all stages",
    )
    row.say(f"FAULTS_SEED={seed}")
    fuzz = Fuzz(total, seed)
    run = Run(fuzz, row)
    trio.run(run.run, clock=MockClock(autojump_threshold=0))

    books = run.keeper.books
    fates = {fate: sum(ring.other.get(fate, 0) for ring in books.rings.values()) for fate in FATES[1:]}
    read = sum(ring.read for ring in books.rings.values())
    terms = {name: zeros() for name in SHOWN}
    for (term, _, _), counts in books.tally.items():
        terms[term] += counts
    row.saw(
        chunks_read=read,
        in_events=run.used,
        **fates,
        events=run.events,
        records=run.records[False],
        loss_records=run.records[True],
        unsettled=run.unsettled,
        filtered=int(terms["filtered"].sum()),
        unbooked=read - run.used - sum(fates.values()),
        seed=str(seed),
    )
    # Chunks: every one was read, is in an event or has a fate; two fates are known without the pipeline.
    assert {number: ring.read for number, ring in books.rings.items()} == fuzz.written
    assert read == total
    assert read == run.used + sum(fates.values())
    assert fates["malformed"] == fuzz.malformed
    assert fates["discarded"] == fuzz.discarded
    assert min(fates.values()) >= 0
    # Events: each head that makes sense left once; the others are lost, and booked.
    assert not run.held().any()
    assert run.events == int(fuzz.events.sum())
    assert (books.acknowledged + terms["filtered"]).tolist() == fuzz.events.tolist()
    assert terms["assembled"].tolist() == fuzz.events.tolist()
    assert terms["encoded"].tolist() == books.acknowledged.tolist()
    malformed = books.tally["lost", "merge", "malformed"]
    assert terms["lost"].tolist() == malformed.tolist()
    assert run.records == [int(books.acknowledged.sum()), run.gaps]
    assert terms["filtered"].nonzero()[0].tolist() == [by_name()["fork"].number]
    # Every kind was there, and so was every fate that can be.
    assert (books.acknowledged + terms["filtered"]).nonzero()[0].tolist() == sorted(by_number())
    assert all(fates[fate] for fate in FATES[1:] if fate != "repeat")
    # The rings are empty: nothing holds a position back. What is missing in their numbers is a gap.
    for number, ring in fuzz.rings.items():
        assert ring.position == fuzz.written[number] * STRIDE
        there = fuzz.numbers(number)
        booked = books.rings[number]
        assert booked.gaps + booked.read - there == booked.sequence - 1 - there
