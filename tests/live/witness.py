"""The independent witness: processes that a test makes itself, and what is known without a pipeline."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Act", "Arguments", "as_record", "execute", "fork", "libc", "spoken"]

libc = ctypes.CDLL(None, use_errno=True)
libc.execve.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)


@dataclass(frozen=True)
class Act:
    """A process that has ended."""

    pid: int
    status: int
    """As wait4 gives it."""
    rusage: resource.struct_rusage


class Arguments:
    """A list of strings as execve takes it; no Python in between that would refuse or change any."""

    def __init__(self, strings: Sequence[bytes]) -> None:
        self._strings = [ctypes.create_string_buffer(s, len(s) + 1) for s in strings]
        pointers = [ctypes.addressof(s) for s in self._strings]
        self._array = (ctypes.c_void_p * (len(pointers) + 1))(*pointers, None)
        self.address = ctypes.addressof(self._array)


def fork(child: Callable[[], object]) -> Act:
    """Run `child` in a new process and wait for its end; its status is 0 if it returns."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            child()
            os._exit(0)
        finally:
            os._exit(98)
    _, status, rusage = os.wait4(pid, 0)
    return Act(pid, status, rusage)


def execute(
    path: bytes | int,
    argv: Sequence[bytes] | int,
    environment: Sequence[bytes] | int = (),
    before: Callable[[], object] = lambda: None,
) -> Act:
    """execve in a new process; numbers are passed as the addresses that they are. Where it fails, the exit
    status is its errno."""
    name = ctypes.create_string_buffer(path) if isinstance(path, bytes) else None
    lists = [given if isinstance(given, int) else Arguments(given) for given in (argv, environment)]
    address = ctypes.addressof(name) if name is not None else path
    argv_at, environment_at = (given if isinstance(given, int) else given.address for given in lists)
    silence = os.open(os.devnull, os.O_WRONLY)

    def child() -> None:
        before()
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        libc.execve(address, argv_at, environment_at)
        os._exit(ctypes.get_errno())

    try:
        return fork(child)
    finally:
        os.close(silence)


def spoken(path: Path, tell: Callable[[], dict[str, int]]) -> Callable[[], None]:
    """For `before`: let a child write down what it knows of itself."""

    def write() -> None:
        path.write_text(json.dumps(tell()))

    return write


def as_record(value: bytes) -> str | bytes:
    """A text as a record has it: str where it is valid UTF-8, else bytes."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
