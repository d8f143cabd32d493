"""A record as a line of JSON."""

from __future__ import annotations

import json

import msgpack

from pipeline.jsonl import record_to_json


def test_a_line_has_exactly_the_records_keys() -> None:
    fields = {
        "kind": "exec",
        "argv": ["é", "a\nb", b"\xff\x00"],
        "cwd": None,
        "env": [],
        "n": 2**63,
        "m": {"x": True},
    }
    line = record_to_json(msgpack.packb(fields))
    assert "\n" not in line
    assert json.loads(line) == fields | {"argv": ["é", "a\nb", {"base64": "/wA="}]}
