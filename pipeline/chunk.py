"""The chunk: one fixed-size record of a ring, as bpf/chunk.h writes it and docs/wire-format.md specifies it.

A chunk takes 256 bytes of its ring: 8 that the kernel's ring buffer keeps (length with busy and discard
bits), a header of 40, and 208 of payload. Part 0 is an event's head. The data of its promises, one after
another, stands in the head when all of it fits there (then parts is 1), else in parts 1, 2, …, each full
but the last. So a batch of chunks is an array, and joining is a sort and a gather.

Imports nothing of ours; everything else speaks in these terms.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

__all__ = [
    "AUDIT_RING",
    "BUSY",
    "CAPPED",
    "CUT",
    "DISCARD",
    "HEADER",
    "HIDDEN",
    "MAX_RINGS",
    "OWN_RINGS",
    "PAYLOAD",
    "PERF_RING",
    "PROC_RING",
    "REDACTED",
    "SIZE",
    "STRIDE",
    "event_id",
    "ring_of",
    "sequence_of",
    "split",
]

STRIDE: Final = 256
"""Bytes from one chunk to the next in a ring."""
SIZE: Final = STRIDE - 8
"""Bytes that a BPF program reserves for a chunk: its header and payload."""
PAYLOAD: Final = 208
"""Bytes of payload in a chunk."""

BUSY: Final = 1 << 31
DISCARD: Final = 1 << 30
"""Bits of the kernel's length word: still being written; given up."""

CUT: Final = 1
"""Flag of a chunk: the event ends here, its data could be read no further (fault). `parts` is part + 1."""
CAPPED: Final = 2
"""Flag of a chunk: the event ends here, the program could not go on (tail call). `parts` is part + 1."""
REDACTED: Final = 4
"""Flag of a head: a pattern masked something on its command line before it was stored (the look at /proc)."""

HEADER: Final = np.dtype(
    [
        ("length", "<u4"),  # the kernel's own: SIZE, with BUSY and DISCARD
        ("page", "<u4"),  # the kernel's own, unused here
        ("sequence", "<i8"),  # of this chunk in its ring, taken before the reserve
        ("id", "<i8"),  # of the event: its head's ring and sequence
        ("time", "<i8"),  # ns since boot, taken after the reserve
        ("part", "<u4"),  # 0 is the head
        ("parts", "<u4"),  # of the whole event, as its writer knew it then: the smallest counts
        ("kind", "<u2"),  # number of the event's schema
        ("size", "<u2"),  # bytes of promise data in this chunk
        ("flags", "<u2"),  # CUT, CAPPED, REDACTED
        ("faults", "<u2"),  # in a head: bit i is set when the kernel could not read all of promise i
        ("payload", "u1", (PAYLOAD,)),
    ]
)
assert HEADER.itemsize == STRIDE

# An id is unique for one boot: the counter of a new ring starts at the microseconds since boot, so ids do
# not repeat after a detach either. 52 bits of microseconds are 142 years; 10 bits of ring and HIDDEN keep it
# below 2**63.
MAX_RINGS: Final = 1 << 10
HIDDEN: Final = 1 << 62
"""Bit in the id of an exec that a filter in the kernel hid, or the budget refused: it took no number of its
ring."""
PERF_RING: Final = MAX_RINGS - 3
AUDIT_RING: Final = MAX_RINGS - 2
OWN_RINGS: Final = {"perf": PERF_RING, "audit": AUDIT_RING}
"""Surface → the ring that the pipeline fills itself from there (kernel/own_ring.py). Those of CPUs have lower
numbers."""
PROC_RING: Final = MAX_RINGS - 1
"""The ring that `process` events say they come from: the loader's look at /proc, kept as chunks in a file."""


def event_id(ring: int, sequence: int) -> int:
    """The id of the event whose head has this number in this ring."""
    return ring << 52 | sequence


def ring_of(ids: Any) -> Any:
    """The ring of an event's head; an int or an array."""
    return ids >> 52 & (MAX_RINGS - 1)


def sequence_of(ids: Any) -> Any:
    """The sequence of an event's head; an int or an array."""
    return ids & ((1 << 52) - 1)


def split(head: np.ndarray[Any, Any], data: bytes, room: int) -> np.ndarray[Any, Any]:
    """Cut one event into chunks as the kernel's writer does: the head, then the parts of its data.

    `head` is one HEADER row with sequence, id, time, kind and its payload's fields set; the parts take the
    next sequences of its ring. `room` is how much data the head can hold (Schema.room). Returns an array of
    HEADER.
    """
    parts = 1 if len(data) <= room else 1 + -(-len(data) // PAYLOAD)
    chunks = np.zeros(parts, HEADER)
    chunks[0] = head
    for name in ("id", "time", "kind"):
        chunks[name] = head[name]
    chunks["length"], chunks["parts"], chunks["part"] = SIZE, parts, np.arange(parts)
    chunks["sequence"] = head["sequence"] + np.arange(parts, dtype=np.int64)
    if parts == 1:
        chunks["size"] = len(data)
        chunks["payload"][0, PAYLOAD - room : PAYLOAD - room + len(data)] = np.frombuffer(data, np.uint8)
    else:
        sizes = np.full(parts - 1, PAYLOAD)
        sizes[-1] = len(data) - PAYLOAD * (parts - 2)
        chunks["size"][1:] = sizes
        padded = np.frombuffer(data.ljust(PAYLOAD * (parts - 1), b"\0"), np.uint8)
        chunks["payload"][1:] = padded.reshape(-1, PAYLOAD)
    return chunks
