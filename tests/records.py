"""The record as the issue words it, built the plain way from the dicts that batches are made of: no code of
`encode` is used. What the tests compare records with.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from pipeline.chunk import PERF_RING, event_id
from pipeline.schema import by_name
from tests.batches import BOOT, CLOCK, HOST, FixedAnswers

__all__ = ["plain"]

SECRET_FREE = {"PATH"}


def plain(
    event: Mapping[str, Any], names: Mapping[str, Any], surface: str | None = "tracepoint"
) -> dict[str, Any]:
    """The record of an event whose promises are complete; `names` is what enrich should have found."""
    schema = by_name()[event["kind"]]
    fields: dict[tuple[str, ...], Any] = {}
    for field in schema.fields:
        given = value = event[field.name]
        if field.type == "comm":
            value = None if value.startswith(b"\0\xff") else _text(value)
        elif field.type == "ip":
            value = _address(value)
        elif field.type == "tag":
            value = value.ljust(8, b"\0").hex()
        elif field.type == "bool":
            value = bool(value)
        fields[field.path] = None if field.nil is not None and given == field.nil else value
    record: dict[str, Any] = {
        "schema": f"{schema.name}/{schema.version}",
        "kind": schema.name,
        "time": event["time"] + CLOCK,
        "boottime": event["time"],
        "host": {"id": HOST.id, "name": "box", "boot_id": BOOT, "labels": {"site": "north"}},
        "cpu": None if event["ring"] >= PERF_RING else event["ring"],
        "ring": event["ring"],
        "sequence": event["sequence"],
        "id": event_id(event["ring"], event["sequence"]),
        "surface": surface,
    }
    for path, value in fields.items():
        at = record
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = value
    process = record["process"]
    process["id"] = _id(event["start"], event["pid"])
    process["parent"]["id"] = _id(event["parent_start"], event["parent_pid"])
    process["parent"]["executable"] = names.get("parent_executable")
    if not event["parent_pid"]:
        process["parent"] = None
    answers = FixedAnswers()
    process["user"] = answers.user(event["uid"])
    process["group"] = answers.group(event["gid"])
    process |= {key: names.get(key) for key in ("container", "unit", "executable")}
    process["ancestry"] = names["ancestry"]
    if "child" in record:
        record["child"]["id"] = _id(event["child_start"], event["child_pid"])
    for promise in schema.promises:
        data = event[promise.name]
        if promise.type == "strings":
            items = data.split(b"\0")[:-1]
            record[promise.name] = [_text(_shown(i) if promise.name == "environment" else i) for i in items]
        elif promise.type == "bytes":
            record[promise.name] = data
        else:
            record[promise.name] = None if not data and promise.empty == "nil" else _text(data)
    return record


def _id(start: int, pid: int) -> str | None:
    if start == 2**64 - 1:
        return None
    return f"{BOOT}-{start // 10**7:012x}-{pid:08x}"


def _address(data: bytes) -> str | None:
    """By another way than the pipeline's: a family and an address as the kernel has them."""
    if not data:
        return None
    family = {4: socket.AF_INET, 6: socket.AF_INET6}[data[0]]
    return socket.inet_ntop(family, data[4 : 8 if data[0] == 4 else 20])


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _shown(variable: bytes) -> bytes:
    name, equals, _ = variable.partition(b"=")
    if not equals:
        return b"***" if variable else b""
    return variable if name.decode("latin-1") in SECRET_FREE else name + b"=***"
