"""Notices as records: they are what their JSON Schema says, and what is stored twice is known."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline import event
from pipeline.answers import Host
from pipeline.chunk import event_id
from pipeline.event import FOREVER, NO_RING, Gap
from pipeline.ledger import zeros
from pipeline.notices import (
    LOSS,
    NOTICES,
    TYPES,
    block,
    complete_of,
    identity,
    json_schema,
    of_counts,
    of_gap,
    of_loss,
    of_record,
    records,
    topics,
)
from pipeline.schema import by_name, families
from tests.encoded import record

CHECK = TypeAdapter[Any](TYPES[LOSS])
HOST = block(Host("h", "n", "b" * 32, {}))


def decoded(kind: str, fields: dict[str, Any], boottime: int = 100) -> dict[str, Any]:
    (value,) = records(kind, HOST, 1_000, [(boottime, fields)]).values
    found: dict[str, Any] = msgpack.unpackb(value)
    return found


def counts(**kinds: int) -> Any:
    found = zeros()
    for kind, n in kinds.items():
        found[by_name()[kind].number] = n
    return found


@pytest.mark.parametrize(
    "where",
    [
        of_gap(Gap(3, 10, 19, 100, 200, 0), 5),
        of_counts((NO_RING, "kernel", "skipped"), counts(exec=2), 5, 9),
        of_counts((1021, "perf", "no reader"), zeros() + 1, 5, 9),
        *of_loss(
            event.Loss(counts(exec=3), 0, 50, "outbox", "dropped", ((event_id(1, 5), event_id(1, 9)),)), 20
        ),
    ],
)
def test_losses_are_what_their_schema_says(where: Any) -> None:
    made = decoded(LOSS, dict(where))
    CHECK.validate_python(made)
    assert set(made) == set(json_schema(LOSS)["required"])
    with pytest.raises(ValidationError, match="since"):
        CHECK.validate_python({key: value for key, value in made.items() if key != "since"})


def test_what_an_outbox_lost() -> None:
    spans = ((event_id(1, 5), event_id(1, 9)), (event_id(2, 7), event_id(2, 7)))
    whole, *numbers = of_loss(
        event.Loss(counts(exec=3, exit=1), 1_500, 2_500, "outbox", "dropped", spans), 1_000
    )
    assert (whole["since"], whole["until"], whole["count"]) == (500, 1_500, 4)
    assert whole["kinds"] == {"exec": 3, "exit": 1}
    assert [(w["ring"], w["first"], w["last"], w["kinds"]) for w in numbers] == [
        (1, 5, 9, None),
        (2, 7, 7, None),
    ]
    (other,) = of_loss(event.Loss(counts(exec=3), 1_500, 2_500, "outbox", "corrupt"), None)
    assert (other["since"], other["until"]) == (0, FOREVER), "nobody knows the boottimes of another boot"


def test_a_record_that_is_refused_leaves_its_place() -> None:
    found = msgpack.unpackb(of_record(record(7), "kafka", "too large"))
    CHECK.validate_python(found)
    assert (found["ring"], found["first"], found["last"]) == (0, 7, 7)
    assert found["kinds"] == {"fork": 1}
    assert found["host"] == record(7)["host"]
    assert found["since"] == found["until"] == record(7)["boottime"]


def test_what_is_stored_twice_is_known() -> None:
    gap = decoded(LOSS, dict(of_gap(Gap(3, 10, 19, 100, 200, 0), 5)))
    again = decoded(LOSS, dict(of_gap(Gap(3, 10, 19, 0, 250, 0), 9)))
    assert identity(gap) == identity(again), "found again after a crash"
    assert identity(gap) != identity(decoded(LOSS, dict(of_gap(Gap(3, 10, 18, 100, 200, 0), 5))))
    beats = [decoded("heartbeat", {"run": run, "beat": beat}) for run, beat in ((1, 1), (1, 2), (2, 1))]
    assert len({identity(beat) for beat in beats}) == 3
    assert identity(record(3)) == ("b" * 32, 0, 3)
    for odd in ({}, {"kind": LOSS}, {"host": None, "kind": "exec"}):
        assert identity(odd) is None


def test_who_is_complete() -> None:
    families = {"heartbeat": records("heartbeat", HOST, 0, [(5, {"until": 40}), (9, {"until": 30})])}
    assert complete_of(families, "b" * 32) == 40
    assert complete_of(families, "c" * 32) == 0, "another boot's clock"
    assert complete_of({}, "b" * 32) == 0


def test_topics() -> None:
    assert topics() == (*families(), *NOTICES)
