"""Notices: records that are no events. They say what of the stream is missing (`loss`), and up to when it is
whole (`heartbeat`).

`stages/tell.py` makes them and `sinks/flight.py` those of records that a broker refuses; they go where events
go, in families of their own, and are counted nowhere. The two types are the source of their JSON Schema
(`promissory schema json loss`) and of docs/notices.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Final, Literal, cast

import msgpack
import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict  # what pydantic takes before Python 3.12

from pipeline import event
from pipeline.answers import Host
from pipeline.chunk import ring_of, sequence_of
from pipeline.event import FOREVER, NO_RING, Gap, Ints, Records
from pipeline.schema import by_number, families

__all__ = [
    "AWAY",
    "HEARTBEAT",
    "LOSS",
    "NOTICES",
    "TYPES",
    "Heartbeat",
    "Loss",
    "Seam",
    "Where",
    "block",
    "complete_of",
    "identity",
    "json_schema",
    "kinds_of",
    "of_counts",
    "of_gap",
    "of_loss",
    "of_record",
    "records",
    "topics",
]

LOSS: Final = "loss"
HEARTBEAT: Final = "heartbeat"
NOTICES: Final = (LOSS, HEARTBEAT)
"""Their families, and their kinds."""
AWAY: Final = "no reader"
"""The reason of a time in which nobody took what the kernel had to tell: how much it was, nobody knows."""


def said(text: str) -> Any:
    """What a field means, for those who read records."""
    return Field(description=text)


class HostBlock(TypedDict):
    """As in every record."""

    id: str
    name: str
    boot_id: str
    labels: dict[str, str]


class Notice(TypedDict):
    """What both begin with."""

    time: Annotated[int, said("ns since the epoch")]
    boottime: Annotated[int, said("the same in ns since boot")]
    host: Annotated[HostBlock, said("as in every record")]


class Where(TypedDict):
    """What a loss record says of the loss itself."""

    ring: Annotated[int | None, said("ring that lost it; nil: not a ring's loss")]
    first: Annotated[
        int | None, said("first sequence of the ring that is missing; nil: the loss has no numbers")
    ]
    last: Annotated[int | None, said("last one, included")]
    since: Annotated[int, said("boottime, ns: nothing of it happened before (0: since when is not known)")]
    until: Annotated[int, said("boottime, ns: nothing of it happened after")]
    stage: Annotated[str, said("who lost it, as in the ledger")]
    reason: Annotated[
        str,
        said(
            "why, as in the ledger; for a ring's numbers `full`, or `late`: they came after all, "
            "and take back a part of an interval that was told before"
        ),
    ]
    count: Annotated[
        int | None,
        said("how many: numbers where there are any, else events or records; nil: nobody knows"),
    ]
    kinds: Annotated[dict[str, int] | None, said("kind → events; nil: of which kinds is not known")]


class Loss(Notice, Where):
    """An interval of what is not in the stream: whoever asks about it is to hear "unknown", never "no"."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    schema: Annotated[Literal["loss/1"], said("name and version")]
    kind: Literal["loss"]


class Seam(TypedDict):
    """Where a run took up a ring."""

    ring: int
    how: Annotated[
        Literal["attached", "resumed"],
        said("probes were attached just before, or an earlier run had read the ring"),
    ]
    before: Annotated[
        int | None, said("last sequence that an earlier run's books cover; nil: there was none")
    ]
    after: Annotated[int | None, said("first sequence that this run took; nil: none came yet")]
    since: Annotated[
        int, said("boottime, ns, since which nobody had read it: what came meanwhile waited in it")
    ]
    refused: Annotated[
        str | None,
        said("what made no sense of the positions that were left, and what was done; nil: all did"),
    ]


class Heartbeat(Notice):
    """Every few seconds: up to when the stream is whole, what the books say, and how the pipeline is."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    schema: Annotated[Literal["heartbeat/1"], said("name and version")]
    kind: Literal["heartbeat"]
    attachment: Annotated[str, said("names one life of the kernel's counters: they begin at 0")]
    run: Annotated[int, said("boottime at which this run began, ns")]
    beat: Annotated[int, said("number of the heartbeat in its run, from 1")]
    until: Annotated[
        int,
        said(
            "boottime, ns: every event before it stands in front of this record, or is told as "
            "lost; so it holds for who has read that far in all partitions of all topics"
        ),
    ]
    complete_until: Annotated[
        int | None,
        said(
            "boottime, ns: every event of this host before it, and since it was attached, is "
            "acknowledged, filtered, or inside a loss record that is acknowledged; nil: nothing is "
            "yet, or an outbox of another run waits"
        ),
    ]
    seam: Annotated[
        list[Seam],
        said("all rings in a run's first heartbeat; later those whose first chunk came since"),
    ]
    balanced: Annotated[bool, said("the ledger adds up, exactly")]
    ledger: Annotated[
        dict[str, dict[str, int]],
        said(
            "kind, or `all`, → its terms, and how many were `assembled` and `encoded` (what is 0 is left "
            "out), since it was attached"
        ),
    ]
    losses: Annotated[
        list[tuple[str, str, dict[str, int]]],
        said("[stage, reason, kind → events], since it was attached"),
    ]
    rings: Annotated[
        dict[str, dict[str, float]],
        said("ring → its books of chunks, and `filled`: the part of it that is taken, 0 to 1"),
    ]
    outbox: Annotated[dict[str, int], said("events that wait for Kafka, and the bytes of the store")]
    clock: Annotated[int, said("ns to add to boottime to get the time since the epoch")]
    watch: Annotated[list[str], said("what the pipeline finds wrong with itself now: see operating.md")]


TYPES: Final[Mapping[str, type]] = {LOSS: Loss, HEARTBEAT: Heartbeat}


def topics() -> tuple[str, ...]:
    """All families that there are: those of events, and of notices."""
    return (*families(), *NOTICES)


@cache
def json_schema(name: str) -> dict[str, Any]:
    """Draft 2020-12, of a notice's records as JSON lines show them."""
    return TypeAdapter(TYPES[name]).json_schema()


def block(host: Host) -> HostBlock:
    """`host` of a record."""
    return HostBlock(id=host.id, name=host.name, boot_id=host.boot_id, labels=dict(host.labels))


def kinds_of(counts: Ints) -> dict[str, int] | None:
    """Kind → events, without those that are 0; None: no kind is known."""
    names = by_number()
    return {names[n].name: int(counts[n]) for n in np.flatnonzero(counts).tolist() if n in names} or None


def of_gap(gap: Gap, since: int) -> Where:
    """A gap of a ring. `since` counts where the gap does not know when it began."""
    return Where(
        ring=gap.ring,
        first=gap.first,
        last=gap.last,
        since=gap.before or since,
        until=gap.after,
        stage="ring",
        reason="late" if gap.filled else "full",
        count=len(gap),
        kinds=None,
    )


def of_counts(key: tuple[int, str, str], counts: Ints, since: int, until: int) -> Where:
    """Events (or, under kind 0, records) that a counter says were lost between two boottimes."""
    ring, stage, reason = key
    return Where(
        ring=None if ring == NO_RING else ring,
        first=None,
        last=None,
        since=since,
        until=until,
        stage=stage,
        reason=reason,
        count=None if reason == AWAY else int(counts.sum()),
        kinds=kinds_of(counts),
    )


def of_loss(loss: event.Loss, clock: int | None) -> Iterator[Where]:
    """What an outbox lost: how much, and between which numbers of which rings.

    `clock`: ns from boottime to the time since the epoch; None: those of its boot are not known.
    """
    since, until = (loss.since, loss.until) if clock is not None else (0, FOREVER)
    offset, key = clock or 0, (NO_RING, loss.stage, loss.reason)
    where = of_counts(key, loss.kinds, max(since - offset, 0), until - offset)
    yield where
    for first, last in loss.spans:
        numbers = {"ring": ring_of(first), "first": sequence_of(first), "last": sequence_of(last)}
        yield cast(Where, {**where, **numbers, "count": None, "kinds": None})


def of_record(fields: Mapping[str, Any], stage: str, reason: str) -> bytes:
    """The packed loss record that takes the place of an event's record (decoded)."""
    where = Where(
        ring=fields["ring"],
        first=fields["sequence"],
        last=fields["sequence"],
        since=fields["boottime"],
        until=fields["boottime"],
        stage=stage,
        reason=reason,
        count=1,
        kinds={fields["kind"]: 1},
    )
    head = {key: fields[key] for key in Notice.__annotations__}
    packed: bytes = msgpack.packb({"schema": "loss/1", "kind": LOSS, **head, **where})
    return packed


def records(
    kind: str, host: HostBlock, clock: int, notices: Iterable[tuple[int, Mapping[str, Any]]]
) -> Records:
    """Records of one family; each notice with its boottime. The key is the boot id: one host's go to one
    partition."""
    key, found = host["boot_id"].encode(), Records([], [], [])
    for boottime, fields in notices:
        time = boottime + clock
        start = {"schema": f"{kind}/1", "kind": kind, "time": time, "boottime": boottime, "host": host}
        found.keys.append(key)
        found.values.append(msgpack.packb({**start, **fields}))
        found.times.append(time // 1_000_000)
    return found


def complete_of(families: Mapping[str, Records], boot_id: str) -> int:
    """Up to which boottime the host is complete when these records are acknowledged; 0: they do not say."""
    found = map(msgpack.unpackb, families[HEARTBEAT].values) if HEARTBEAT in families else ()
    return max((beat["until"] for beat in found if beat["host"]["boot_id"] == boot_id), default=0)


def identity(fields: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What a record that is stored twice is known by; None: it is no record of ours. Raises nothing."""
    try:
        boot = fields["host"]["boot_id"]
        if fields["kind"] == HEARTBEAT:
            return boot, HEARTBEAT, fields["run"], fields["beat"]
        if fields["kind"] == LOSS:
            numbers = fields["ring"], fields["first"], fields["last"]
            span = () if fields["first"] is not None else (fields["since"], fields["until"])
            return boot, LOSS, *numbers, fields["stage"], fields["reason"], *span
        return boot, fields["ring"], fields["sequence"]
    except (KeyError, TypeError):
        return None
