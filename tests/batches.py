"""Batches made by hand: events as dicts in, one `Batch` out, laid out as assemble does it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pipeline.answers import Host
from pipeline.chunk import HEADER, PAYLOAD, SIZE, event_id
from pipeline.event import Batch, Hole, Passage
from pipeline.schema import TYPES, VARYING, Schema, by_name

__all__ = ["BOOT", "CLOCK", "HOST", "FixedAnswers", "batch_of", "event", "lost"]

BOOT = "0123456789abcdef0123456789abcdef"
HOST = Host("a" * 32, "box", BOOT, {"site": "north"})
CLOCK = 1_700_000_000_000_000_000
ZERO = b"\0"

Event = Mapping[str, Any]


class FixedAnswers:
    """Answers that never change."""

    host = HOST

    def __init__(self, cgroups: Mapping[int, str] | None = None) -> None:
        self.users = {0: "root", 1000: "alice"}
        self.groups = {0: "root", 100: "users"}
        self.cgroups = dict(cgroups or {7: "/system.slice/sshd.service"})

    def user(self, uid: int) -> str | None:
        return self.users.get(uid)

    def group(self, gid: int) -> str | None:
        return self.groups.get(gid)

    def cgroup(self, id: int) -> str | None:
        return self.cgroups.get(id)


def event(kind: str, sequence: int, ring: int = 0, **values: Any) -> dict[str, Any]:
    """One event with sensible values for what is not given.

    Values go by the names of fields; a promise is its bytes, or (of, bytes that were sent); `flags_`,
    `faults`, `time` and `hole` (a Hole) are the head's and the batch's.
    """
    schema = by_name()[kind]
    id = event_id(ring, sequence)
    given = {
        "kind": kind,
        "ring": ring,
        "sequence": sequence,
        "time": 5_000_000_000 + 1000 * sequence,
        "flags_": 0,
        "faults": 0,
        "hole": None,
        **{field.name: b"" if field.type in VARYING else 0 for field in schema.fields},
        **{promise.name: b"" for promise in schema.promises},
        "start": 4_000_000_000,
        "pid": 100,
        "tid": 100,
        "ns_pid": 100,
        "parent_pid": 50,
        "parent_start": 3_000_000_000,
        "comm": b"sh",
        "exec_id": id if kind in ("exec", "process") else 0,
    }
    unknown = values.keys() - given.keys()
    assert not unknown, f"{kind} has no {unknown}"
    return given | values


def batch_of(events: Iterable[Event], clock: int = CLOCK, number: int = 1) -> Batch:
    """A batch of these events, in this order."""
    events = list(events)
    heads = np.zeros(len(events), HEADER)
    streams: list[bytes] = []
    for row, values in enumerate(events):
        schema = by_name()[values["kind"]]
        data = _fill(schema, heads[row : row + 1], values)
        parts = 1 if len(data) <= schema.room else 1 + -(-len(data) // PAYLOAD)
        heads["parts"][row] = parts
        for part in values["hole"].parts if values["hole"] else ():
            first = (int(part) - 1) * PAYLOAD
            data = data[:first] + bytes(len(data[first : first + PAYLOAD])) + data[first + PAYLOAD :]
        streams.append(data)
    size = np.array([len(data) for data in streams], np.int64)
    return Batch(
        heads=heads,
        stream=np.frombuffer(b"".join(streams), np.uint8),
        start=np.cumsum(size) - size,
        size=size,
        clock=clock,
        passage=Passage(number, {}),
        holes={row: values["hole"] for row, values in enumerate(events) if values["hole"]},
    )


def _fill(schema: Schema, head: np.ndarray[Any, Any], values: Event) -> bytes:
    """Write one head; return the event's stream."""
    head["length"], head["kind"], head["time"] = SIZE, schema.number, values["time"]
    head["sequence"], head["id"] = values["sequence"], event_id(values["ring"], values["sequence"])
    head["flags"], head["faults"] = values["flags_"], values["faults"]
    view = head.view(schema.dtype)
    for field in schema.fields:
        value = values[field.name]
        if field.type in VARYING:
            value = np.void(value.ljust(np.dtype(TYPES[field.type][1]).itemsize, ZERO))
        view[field.name] = value
    stream = b""
    for promise in schema.promises:
        given = values[promise.name]
        of, data = given if isinstance(given, tuple) else (len(given), given)
        view[f"{promise.name}_of"], view[f"{promise.name}_have"] = of, len(data)
        stream += data
    return stream


def lost(*parts: int) -> Hole:
    """A hole of these parts."""
    return Hole("lost", np.array(parts, np.int64))
