"""The kernel's perf side-band: one event per CPU, of the software kind that counts nothing.

    perf_buffer.py: a buffer and a bell per CPU → perf_record.decode → sources/perf.py

Which bits of the event and which types of records tell of which kind.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Collection, Sequence
from operator import attrgetter
from typing import Final

from pipeline.kernel.layout import cpus
from pipeline.kernel.perf_buffer import Bells, Buffer
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


class Sideband:
    """The side-band of all CPUs that are there when it is made. OSError carries the kernel's answer."""

    def __init__(self, kinds: Collection[str], *, data: bool = False) -> None:
        """`kinds`: of BITS. `data`: mappings that cannot be executed too."""
        bits = {bit for kind in kinds for bit in BITS[kind]} | ({_MMAP_DATA} if data else set())
        self._types = frozenset(type for kind in kinds for type in TYPES[kind])
        self._events: list[Buffer] = []
        self._bells = Bells()
        self._lost: list[int] = []
        try:
            for cpu in cpus("present"):
                self._open(cpu, bits)
        except OSError:
            self.close()
            raise

    def _open(self, cpu: int, bits: Collection[int]) -> None:
        try:
            self._events.append(Buffer(cpu, bits, PAGES, PAGES * mmap.PAGESIZE))
        except OSError as error:
            if error.errno == errno.ENODEV:  # it is switched off
                return
            raise
        self._bells.add(cpu, bits)
        self._lost.append(0)

    @property
    def descriptors(self) -> Sequence[int]:
        """The bells'."""
        return self._bells.descriptors

    @property
    def waits(self) -> bool:
        """Something is in a buffer."""
        return any(event.waits for event in self._events)

    def listen(self, on: bool) -> None:
        """Whether the bells ring."""
        self._bells.listen(on)

    def read(self, until: int) -> tuple[list[Record], int]:
        """Take the records that are not later than `until` (ns since boot), those that are wanted in order of
        time; and how many more, of any type, the kernel lost since the last call.
        """
        self._bells.looked(until)
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
        for event in self._events:
            event.close()
        self._events = []
        self._bells.close()


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
