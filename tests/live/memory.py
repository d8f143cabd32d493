"""What the tests of mmap and mprotect share: a run, children of which it tells, and what these know.

The tests run once with what a kernel gives first, and once with another surface and `memory.all`: what is an
event of the first must be there as well.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

from tests.live.compare import who
from tests.live.run import Live, Record, eventually
from tests.live.witness import as_record, fork, libc

__all__ = [
    "ANONYMOUS",
    "EXECUTE",
    "FIXED",
    "PAGE",
    "PRIVATE",
    "READ",
    "SHARED",
    "SURFACES",
    "WRITE",
    "Done",
    "Facts",
    "Memory",
    "call",
    "line_of",
    "make",
    "map_",
    "map_file",
    "mapped",
    "opened",
    "protected",
]

PAGE: Final = mmap.PAGESIZE
READ, WRITE, EXECUTE = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
PRIVATE, SHARED, ANONYMOUS, FIXED = mmap.MAP_PRIVATE, mmap.MAP_SHARED, mmap.MAP_ANONYMOUS, 0x10
FAILED: Final = ctypes.c_void_p(-1).value
LSMS: Final = Path("/sys/kernel/security/lsm")
SURFACES: Final = (
    ("lsm", "fexit") if LSMS.exists() and "bpf" in LSMS.read_text() else ("sys_exit", "sys_exit")
)
"""The first, and the one that is asked for all memory."""
NOTES: Final = count()

libc.mmap.restype = libc.shmat.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.shmat.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)

Facts = dict[str, Any]


@dataclass
class Done:
    """What a child did, and the events of it."""

    facts: Facts
    records: list[Record]

    def of(self, kind: str, address: int | None) -> list[Record]:
        """Its events at an address (None: mappings that failed)."""
        return [r for r in self.records if r["kind"] == kind and r["address"] == address]

    def one(self, kind: str = "mmap", address: int | None = 0) -> Record:
        """The one event at an address; the one that the child told of if none is given."""
        (record,) = self.of(kind, self.facts["address"] if address == 0 else address)
        return record


@dataclass
class Memory:
    """A run, and children of which it tells."""

    live: Live
    surface: str
    is_all: bool
    ground: Path

    def did(self, deed: Callable[[], Facts]) -> Done:
        """Let a child do something and write down what it knows of it and of itself."""
        note = self.ground / f"memory-{next(NOTES)}"
        act = fork(lambda: note.write_text(json.dumps({**deed(), "who": who()})))
        assert act.status == 0
        return Done(json.loads(note.read_text()), self.of(act.pid))

    def of(self, pid: int) -> list[Record]:
        """All events of a process up to now."""
        log, length = self.live.log, 1 + next(NOTES)
        libc.munmap(map_(length, READ | EXECUTE, PRIVATE | ANONYMOUS), length)
        eventually(
            lambda: [r for r in log.of(os.getpid(), "mmap") if r["length"] == length], "the last event"
        )
        return log.of(pid, "mmap", "mprotect")

    def who(self, done: Done) -> Facts:
        """The common block of a child's event."""
        ran = self.live.log.of(os.getpid(), "exec", "process")[-1]["id"]
        return {**done.facts["who"], "process.exec_id": ran, "process.parent.exec_id": ran}


def call(function: Any, *arguments: Any) -> tuple[int, int]:
    """A call's result, and its errno if it failed."""
    ctypes.set_errno(0)
    result = function(*arguments)
    return (0, ctypes.get_errno()) if result in (-1, FAILED) else (result, 0)


def map_(length: int, prot: int, flags: int, file: int = -1, offset: int = 0, at: int = 0) -> int:
    """mmap that has to succeed; the address."""
    address, error = call(libc.mmap, at, length, prot, flags, file, offset)
    assert not error, os.strerror(error)
    return address


def map_file(file: int, **given: Any) -> Facts:
    """Map a file's beginning to be executed; what fstat and the process's maps say of it."""
    address = map_(PAGE, READ | EXECUTE, PRIVATE, file, **given)
    found = os.fstat(file)
    return {"address": address, "inode": found.st_ino, "device": found.st_dev, "line": line_of(address)}


def line_of(address: int) -> str:
    """The line of /proc/self/maps about what begins at an address."""
    text = Path("/proc/self/maps").read_text(errors="surrogateescape")
    return next(line for line in text.splitlines() if line.startswith(f"{address:x}-"))


def mapped(facts: Mapping[str, Any], path: bytes | None, **other: Any) -> Facts:
    """What an event of `map_file` says."""
    expected = {
        "address": facts["address"],
        "length": PAGE,
        "offset": 0,
        "inode": facts.get("inode"),
        "device": facts.get("device"),
        "prot": READ | EXECUTE,
        "flags": PRIVATE,
        "errno": 0,
        "memfd": False,
        "deleted": False,
        "path": None if path is None else as_record(path),
    }
    return {**expected, **other}


def make(path: bytes, pages: int = 3) -> bytes:
    """A file of some pages; its path."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(b"x" * pages * PAGE)
    return path


def opened(path: bytes) -> int:
    return os.open(path, os.O_RDWR)


def protected(at: int, **other: Any) -> Facts:
    """What an event of mprotect says."""
    expected = {
        "address": at,
        "length": PAGE,
        "inode": None,
        "device": None,
        "prot": READ | EXECUTE,
        "errno": 0,
        "memfd": False,
        "deleted": False,
        "old_prot": READ | WRITE,
        "path": None,
    }
    return {**expected, **other}
