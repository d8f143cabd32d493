"""The kernel's perf side-band: one event per CPU, of the software kind that counts nothing.

    perf_event_open → a buffer per CPU → perf_record.decode → sources/perf.py

A buffer that wakes its reader at each record costs 7 µs a record, one that wakes nobody 1. So each CPU has a
second, small one, the bell: it wakes, and is switched on only while the reader sleeps. What is in it is never
looked at.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Collection, Iterable, Sequence
from operator import attrgetter
from typing import Final

import numpy as np

from pipeline.kernel.layout import cpus
from pipeline.kernel.perf_record import (
    BPF_LOAD,
    Bpf,
    Cgroup,
    Comm,
    Content,
    Ksymbol,
    Mmap,
    Namespaces,
    Record,
    Task,
    TextPoke,
    content,
    decode,
)

__all__ = ["BITS", "Sideband", "Witness", "kind_of"]

PAGES: Final = 128
"""Pages of a CPU's buffer."""
BELL: Final = 4
"""Pages of its bell: more than the longest record takes."""
_ATTR: Final = struct.Struct("=IIQQQQQIIQQQQIiQIHH")
"""struct perf_event_attr, its first 112 bytes."""
_SOFTWARE, _DUMMY = 1, 9
_TID, _TIME, _CPU = 2, 4, 128
_LOST: Final = 16
"""PERF_FORMAT_LOST: reading an event also gives how many records found no space (since Linux 6.0)."""
_CLOEXEC: Final = 8
_PAUSE: Final = 0x40042409
_SYSCALL: Final = {"x86_64": 298, "aarch64": 241, "riscv64": 241}.get(os.uname().machine, 298)
_HEADS: Final = 1024
"""Where a buffer's first page has its positions: head, tail."""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_ALWAYS: Final = (14, 18, 25)
"""Bits of the event: watermark, sample_id_all, use_clockid."""
BITS: Final[dict[str, tuple[int, ...]]] = {
    "mmap": (8, 23, 9, 24),
    "comm": (9, 24),
    "fork": (13,),
    "exit": (13,),
    "namespace": (28,),
    "ksymbol": (29,),
    "bpf_load": (30,),
    "bpf_unload": (30,),
    "cgroup": (32,),
    "kernel_text": (33,),
}
"""Kind → the bits that it needs: mmap, mmap2, comm, comm_exec, task, namespaces, ksymbol, …"""
_MMAP_DATA: Final = 17
TYPES: Final[dict[str, tuple[int, ...]]] = {
    "mmap": (10, 3),
    "comm": (3,),
    "fork": (7,),
    "exit": (4,),
    "namespace": (16,),
    "ksymbol": (17,),
    "bpf_load": (18,),
    "bpf_unload": (18,),
    "cgroup": (19,),
    "kernel_text": (20,),
}
"""Kind → the types of records that tell of it. Others come too: with mappings, forks and exits."""


class _Event:
    """An event on one CPU, and its buffer."""

    def __init__(self, cpu: int, bits: Iterable[int], pages: int, watermark: int) -> None:
        flags = sum(1 << bit for bit in {*_ALWAYS, *bits})
        attr = _ATTR.pack(
            *(_SOFTWARE, _ATTR.size, _DUMMY, 0, _TID | _TIME | _CPU, _LOST, flags, watermark, 0),
            *(0, 0, 0, 0, 0, 7, 0, 0, 0, 0),  # 7: CLOCK_BOOTTIME
        )
        buffer = ctypes.create_string_buffer(attr, len(attr))
        self.fd = int(_libc.syscall(_SYSCALL, buffer, -1, cpu, -1, _CLOEXEC))
        if self.fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "perf_event_open")
        self._size = pages * mmap.PAGESIZE
        try:
            self._memory = mmap.mmap(self.fd, self._size + mmap.PAGESIZE)
        except OSError:
            os.close(self.fd)
            raise
        self._positions = np.frombuffer(self._memory, np.int64, 2, _HEADS)

    @property
    def waits(self) -> bool:
        """Something is in the buffer."""
        return bool(self._positions[0] != self._positions[1])

    def data(self) -> bytes:
        """What is in the buffer."""
        head, tail = self._positions.tolist()
        first, last = tail % self._size, head % self._size
        page = mmap.PAGESIZE
        if last > first or head == tail:
            return self._memory[page + first : page + last]
        return self._memory[page + first :] + self._memory[page : page + last]

    def skip(self, size: int | None = None) -> None:
        """Give so many bytes back; None: all."""
        self._positions[1] = self._positions[0] if size is None else self._positions[1] + size

    def lost(self) -> int:
        """Records that found no space, since it was opened."""
        return int(struct.unpack("=QQ", os.read(self.fd, 16))[1])

    def pause(self, on: bool) -> None:
        """Whether records are kept out."""
        fcntl.ioctl(self.fd, _PAUSE, int(on))

    def close(self) -> None:
        """Give all back."""
        del self._positions
        self._memory.close()
        os.close(self.fd)


class Sideband:
    """The side-band of all CPUs that are there when it is made. OSError carries the kernel's answer."""

    def __init__(self, kinds: Collection[str], *, data: bool = False) -> None:
        """`kinds`: of BITS. `data`: mappings that cannot be executed too."""
        bits = {bit for kind in kinds for bit in BITS[kind]} | ({_MMAP_DATA} if data else set())
        self._types = frozenset(type for kind in kinds for type in TYPES[kind])
        self._events: list[_Event] = []
        self._bells: list[_Event] = []
        self._lost: list[int] = []
        try:
            for cpu in cpus("present"):
                self._open(cpu, bits)
        except OSError:
            self.close()
            raise

    def _open(self, cpu: int, bits: Collection[int]) -> None:
        try:
            self._events.append(_Event(cpu, bits, PAGES, PAGES * mmap.PAGESIZE))
        except OSError as error:
            if error.errno == errno.ENODEV:  # it is switched off
                return
            raise
        self._bells.append(_Event(cpu, bits, BELL, 1))
        self._bells[-1].pause(True)
        self._lost.append(0)

    @property
    def descriptors(self) -> Sequence[int]:
        """The bells'."""
        return [bell.fd for bell in self._bells]

    @property
    def waits(self) -> bool:
        """Something is in a buffer."""
        return any(event.waits for event in self._events)

    def listen(self, on: bool) -> None:
        """Switch the bells on or off."""
        for bell in self._bells:
            bell.skip()
            bell.pause(not on)

    def read(self, until: int) -> tuple[list[Record], int]:
        """Take the records that are not later than `until` (ns since boot), those that are wanted in order of
        time; and how many more, of any type, the kernel lost since the last call.
        """
        found: list[Record] = []
        lost = 0
        for at, event in enumerate(self._events):
            if event.waits:
                records, size = decode(event.data(), until, self._types)
                event.skip(size)
                found += records
                before, self._lost[at] = self._lost[at], event.lost()
                lost += self._lost[at] - before
        found.sort(key=attrgetter("time"))
        return found, lost

    def close(self) -> None:
        """Give all descriptors back."""
        for event in (*self._events, *self._bells):
            event.close()
        self._events, self._bells = [], []


def kind_of(record: Record, said: Content) -> str | None:
    """The kind of event that a record is of; None: of none."""
    match said:
        case Mmap():
            return "mmap"
        case Comm(by_exec=False):
            return "comm"
        case Task(ends=False) if said.pid != said.parent_pid:
            return "fork"
        case Task(ends=True) if said.pid == said.tid:
            return "exit"
        case Namespaces():
            return "namespace"
        case Ksymbol():
            return "ksymbol"
        case Bpf():
            return "bpf_load" if said.type == BPF_LOAD else "bpf_unload"
        case Cgroup():
            return "cgroup"
        case TextPoke():
            return "kernel_text"
    return None


class Witness:
    """Which kinds come from this process and its children, between the making and the closing."""

    def __init__(self) -> None:
        """OSError carries the kernel's answer."""
        self._sideband = Sideband(BITS)
        self._family = {os.getpid()}
        self._kinds: set[str] = set()

    def seen(self) -> Collection[str]:
        """The kinds that came since."""
        for record in self._sideband.read(2**63)[0]:
            said = content(record)
            if said is None or record.pid not in self._family:
                continue
            if isinstance(said, Task) and not said.ends:
                self._family.add(said.pid)
            inherited = isinstance(said, Namespaces) and said.tid != record.tid  # each fork says them
            kind = None if inherited else kind_of(record, said)
            if kind:
                self._kinds.add(kind)
        return self._kinds

    def close(self) -> None:
        """Look no more."""
        self._sideband.close()
