"""What perf records say, as events: record → kind, fields and promises. perf.py adds who it was and when.

Some of it the records do not say themselves: which namespaces there were before, what a BPF program is
called. That is remembered from earlier records, and asked of the kernel when the source begins.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from pipeline.kernel import bpf
from pipeline.kernel.bpf import ProgramInfo
from pipeline.kernel.kallsyms import Kallsyms
from pipeline.kernel.perf_event import kind_of
from pipeline.kernel.perf_record import (
    NAMESPACES,
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
)
from pipeline.remember import Remembered

__all__ = ["Event", "Events"]

PROC: Final = Path("/proc")
DELETED: Final = b" (deleted)"
MEMFD: Final = b"/memfd:"
UNNAMED: Final = (b"//enomem", b"//toolong", b"//anon_too_long")
"""What the kernel says where it could not make the name."""
_THREADS: Final = 1 << 16
_PROGRAMS: Final = 1 << 14
_CLONE: Final = 1
"""Field `call` of schemas/namespace.toml."""

Values = dict[str, int | bytes]
Spaces = Mapping[str, int]


class Event(NamedTuple):
    """An event but for its time and the process's fields."""

    kind: str
    pid: int
    tid: int
    values: Values
    data: Mapping[str, bytes | None]


class Events:
    """Call it for each record, in their order."""

    def __init__(self, kinds: Collection[str], program: Callable[[int], ProgramInfo] | None = None) -> None:
        """`kinds`: those that are wanted; all else is no event. `program` tells of a BPF program by its id,
        where bpf.program_info may not be asked any more.
        """
        self._kinds = frozenset(kinds)
        self._ask = program or bpf.program_info
        self._spaces: Remembered[int, Spaces] = Remembered(_THREADS)
        self._programs: Remembered[int, ProgramInfo] = Remembered(_PROGRAMS)
        self._symbols = Kallsyms()
        self._memory = set(_memory_devices())
        if "namespace" in kinds:
            for pid, spaces in _all_spaces():
                self._spaces[pid] = spaces
        if "bpf_unload" in kinds:
            for id in bpf.program_ids():
                self._program(id)

    def __call__(self, record: Record, said: Content) -> Event | None:
        """None: it is no event, or of a kind that is not wanted."""
        kind = kind_of(record, said)
        if kind not in self._kinds or kind is None:
            return None
        match said:
            case Mmap():
                return self._mmap(said)
            case Comm():
                return Event(kind, said.pid, said.tid, {}, {"name": said.name})
            case Task():
                subject = (said.pid, said.tid) if said.ends else (record.pid, record.tid)
                return Event(kind, *subject, {} if said.ends else {"child_pid": said.pid}, {})
            case Namespaces():
                return self._namespaces(record, said)
            case Bpf():
                return self._bpf(kind, record, said)
            case Ksymbol():
                values: Values = {
                    "address": said.address,
                    "length": said.length,
                    "type": said.type,
                    "unregister": said.unregister,
                }
                return Event(kind, record.pid, record.tid, values, {"name": said.name})
            case Cgroup():
                return Event(kind, record.pid, record.tid, {"cgroup_id": said.id}, {"path": said.path})
            case TextPoke():
                length = max(len(said.old), len(said.new))
                data = {"symbol": self._symbols.at(said.address) or b"", "old": said.old, "new": said.new}
                return Event(kind, record.pid, record.tid, {"address": said.address, "length": length}, data)

    def close(self) -> None:
        """Ask no more."""
        self._symbols.close()

    def _mmap(self, said: Mmap) -> Event | None:
        if said.name == b"[vdso]" and not said.inode:
            return None  # the kernel's own doing, at each exec
        values: Values = {
            "address": said.address,
            "length": said.length,
            "offset": said.offset if said.inode else 0,
            "inode": said.inode,
            "device": said.device,
            "prot": said.prot,
            "flags": said.flags,
        }
        path: bytes | None = said.name
        if said.name in UNNAMED:
            path = None
        elif not said.inode:
            path = b""
        elif said.name.startswith(MEMFD) and said.device in self._memory:
            values["memfd"] = True
            path = said.name.removeprefix(b"/").removesuffix(DELETED)
        elif said.name.endswith(DELETED) and not _is_there(said):
            values["deleted"] = True
            path = said.name.removesuffix(DELETED)
        return Event("mmap", said.pid, said.tid, values, {"path": path})

    def _namespaces(self, record: Record, said: Namespaces) -> Event | None:
        """Every fork says what its child is in; that is an event where it is something new."""
        made = said.tid != record.tid
        thread, process = (record.tid, record.pid) if made else (said.tid, said.pid)
        before = self._spaces.get(thread) or self._spaces.get(process)
        self._spaces[said.tid] = said.inodes
        if before == said.inodes:
            return None
        values: Values = {f"after_{name}": inode for name, inode in said.inodes.items()}
        values |= {f"before_{name}": inode for name, inode in (before or {}).items()}
        if made:
            values |= {"call": _CLONE, "child_pid": said.pid}
        return Event("namespace", process, thread, values, {})

    def _bpf(self, kind: str, record: Record, said: Bpf) -> Event:
        values: Values = {"tag": said.tag, "program_id": said.id}
        program = self._programs.get(said.id) if kind == "bpf_unload" else self._program(said.id)
        name: bytes | None = None
        if program is not None and program.tag == said.tag:
            values |= {
                "program_type": program.type,
                "instructions": program.instructions,
                "jited": program.jited,
            }
            name = program.name
        return Event(kind, record.pid, record.tid, values, {"name": name})

    def _program(self, id: int) -> ProgramInfo | None:
        """Ask for a program; None: it is gone."""
        try:
            found = self._programs[id] = self._ask(id)
        except OSError:
            return None
        return found


def _is_there(said: Mmap) -> bool:
    """Whether the file is really called `… (deleted)`: where its process sees it, or where we do."""
    for root in (f"/proc/{said.pid}/root".encode(), b""):
        with suppress(OSError):
            file = os.stat(root + said.name)
            if (file.st_ino, file.st_dev & 0xFFFFFFFF) == (said.inode, said.device):
                return True
    return False


def _memory_devices() -> Iterator[int]:
    """Where files of memfd_create live, ordinary and huge ones."""
    for flags in (os.MFD_CLOEXEC, os.MFD_CLOEXEC | os.MFD_HUGETLB):
        with suppress(OSError):
            file = os.memfd_create("promissory", flags)
            yield os.fstat(file).st_dev & 0xFFFFFFFF
            os.close(file)


def _all_spaces() -> Iterator[tuple[int, Spaces]]:
    """What every process is in now."""
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                inodes = {name: (folder / "ns" / name).stat().st_ino for name in NAMESPACES}
                yield int(folder.name), inodes
