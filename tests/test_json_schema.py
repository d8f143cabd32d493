"""JSON Schema of records: every key, which are always there, and where nil may stand."""

from __future__ import annotations

import json

import pytest

from pipeline.json_schema import json_schema
from pipeline.schema import Schema, by_name
from tests.test_record import record


@pytest.mark.parametrize("schema", by_name().values(), ids=lambda schema: schema.name)
def test_the_json_schema_names_and_requires_every_key(schema: Schema) -> None:
    made = record(schema.name)
    described = json_schema(schema)
    assert described["properties"]["schema"]["const"] == made["schema"]
    assert set(described["required"]) == made.keys()
    assert described["properties"].keys() == made.keys() | {"redacted", "unsettled"}
    for path in (("host",), ("process",), ("process", "parent")):
        inner, part = described, made
        for key in path:
            inner, part = inner["properties"][key], part[key]
        assert set(inner["required"]) == part.keys()
    assert json.loads(json.dumps(described)) == described


def test_the_json_schema_says_where_nil_may_stand() -> None:
    exec_ = json_schema(by_name()["exec"])["properties"]
    assert exec_["loginuid"]["type"] == ["integer", "null"]
    assert exec_["device"]["type"] == "integer"
    assert exec_["cpu"]["type"] == ["integer", "null"]
    assert exec_["process"]["properties"]["parent"]["type"] == ["object", "null"]
    assert {"type": "null"} in exec_["path"]["anyOf"]
    assert exec_["argv"]["type"] == ["array", "null"]
    assert exec_["memfd"]["type"] == "boolean"
