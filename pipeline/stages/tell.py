"""tell: what is missing, and up to when the stream is whole, become records too. Behind encode, before the
sink.

A gap is told in the very batch whose passage books it. What has no numbers (losses that only counters know)
is told with the next heartbeat, which says how far that goes. So a batch that is safe has told every loss in
front of it, and a heartbeat that is safe vouches for all that stands before it.

What a sink loses later, the sink tells (sinks/flight.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.answers import Host
from pipeline.event import FOREVER, Beat, Encoded, Ints, Told
from pipeline.ledger import zeros
from pipeline.notices import HEARTBEAT, LOSS, block, of_counts, of_gap, records

__all__ = ["Look", "Tell"]


@dataclass(frozen=True, slots=True)
class Look:
    """How things are at a heartbeat."""

    now: int
    """Boottime, ns."""
    told: Told
    """All losses that only counters know, since the attachment began."""
    losses: Sequence[Mapping[str, Any]]
    """Others that are to be told, as records have them (and with a `host`, where it is another boot's)."""
    fields: Mapping[str, Any]
    """What a heartbeat says beside `beat` and `until`."""


class Tell:
    """The stage; see the module's text."""

    name = "tell"

    def __init__(self, host: Host, look: Callable[[int], Look], told: Told, since: int) -> None:
        """`look` is called for each heartbeat, with its `until`. `told`, `since`: the losses that an earlier
        run told, and the boottime, ns, up to which its heartbeats went.
        """
        self._host = block(host)
        self._look = look
        self._told, self._until = told, since
        self._beats = 0
        self._held = zeros()

    def __call__(self, batch: Encoded) -> Iterable[Encoded]:
        """The batch, with its notices."""
        passage = batch.passage
        if not passage.gaps and not passage.beat:
            return (batch,)
        losses: list[Mapping[str, Any]] = [of_gap(gap, self._until) for gap in passage.gaps]
        now = FOREVER
        told = dict(batch.records)
        if passage.beat:
            passage.beat = replace(passage.beat, until=max(passage.beat.until, self._until))
            self._held = batch.counts  # the look sees them here
            look = self._look(passage.beat.until)
            self._held, now = zeros(), look.now
            losses += self._losses(passage.beat, look)
            passage.told = self._told = look.told
            self._until = passage.beat.until
            self._beats += 1
            fields = {"beat": self._beats, "until": self._until, **look.fields}
            told[HEARTBEAT] = records(HEARTBEAT, self._host, batch.clock, [(look.now, fields)])
        if losses:
            dated = ((min(loss["until"], now), loss) for loss in losses)
            told[LOSS] = records(LOSS, self._host, batch.clock, dated)
        return (replace(batch, records=told, time=_span(batch, told)),)

    def _losses(self, beat: Beat, look: Look) -> Iterator[Mapping[str, Any]]:
        """What no gap tells: numbers behind rings' last chunks, and counters that moved."""
        for tail in beat.tails:
            yield of_gap(tail, self._until)
        for key, counts in look.told.items():
            lost = counts - self._told.get(key, 0)
            if lost.any():
                yield of_counts(key, lost, self._until, look.now)
        yield from look.losses

    def finish(self) -> Iterable[Encoded]:
        """Nothing is held."""
        return ()

    def held(self) -> Ints:
        """What is in hand while a look is taken."""
        return self._held


def _span(batch: Encoded, told: Mapping[str, Any]) -> tuple[int, int]:
    """Of a batch without events, the times of its notices; ns since the epoch."""
    if batch.counts.any():
        return batch.time
    times = [time * 1_000_000 for records in told.values() for time in records.times]
    return min(times), max(times) + 999_999
