"""Harmless acts of the loader's own, one per kind: what comes of them proves a hook.

That a program is attached does not mean that it runs. Each act is done by a child process of the loader,
whose events are booked as `self-test`. A kind that is not here has no harmless act (modules).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from pipeline.kernel import bpf, netlink

__all__ = ["ACTS", "act"]

_PATIENCE: Final = 1.0
"""Seconds."""

CLONE_NEWUTS: Final = 0x04000000


def _exec() -> None:
    os.execv("/bin/true", ["true"])


def _fail_to_exec() -> None:
    nothing = "/nonexistent/promissory-self-test"
    os.execv(nothing, [nothing])


def _load_bpf() -> None:
    os.close(bpf.load_program(bpf.RAW_TRACEPOINT, bpf.NOTHING))


def _patch_kernel() -> None:
    """The first program of a tracepoint switches it on: the kernel patches its own code there."""
    program = bpf.load_program(bpf.RAW_TRACEPOINT, bpf.NOTHING)
    os.close(bpf.attach_tracepoint(program, "alarmtimer_suspend"))  # hardly anybody looks at that one
    os.close(program)  # before the end of this child, when nobody knows any more whose it is


def _map() -> None:
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_EXEC)


def _protect() -> None:
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC)


def _listener() -> socket.socket:
    listener = socket.socket()
    listener.settimeout(_PATIENCE)  # where loopback is down, nobody comes
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def _connect(*, blocking: bool = True) -> None:
    with _listener() as listener, socket.socket() as client:
        client.setblocking(blocking)
        client.connect_ex(listener.getsockname())
        listener.accept()


def _unshare() -> None:
    ctypes.CDLL(None).unshare(CLONE_NEWUTS)


def _make_cgroup() -> None:
    """In every hierarchy: perf looks at one of them alone. Where none is mounted, the kernel makes none."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        folder = Path(place) / f"promissory-self-test-{os.getpid()}"
        if kind in ("cgroup", "cgroup2"):
            with contextlib.suppress(OSError):
                folder.mkdir()
                folder.rmdir()


ACTS: Final[dict[str, Callable[[], None]]] = {
    "exec": _exec,
    "exec_failed": _fail_to_exec,
    "fork": lambda: None,
    "exit": lambda: None,
    "bpf_load": _load_bpf,
    "bpf_unload": _load_bpf,
    "ksymbol": _load_bpf,
    "kernel_text": _patch_kernel,
    "mmap": _map,
    "mprotect": _protect,
    "bind": lambda: _listener().close(),
    "listen": lambda: _listener().close(),
    "accept": _connect,
    "connect": _connect,
    "connect_done": lambda: _connect(blocking=False),
    "namespace": _unshare,
    "cgroup": _make_cgroup,
    "audit": lambda: netlink.say(b"promissory: self-test"),
}
"""Kind → what a child does; that there is a child at all is fork's and exit's."""


def act(kinds: Iterable[str]) -> None:
    """Do the acts of these kinds."""
    for kind in kinds:
        if kind in ACTS:
            _in_a_child(ACTS[kind])


def _in_a_child(deed: Callable[[], None]) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            deed()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
