"""The record's table: keys that other people's programs rely on, as JSON Schema and as published versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.docs import LOCK, contract, publish
from pipeline.record import DERIVED, IDENTITY, entities, identity, process_id
from pipeline.redact import Redaction
from pipeline.schema import Schema, by_name
from pipeline.stages.encode import Encode
from pipeline.stages.enrich import Enrich
from tests.batches import BOOT, HOST, FixedAnswers, batch_of, event


def record(kind: str, **values: Any) -> dict[str, Any]:
    (batch,) = Enrich(FixedAnswers())(batch_of([event(kind, 1, **values)]))
    (found,) = Encode(HOST, {}, Redaction())(batch)
    decoded: dict[str, Any] = ormsgpack.unpackb(found.records[by_name()[kind].family].values[0])
    return decoded


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)), max_size=20))
def test_ids_of_processes_at_once_are_ids_of_processes(processes: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in processes], np.uint64)
    pids = np.array([pid for _, pid in processes], np.uint32)
    found = [f"{BOOT}-{id.decode()}" for id in identity(starts, pids).tolist()]
    assert found == [process_id(BOOT, start, pid) for start, pid in processes]
    assert all(len(id) == len(BOOT) + 1 + IDENTITY for id in found)


def test_the_id_is_the_same_for_a_start_that_proc_knows_to_10_ms() -> None:
    assert process_id(BOOT, 1_234_567_890_123, 7) == process_id(BOOT, 1_234_560_000_000, 7)
    assert process_id(BOOT, 1_234_567_890_123, 7) == f"{BOOT}-00000001e240-00000007"


@pytest.mark.parametrize("schema", by_name().values(), ids=lambda schema: schema.name)
def test_a_record_has_what_the_table_says(schema: Schema) -> None:
    some = {promise.name: (9, b"a") for promise in schema.promises}
    made = record(schema.name, **some)
    paths = {item.path for item in DERIVED if item.path != ("redacted",)}
    paths -= set() if schema.promises else {("unsettled",)}
    paths |= {field.path for field in schema.fields} | {(promise.name,) for promise in schema.promises}
    paths |= {(*path, "id") for path in entities(schema)}
    assert paths - {("process", "parent")} == _leaves(made, paths)


def _leaves(made: dict[str, Any], known: set[tuple[str, ...]], prefix: tuple[str, ...] = ()) -> set[Any]:
    found: set[tuple[str, ...]] = set()
    for key, value in made.items():
        path = (*prefix, key)
        below = any(len(other) > len(path) and other[: len(path)] == path for other in known)
        found |= _leaves(value, known, path) if below else {path}
    return found


def test_unknown_numbers_are_nil() -> None:
    made = record("exec", loginuid=2**32 - 1, session=2**32 - 1, argc=2**32 - 1, cgroup=0, parent_pid=0)
    assert [made[key] for key in ("loginuid", "session", "argc")] == [None] * 3
    assert made["process"]["cgroup"] is None
    assert made["process"]["parent"] is None


def test_versions_only_ever_add() -> None:
    """A published version stays as it is: a new field is a new version, entered in schemas/lock.json."""
    published = json.loads(LOCK.read_text())
    for schema in by_name().values():
        assert published[schema.title] == contract(schema), "a new version: python -m pipeline.docs publish"
    for title, keys in published.items():
        name, _, version = title.partition("/")
        now = by_name()[name]
        assert int(version) <= now.version
        for part, entries in contract(now).items():
            assert keys[part].items() <= entries.items()


def test_what_was_published_stays_and_what_is_new_is_entered(tmp_path: Path) -> None:
    lock = tmp_path / "lock.json"
    old = {"exec/1": {"fields": {"pid": "u8"}, "promises": {}}, "gone/1": {"fields": {}, "promises": {}}}
    lock.write_text(json.dumps(old))
    publish(lock)
    found = json.loads(lock.read_text())
    assert {title: found[title] for title in old} == old
    assert found.keys() - old.keys() == {schema.title for schema in by_name().values()} - old.keys()
    assert found["fork/1"] == contract(by_name()["fork"])
