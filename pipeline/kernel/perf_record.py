"""The kernel's perf side-band, decoded: bytes of a buffer → records. No I/O in here.

Every record has who and when behind its body (`sample_id_all` with TID, TIME and CPU). That is its end, but
for three types whose records the kernel makes too long where more than one reader listens (each reader's
sample is added to the one size). No bytes make this raise: what is too short for its type is no record, and a
length that cannot be ends the batch.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

__all__ = [
    "BPF_LOAD",
    "NAMESPACES",
    "Bpf",
    "Cgroup",
    "Comm",
    "Content",
    "Ksymbol",
    "Mmap",
    "Namespaces",
    "Record",
    "Task",
    "TextPoke",
    "content",
    "decode",
]

HEADER: Final = struct.Struct("=IHH")
"""perf_event_header: type, misc, size of the whole record."""
SAMPLE: Final = struct.Struct("=IIQI4x")
"""At the end of each: pid, tid, time, cpu."""
_MMAP2: Final = struct.Struct("=IIQQQIIQQII")
_TASK: Final = struct.Struct("=IIII")
_PAIR: Final = struct.Struct("=II")
_NAMESPACES: Final = struct.Struct("=IIQ")
_LINK: Final = struct.Struct("=QQ")
_KSYMBOL: Final = struct.Struct("=QIHH")
_BPF: Final = struct.Struct("=HHI8s")
_WORD: Final = struct.Struct("=Q")
_POKE: Final = struct.Struct("=QHH")
_COMM_EXEC: Final = 1 << 13
"""A bit of `misc`."""
NAMESPACES: Final = ("net", "uts", "ipc", "pid", "user", "mnt", "cgroup")
"""As the kernel numbers them."""
BPF_LOAD: Final = 1


class Record(NamedTuple):
    """One record, not looked into yet."""

    type: int
    misc: int
    body: bytes
    """Between header and sample."""
    pid: int
    """Process and thread that were current."""
    tid: int
    time: int
    """ns since boot."""


class Mmap(NamedTuple):
    """A mapping: MMAP2."""

    pid: int
    tid: int
    address: int
    length: int
    offset: int
    device: int
    """As stat(2) numbers it."""
    inode: int
    prot: int
    flags: int
    name: bytes


class Comm(NamedTuple):
    """A thread's new name."""

    pid: int
    tid: int
    name: bytes
    by_exec: bool


class Task(NamedTuple):
    """A thread that begins or ends."""

    pid: int
    parent_pid: int
    tid: int
    parent_tid: int
    """Of one that begins: the thread that made it."""
    ends: bool


class Namespaces(NamedTuple):
    """The namespaces that a thread is in from now on."""

    pid: int
    tid: int
    inodes: dict[str, int]


class Ksymbol(NamedTuple):
    """A symbol of the kernel that came or went."""

    address: int
    length: int
    type: int
    unregister: bool
    name: bytes


class Bpf(NamedTuple):
    """A BPF program that came or went."""

    type: int
    id: int
    tag: bytes


class Cgroup(NamedTuple):
    """A control group that was made."""

    id: int
    path: bytes


class TextPoke(NamedTuple):
    """Code of the kernel that was changed."""

    address: int
    old: bytes
    new: bytes


Content = Mmap | Comm | Task | Namespaces | Ksymbol | Bpf | Cgroup | TextPoke


def decode(data: bytes, until: int, types: Collection[int]) -> tuple[list[Record], int]:
    """Records of these types up to the first that is later than `until` (ns since boot), and how many bytes
    stand before that one.
    """
    found: list[Record] = []
    at, end = 0, len(data)
    while end - at >= HEADER.size:
        type, misc, size = HEADER.unpack_from(data, at)
        if size < HEADER.size + SAMPLE.size or size > end - at:
            return found, end  # no record of ours: nothing behind it can be trusted
        if type in types:
            body = _body(type, data, at + HEADER.size, at + size)
            if body + SAMPLE.size <= at + size:
                pid, tid, time, _ = SAMPLE.unpack_from(data, body)
                if time > until:
                    break
                found.append(Record(type, misc, data[at + HEADER.size : body], pid, tid, time))
        at += size
    return found, at


def _body(type: int, data: bytes, first: int, last: int) -> int:
    """Where a record's body ends and its sample begins; it can be beyond `last`."""
    if type == 17:
        name = data.find(b"\0", first + _KSYMBOL.size, last)
        return last if name < 0 else name + 8 - (name - first) % 8
    if type == 18:
        return first + _BPF.size
    if type == 20 and last - first >= _POKE.size:
        _, old, new = _POKE.unpack_from(data, first)
        return first + -(-(_POKE.size + int(old) + int(new)) // 8) * 8
    return last - SAMPLE.size


def content(record: Record) -> Content | None:
    """What a record says; None where it is of another type, or too short."""
    reader = _READERS.get(record.type)
    try:
        return reader(record.body, record.misc) if reader else None
    except struct.error:
        return None


def _text(body: bytes, at: int) -> bytes:
    return body[at:].partition(b"\0")[0]


def _mmap(body: bytes, _: int) -> Mmap:
    pid, tid, address, length, offset, major, minor, inode, _, prot, flags = _MMAP2.unpack_from(body)
    device = (minor & 0xFF | major << 8 | (minor & ~0xFF) << 12) & 0xFFFFFFFF
    return Mmap(pid, tid, address, length, offset, device, inode, prot, flags, _text(body, _MMAP2.size))


def _comm(body: bytes, misc: int) -> Comm:
    pid, tid = _PAIR.unpack_from(body)
    return Comm(pid, tid, _text(body, _PAIR.size), bool(misc & _COMM_EXEC))


def _ends(body: bytes, _: int) -> Task:
    pid, parent_pid, tid, parent_tid = _TASK.unpack_from(body)
    return Task(pid, parent_pid, tid, parent_tid, True)


def _begins(body: bytes, misc: int) -> Task:
    return _ends(body, misc)._replace(ends=False)


def _namespaces(body: bytes, _: int) -> Namespaces:
    pid, tid, count = _NAMESPACES.unpack_from(body)
    inodes = {
        name: _LINK.unpack_from(body, _NAMESPACES.size + _LINK.size * at)[1]
        for at, name in enumerate(NAMESPACES[:count])
    }
    return Namespaces(pid, tid, inodes)


def _ksymbol(body: bytes, _: int) -> Ksymbol:
    address, length, type, flags = _KSYMBOL.unpack_from(body)
    return Ksymbol(address, length, type, bool(flags & 1), _text(body, _KSYMBOL.size))


def _bpf(body: bytes, _: int) -> Bpf:
    type, _, id, tag = _BPF.unpack_from(body)
    return Bpf(type, id, tag)


def _cgroup(body: bytes, _: int) -> Cgroup:
    return Cgroup(_WORD.unpack_from(body)[0], _text(body, _WORD.size))


def _text_poke(body: bytes, _: int) -> TextPoke:
    address, old, new = _POKE.unpack_from(body)
    first = _POKE.size
    return TextPoke(address, body[first : first + old], body[first + old : first + old + new])


_READERS: Final[dict[int, Callable[[bytes, int], Content]]] = {
    3: _comm,
    4: _ends,
    7: _begins,
    10: _mmap,
    16: _namespaces,
    17: _ksymbol,
    18: _bpf,
    19: _cgroup,
    20: _text_poke,
}
"""PERF_RECORD_* → its reader."""
