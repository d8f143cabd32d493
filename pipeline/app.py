"""One pipeline, wired in one place; it reads like the picture in the README.

    rings → merge → assemble → enrich → filter → encode → tell → sink

Each arrow is a small bounded link, each stage one task in one nursery. It ends from the front: the source
closes its link, the end cascades, and `run` is over when the sink has made the last batch safe.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, Final, Generic, TypeAlias, TypeVar

import trio

from pipeline import books, folder, place
from pipeline.answers import Host
from pipeline.books import Holder
from pipeline.clock import Clock
from pipeline.columns import Columns
from pipeline.config import Config
from pipeline.console import View
from pipeline.event import Batch, Encoded, Ints
from pipeline.kernel.attachment import Attachment
from pipeline.kernel.manifest import Manifest
from pipeline.ledger import Statement, zeros
from pipeline.live_answers import LiveAnswers
from pipeline.notices import block
from pipeline.pulse import Pulse
from pipeline.redact import Redaction
from pipeline.sinks.checkpoint import BookKeeper
from pipeline.sinks.jsonlines import JsonLines
from pipeline.sinks.kafka import KafkaSink
from pipeline.sinks.log import LogSink
from pipeline.sinks.outbox import Outbox
from pipeline.sinks.sink import Sink
from pipeline.sources.feeds import Feed
from pipeline.sources.rings import Beats, Rings
from pipeline.stages import stage
from pipeline.stages.assemble import Assemble
from pipeline.stages.encode import Encode
from pipeline.stages.enrich import Enrich
from pipeline.stages.filter import Filter, Judge
from pipeline.stages.merge import Merge
from pipeline.stages.stage import Countable, Link, Stage
from pipeline.stages.tell import Tell
from pipeline.store import LOG, OUTBOX, Store
from pipeline.tables import console
from pipeline.watch import Facts, Watch

__all__ = ["Pipeline", "Say"]

T = TypeVar("T", bound=Countable)
SETTLE: Final = 0.2
"""Seconds that programs may still run for after their links are gone."""
Say: TypeAlias = Callable[[str], None]


class Pipeline:
    """The parts of one run, and who holds what."""

    def __init__(
        self,
        config: Config,
        target: place.Place,
        attachment: Attachment,
        feeds: Sequence[Feed],
        judge: Judge | None,
        say: Say,
    ) -> None:
        manifest = attachment.manifest
        self._config, self._manifest, self._say = config, manifest, say
        self._attachment = attachment
        self._store = _store(config, target, manifest, say)
        # What an earlier run of this attachment left in other places counts on.
        parked = books.stores(manifest, but=self._store.path, mend=say)
        self._parked = [store for store in parked if store.path.name == OUTBOX]
        restored = books.stored_books(self._attachment, self._store, *parked)
        for store in (self._store, *parked):
            if store.path.name == OUTBOX:
                store.reconcile(restored)
        self._rings = self._attachment.rings(restored)
        self._keeper = BookKeeper(
            restored,
            self._attachment.area,
            move=lambda ring, position: self._rings[ring].release(position),
            pressure=lambda: max(
                ring.filled for number, ring in self._rings.items() if number in manifest.rings
            ),
        )
        for ring in self._rings.values():  # a run that was killed may have stored the books and moved nothing
            ring.release(ring.position)
            if ring.refused:
                say(f"ring {ring.number}: {ring.refused}")
        self._sink = self._make_sink(target)
        self._view = None if config.quiet or isinstance(target, place.Stdout) else View(console())
        self._clock = Clock()
        self._source = Rings(
            self._rings,
            self._attachment.descriptors,
            self._clock,
            feeds=feeds,
            beats=Beats(config.heartbeat, self._attachment.counters),
        )
        self._watch = Watch(config.watch, say)
        self._stages = self._make_stages(judge)
        self._holders: list[Holder] = []
        self._links: list[tuple[str, Link[Any]]] = []
        self._leave_rest = False

    def _make_sink(self, target: place.Place) -> Sink:
        config = self._config
        if isinstance(target, place.Kafka):
            return KafkaSink(
                target,
                Outbox(self._store, self._keeper, self._say, config.outbox.full),
                self._keeper,
                self._say,
                properties=config.kafka,
                partitions=config.topic.partitions,
                largest=config.topic.max_record,
                boot_id=self._manifest.boot_id,
            )
        if isinstance(target, place.Stdout):
            return JsonLines(self._keeper)
        return LogSink(self._store, self._keeper, self._say)

    async def open(self) -> None:
        """Reach the broker, where there is one; what it says of its limits goes into encode."""
        if isinstance(self._sink, KafkaSink):
            await self._sink.open()

    async def run(self, *, detaching: bool) -> bool:
        """Run to the end. `detaching`: no event shall come in after the end began. False: it had to be cut
        short.
        """
        with closing(self._store), trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_told, scope, detaching)
                nursery.start_soon(books.answer, self._config.state, self.statement)
                nursery.start_soon(folder.keep, self._config.state, self._say)
                nursery.start_soon(self._watch_ourselves)
                if self._view:
                    nursery.start_soon(self._view.run)
                await self._flow()
                if self._view:
                    self._view.close()
                nursery.cancel_scope.cancel()
        return not scope.cancelled_caught

    async def _flow(self) -> None:
        """The picture at the top of this file."""
        link: Link[Any] = Link("passes")
        self._holders += [self._sink, link]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._source.run, link)
            for each in self._stages:
                following: Link[Any] = Link(each.name)
                self._holders += [each, following]
                self._links.append((each.name, link))
                nursery.start_soon(stage.run, each, link, following, lambda: self._leave_rest)
                link = following
            self._links.append((self._sink.name, link))
            nursery.start_soon(self._sink.run, link)

    def _make_stages(self, judge: Judge | None) -> list[Stage[Any, Any]]:
        config, surfaces = self._config, self._attachment.surfaces
        answers = LiveAnswers(config.host.id, config.host.name, config.host.labels)
        redaction = Redaction(
            config.environment.allow, config.redact.argv, environment=config.environment.enabled
        )
        limits = self._sink.limits if isinstance(self._sink, KafkaSink) else None
        boundary = {number: ring.expected for number, ring in self._rings.items()}
        pulse = self._make_pulse(answers.host)
        found: list[Stage[Any, Any] | None] = [
            Merge(),
            Assemble(boundary, self._keeper.books.number, int(config.expiry * 1e9), config.assembly),
            Tap[Batch]("opened", lambda batch: self._keeper.open(batch.passage)),
            Enrich(answers),
            Filter(judge, Columns(answers.host, surfaces, redaction)) if judge else None,
            Encode(answers.host, surfaces, redaction, limits),
            Tell(answers.host, pulse.look, self._keeper.books.told, pulse.since),
            Tap[Encoded]("shown", self._view.offer) if self._view else None,
        ]
        return [each for each in found if each]

    def _make_pulse(self, host: Host) -> Pulse:
        """What heartbeats say of this run."""
        return Pulse(
            block(host),
            self._rings,
            self._keeper.books,
            attached=min(self._attachment.start(ring) for ring in self._manifest.rings) * 1000,
            fixed={"attachment": self._manifest.id},
            now=self._clock,
            statement=self.statement,
            rest=lambda: {
                "outbox": {"events": int(self._sink.in_outbox().sum()), "bytes": self._waiting()},
                "watch": self._watch.findings,
            },
            losses=self._sink.tell if isinstance(self._sink, KafkaSink) else lambda until: (),
        )

    def _waiting(self) -> int:
        """Bytes of the outbox."""
        return self._store.size if isinstance(self._sink, KafkaSink) else 0

    async def _watch_ourselves(self) -> None:
        while True:
            await trio.sleep(self._config.heartbeat)
            facts = Facts(
                now=trio.current_time(),
                links=[(taker, len(link), link.taken) for taker, link in self._links],
                rings={number: self._rings[number].filled for number in self._manifest.rings},
                outbox=self._waiting(),
                offset=self._clock()[1],
                balanced=self.statement().balanced,
            )
            self._watch.look(facts)

    async def _until_told(self, scope: trio.CancelScope, detaching: bool) -> None:
        """Begin the end when the time is over or a signal comes; a second signal, or the deadline, cuts it
        short.
        """
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            with trio.move_on_after(self._config.duration or float("inf")):
                await anext(aiter(signals))
            if detaching:
                self._attachment.remove_links()
                await trio.sleep(SETTLE)
            self._leave_rest = not detaching
            self._source.stop(drain=detaching)
            with trio.move_on_after(self._config.shutdown.deadline):
                await anext(aiter(signals))
            scope.cancel()

    def statement(self) -> Statement:
        """The live ledger."""
        found = books.compute(
            self._attachment,
            self._rings,
            self._keeper.books,
            self._keeper.tally(),
            self._holders,
            [self._sink, *self._parked],
        )
        # What an outbox of another place still holds is not acknowledged anywhere.
        waits = any(store.in_outbox().any() for store in self._parked)
        return replace(found, complete_until=0) if waits else found


class Tap(Generic[T]):
    """A stage that changes nothing: it lets somebody look at what passes by."""

    def __init__(self, name: str, look: Callable[[T], None]) -> None:
        self.name = name
        self._look = look

    def __call__(self, batch: T) -> tuple[T]:
        self._look(batch)
        return (batch,)

    def finish(self) -> tuple[()]:
        """Nothing is held."""
        return ()

    def held(self) -> Ints:
        """Nothing is held."""
        return zeros()


def _store(config: Config, target: place.Place, manifest: Manifest, say: Say) -> Store:
    """The file behind the sink: the outbox of a broker, or the local log."""
    if isinstance(target, place.Kafka):
        return Store(config.state / OUTBOX, manifest.id, limit=config.outbox.limit, warn=say)
    folder = target.path if isinstance(target, place.Folder) else config.state
    return Store(folder / LOG, manifest.id, limit=config.log.limit, warn=say)
