"""A ring that the pipeline fills itself: for what the kernel tells by other ways than BPF (perf, audit).

    a source of ours (sources/feeds.py) → OwnRing.put … publish → read like any ring (kernel/ring.py)

It is laid out like a kernel's ring, in a pinned array map: what is in it outlives the process, and positions,
gaps, drops, books and backpressure are those of all rings. Its counters stand in a row of the kernel's
`books`.

A program in the kernel is never ended half way; this process can be. So nothing of a batch is to be seen
before `publish`, which first writes into a journal what row and position are going to be: who opens the ring
finishes what was begun.

    page 0        consumer position
    page 1        producer position; from JOURNAL on, the journal
    from page 2   the data; mapped twice in a row
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import weakref
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Final, Literal

import numpy as np

from pipeline.chunk import PAYLOAD, SIZE, STRIDE, event_id
from pipeline.event import UNKNOWN, Array
from pipeline.kernel import bpf
from pipeline.kernel.layout import OWN
from pipeline.kernel.ring import PAGE, RingMemory
from pipeline.schema import TYPES, VARYING, Schema

__all__ = ["OwnMemory", "OwnRing", "create"]

JOURNAL: Final = 64
_JOURNAL: Final = np.dtype([("valid", "<i8"), ("producer", "<i8"), ("row", OWN)])
_HEADER: Final = struct.Struct("<IIqqqIIHHHH")
"""chunk.HEADER up to its payload."""
_PLAIN: Final = {"u1": "B", "<u2": "H", "<i4": "i", "<u4": "I", "<u8": "Q"}
PROT_NONE: Final = 0
MAP_FIXED: Final = 0x10
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
assert JOURNAL + _JOURNAL.itemsize <= PAGE


def create(size: int, name: str) -> int:
    """A new map for a ring of `size` bytes of data (whole pages). OSError carries the kernel's answer."""
    return bpf.create_array(PAGE, 2 + size // PAGE, name)


class OwnMemory(RingMemory):
    """The mapped parts of such a ring, writable."""

    def __init__(self, fd: int, size: int) -> None:
        """Map what `create` made, or a file of the same size."""
        whole = _map_twice(fd, size)
        super().__init__(whole, whole[PAGE:], size)
        self.data = np.frombuffer(whole, np.uint8, 2 * size, 2 * PAGE)
        self._journal = np.frombuffer(whole, _JOURNAL, 1, PAGE + JOURNAL)

    def publish(self, row: Array, new: Array, producer: int) -> None:
        """Let `row` (of layout.OWN) be `new`, and the producer position `producer`: both or neither."""
        self._journal["row"], self._journal["producer"] = new, producer
        self._journal["valid"] = 1
        self.finish(row)

    def finish(self, row: Array) -> None:
        """Do what the journal says, if anything."""
        if self._journal["valid"][0]:
            row[:] = self._journal["row"]
            self.producer[0] = self._journal["producer"][0]
            self._journal["valid"] = 0


class OwnRing:
    """The writer. Nothing that is put, filtered or booked counts before `publish`."""

    def __init__(self, number: int, memory: OwnMemory, row: Array, caps: Mapping[str, int]) -> None:
        """`row` is the ring's own in the books, (1,) of layout.OWN; `caps` are the most bytes of promises, by
        the names that schemas use.
        """
        memory.finish(row)
        self.number = number
        self._memory, self._row, self._caps = memory, row, caps
        self._new = row.copy()
        kinds = self._new["kinds"][0]
        self._kinds = {name: kinds[name] for name in kinds.dtype.names}
        self._counts: Counter[tuple[str, int]] = Counter()
        self._sequence = int(row["sequence"][0])
        self._producer = int(memory.producer[0])
        self._end = 0
        """Of the space that the reader is known to have given back."""
        self._chunks: list[bytes] = []
        self._forms: dict[int, _Form] = {}

    def put(
        self,
        schema: Schema,
        values: Mapping[str, int | bytes],
        data: Mapping[str, bytes | None],
        time: int,
        flags: int = 0,
        beginnings: Collection[str] = (),
    ) -> bool:
        """One event of `time` (ns since boot). False: no space; it is a drop, and lost.

        `values`: fields by name; what is not named is unknown (its nil), or 0. `data`: promises by name; None
        is one that could not be read, what is not named is empty.
        """
        form = self._forms.get(schema.number)
        if form is None:
            form = self._forms[schema.number] = _Form(schema, self._caps)
        self._counts["attempted", schema.number] += 1
        pairs, faults, stream = form.promises(data, beginnings)
        whole = len(stream) <= schema.room
        parts = 1 if whole else 1 + -(-len(stream) // PAYLOAD)
        sequence = self._sequence
        after = self._producer + parts * STRIDE
        if after > self._end:
            self._end = int(self._memory.consumer[0]) + self._memory.size
        if after > self._end:
            self._sequence += 1
            self._new["drops"] += 1
            self._counts["lost_full", schema.number] += 1
            return False
        self._sequence += parts
        self._producer = after
        id = event_id(self.number, sequence)
        size = len(stream) if whole else 0
        head = _HEADER.pack(SIZE, 0, sequence, id, time, 0, parts, schema.number, size, flags, faults)
        self._chunks.append((head + form.fields(values, pairs) + stream[:size]).ljust(STRIDE, b"\0"))
        for part in range(1, parts):
            piece = stream[(part - 1) * PAYLOAD : part * PAYLOAD]
            header = _HEADER.pack(
                SIZE, 0, sequence + part, id, time, part, parts, schema.number, len(piece), 0, 0
            )
            self._chunks.append((header + piece).ljust(STRIDE, b"\0"))
        return True

    def filter(self, schema: Schema, reason: Literal["self", "test", "uid", "cgroup"]) -> None:
        """Book an event that is not wanted."""
        self._counts["attempted", schema.number] += 1
        self._counts[f"filtered_{reason}", schema.number] += 1

    def book(self, counter: Literal["received", "lost"], n: int) -> None:
        """Count records that the source received, or that the kernel says it lost."""
        self._new[counter] += n

    def opened(self, now: int) -> None:
        """A reader begins at `now`, ns since boot: since the last look there was none."""
        since = int(self._new["seen"][0]) or int(self._new["start"][0]) * 1000
        self._new["away"] += 1
        self._new["away_ns"] += now - since

    def publish(self, now: int) -> None:
        """Let everything since the last time count, at once. The reader looked at `now`, ns since boot."""
        data = b"".join(self._chunks)
        first = (self._producer - len(data)) % self._memory.size
        self._memory.data[first : first + len(data)] = np.frombuffer(data, np.uint8)
        self._chunks.clear()
        for (counter, number), n in self._counts.items():
            self._kinds[counter][number] += n
        self._counts.clear()
        self._new["sequence"], self._new["seen"] = self._sequence, now
        self._memory.publish(self._row, self._new, self._producer)


class _Form:
    """How a kind's head is packed."""

    def __init__(self, schema: Schema, caps: Mapping[str, int]) -> None:
        form, at = "<", STRIDE - PAYLOAD
        dtype = schema.dtype
        for field in schema.fields:
            offset, kind = dtype.fields[field.name][1], TYPES[field.type][1]  # type: ignore[index]
            form += f"{offset - at}x" + (_PLAIN.get(kind) or f"{kind[1:]}s")
            at = offset + np.dtype(kind).itemsize
        form += f"{STRIDE - schema.room - 8 * len(schema.promises) - at}x{2 * len(schema.promises)}I"
        self._struct = struct.Struct(form)
        self._unknown: dict[str, int | bytes] = {
            field.name: (field.nil or 0).to_bytes(2, "little") if field.type in VARYING else field.nil or 0
            for field in schema.fields
        }
        self._promises = [(promise.name, caps[promise.cap]) for promise in schema.promises]

    def fields(self, values: Mapping[str, int | bytes], pairs: list[int]) -> bytes:
        """The payload up to `room`."""
        return self._struct.pack(*{**self._unknown, **values}.values(), *pairs)

    def promises(
        self, data: Mapping[str, bytes | None], beginnings: Collection[str]
    ) -> tuple[list[int], int, bytes]:
        """{of, have} of each, the bits of those that could not be read, and the stream."""
        pairs: list[int] = []
        kept: list[bytes] = []
        faults = 0
        for bit, (name, cap) in enumerate(self._promises):
            value = data.get(name, b"")
            if value is None:
                faults |= 1 << bit
                pairs += (UNKNOWN, 0)
            else:
                pairs += (UNKNOWN if name in beginnings else len(value), min(len(value), cap))
                kept.append(value[:cap])
        return pairs, faults, b"".join(kept)


def _map_twice(fd: int, size: int) -> memoryview:
    """Positions and data, and the data once more behind it: what wraps around is contiguous all the same."""
    first = 2 * PAGE + size
    address = _mmap(None, first + size, PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    both = mmap.PROT_READ | mmap.PROT_WRITE
    _mmap(address, first, both, mmap.MAP_SHARED | MAP_FIXED, fd, 0)
    _mmap(address + first, size, both, mmap.MAP_SHARED | MAP_FIXED, fd, 2 * PAGE)
    whole = (ctypes.c_char * (first + size)).from_address(address)
    weakref.finalize(whole, _libc.munmap, address, first + size)
    return memoryview(whole).cast("B")


def _mmap(address: int | None, size: int, protection: int, flags: int, fd: int, offset: int) -> int:
    found = _libc.mmap(address, size, protection, flags, fd, offset)
    if found is None or found == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "mmap")
    return int(found)
