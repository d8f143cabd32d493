"""filter: the same answer over batches and over records, and rows booked when they go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.columns import COLUMNS, Columns, of_records
from pipeline.event import Batch
from pipeline.redact import Redaction
from pipeline.schema import Surface, by_name, by_number
from pipeline.stages.encode import Encode
from pipeline.stages.enrich import Enrich
from pipeline.stages.filter import Filter, Judge
from tests.batches import HOST, FixedAnswers, batch_of, event, lost
from tests.stages.test_encode import any_event

SURFACES = {"exec": "tracepoint", "fork": "tracepoint"}
REDACTION = Redaction(["PATH"], ["secret"])


def enriched(*events: dict[str, Any]) -> Batch:
    (batch,) = Enrich(FixedAnswers())(batch_of(events))
    return batch


def records_of(batch: Batch) -> list[dict[str, Any]]:
    (found,) = Encode(HOST, SURFACES, REDACTION)(batch)
    records = [ormsgpack.unpackb(value) for family in found.records.values() for value in family.values]
    return sorted(records, key=lambda record: record["sequence"])


def filtering(expression: str, warnings: list[str] | None = None) -> Filter:
    said = [] if warnings is None else warnings
    return Filter(Judge(expression, said.append), Columns(HOST, SURFACES, REDACTION))


def kept(expression: str, *events: dict[str, Any]) -> list[int]:
    """Sequences of the events that pass, the same in both worlds."""
    batch = enriched(*events)
    stored = records_of(batch)
    (passed,) = filtering(expression)(batch)
    keep = Judge(expression, pytest.fail).keep(stored)
    found = [record["sequence"] for record, passes in zip(stored, keep, strict=True) if passes]
    assert passed.heads["sequence"].tolist() == found
    refused = batch.passage.tally.get(("filtered", "filter", "expression"), np.zeros(1))
    assert refused.sum() == len(batch) - len(passed)
    return found


@given(st.data())
def test_columns_of_batches_and_of_records_are_the_same(data: st.DataObject) -> None:
    events = [data.draw(any_event(sequence)) for sequence in range(1, data.draw(st.integers(1, 8)))]
    for given_event in events:
        if data.draw(st.booleans()) and "argv" in given_event:
            given_event["argv"] = (len(given_event["argv"]) + 3, given_event["argv"])
    batch = enriched(*events)
    found = Columns(HOST, SURFACES, REDACTION).of_batch(COLUMNS, batch)
    assert found == of_records(COLUMNS, records_of(batch))


def test_every_field_and_promise_has_a_column() -> None:
    for schema in by_name().values():
        assert {field.name for field in schema.fields} <= COLUMNS.keys()
        # What is parsed into maps is nothing that SQL could compare.
        assert {promise.name for promise in schema.promises if promise.type != "audit"} <= COLUMNS.keys()


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("uid >= 1000", [2]),
        ("uid >= 1000 OR kind = 'fork'", [2, 3]),
        ("executable LIKE '/tmp/%'", [2]),
        ("array_contains(argv, '-c')", [1]),
        ("'-c' = ANY(argv)", [1]),
        ("\"user\" = 'alice'", [2]),
        ("unit = 'sshd.service'", [1]),
        ("child_pid = 7", [3]),
        ("host = 'box' AND NOT memfd", [1, 2]),
        ("comm ~ '^w'", [2]),
        ("kind IN ('exec', 'exit') AND pid IN (100, 200)", [1, 2, 4]),
        ("executable IS NULL", [3, 4]),
        ("array_contains(environment, 'TOKEN=hidden')", []),
        ("array_contains(environment, 'TOKEN=***')", [1]),
        ("time - boottime = 1700000000000000000", [1, 2, 3, 4]),
    ],
)
def test_expressions(expression: str, expected: list[int]) -> None:
    events = [
        event("exec", 1, executable=b"/bin/sh", argv=b"sh\0-c\0", cgroup=7, environment=b"TOKEN=hidden\0"),
        event("exec", 2, executable=b"/tmp/x", argv=b"x\0", uid=1000, comm=b"worm"),
        event("fork", 3, child_pid=7),
        event("exit", 4, pid=200),
    ]
    assert kept(expression, *events) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("remote_address = '10.0.0.1' AND remote_port = 80", [1]),
        ("remote_address LIKE '::ffff:%'", [2]),
        ("remote_address IS NULL", [3, 4, 5]),
        ("tag = '0102030405060708'", [4]),
        ("sig_ok", [5]),
        ("remote_path = '\\0name'", []),
    ],
)
def test_addresses_and_tags_are_texts(expression: str, expected: list[int]) -> None:
    mapped = b"\6\0\0\0" + bytes(10) + b"\xff\xff\x0a\0\0\1"
    events = [
        event("connect", 1, remote_address=b"\4\0\0\0\x0a\0\0\1", remote_port=80),
        event("connect", 2, remote_address=mapped, remote_port=80),
        event("connect", 3, family=1, remote_path=b"\0name\0"),
        event("bpf_load", 4, tag=bytes(range(1, 9))),
        event("module_load", 5, sig_ok=1),
        event("module_load", 6, sig_ok=255, name=b"x"),
    ]
    assert kept(f"({expression}) AND sequence < 6", *events) == expected
    assert kept("sig_ok IS NULL AND kind = 'module_load'", *events) == [6]


def test_what_a_surface_does_not_show_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = by_name()["connect"]
    hiding = replace(schema, surfaces=(Surface("lsm", without=("remote_port", "remote_path")),))
    kinds = by_number() | {schema.number: hiding}
    monkeypatch.setattr("pipeline.columns.by_number", lambda: kinds)
    batch = enriched(event("connect", 1, remote_port=80, remote_path=b"x", errno=1))
    names = ("remote_port", "remote_path", "errno")
    assert Columns(HOST, {"connect": "lsm"}, REDACTION).of_batch(names, batch) == {
        "remote_port": [None],
        "remote_path": [None],
        "errno": [1],
    }


def test_null_passes_only_where_a_promise_is_unsettled() -> None:
    events = [
        event("exec", 1, path=b"/a", argv=b"x\0"),
        event("exec", 2, path=b"/b", argv=b"y\0"),
        event("exec", 3, path=(9, b"/"), argv=b"z\0"),
        event("exec", 4, path=b"/a" * 200, argv=b"z\0", hole=lost(1)),
        event("fork", 5),
    ]
    assert kept("path = '/a'", *events) == [1, 3, 4]
    # False whatever the path may be.
    assert kept("path = '/a' AND uid = 1000", *events) == []
    # The command line of the fourth is whole, the path is not.
    assert kept("array_contains(argv, 'z')", *events) == [3, 4]


def test_an_unsettled_value_is_null_and_never_what_arrived_of_it() -> None:
    cut = event("exec", 1, path=(9, b"/bin"))
    assert kept("path = '/bin' AND path <> '/bin'", cut) == [1]
    assert kept("path IS NULL", cut) == [1]


def test_the_executable_of_an_exec_is_its_own() -> None:
    failed = event("exec_failed", 2, executable=b"/bin/new", exec_id=1)
    assert kept("executable = '/bin/new'", event("exec", 1, executable=b"/bin/old"), failed) == [2]


def test_what_is_not_utf8_can_be_asked_for() -> None:
    events = [event("exec", 1, path=b"/tmp/\xff\xed\xa0\x80", argv=b"\xff\0", comm=b"\xff")]
    assert kept("path LIKE '/tmp/%' AND array_length(argv) = 1 AND comm <> ''", *events) == [1]


def test_refused_events_are_booked_by_kind_and_an_empty_batch_goes_on() -> None:
    batch = enriched(event("exec", 1), event("fork", 2), event("fork", 3))
    (passed,) = filtering("uid = 4711")(batch)
    assert len(passed) == 0
    assert passed.passage is batch.passage
    counts = batch.passage.tally["filtered", "filter", "expression"]
    assert (counts[by_name()["exec"].number], counts[by_name()["fork"].number]) == (1, 2)
    assert [len(found) for found in filtering("uid = 4711")(passed)] == [0]


def test_holes_stay_with_their_events() -> None:
    batch = enriched(event("fork", 1), event("exec", 2, argv=b"a\0" * 300, hole=lost(2)), event("fork", 3))
    (passed,) = filtering("kind = 'exec'")(batch)
    assert list(passed.holes) == [0]
    assert records_of(passed)[0]["unsettled"]["argv"]["chunks"] == [2]


def test_a_filter_that_fails_lets_events_pass_and_says_so_once() -> None:
    warnings: list[str] = []
    stage = filtering("CAST(path AS BIGINT) > 3", warnings)
    for _ in range(2):
        (passed,) = stage(enriched(event("exec", 1, path=b"/no/number"), event("fork", 2)))
        assert len(passed) == 2
        assert passed.passage.tally == {}
    assert len(warnings) == 1
    (passed,) = stage(enriched(event("exec", 1, path=b"4"), event("exec", 2, path=b"1")))
    assert len(passed) == 1
