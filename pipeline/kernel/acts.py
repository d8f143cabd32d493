"""Harmless acts of the loader's own, one per kind: what comes of them proves a hook.

That a program is attached does not mean that it runs. Each act is done by a child process of the loader,
whose events are booked as `self-test`, and goes by every hook of its kind that this host lets it reach. A
kind that is not here has no harmless act (modules).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from pipeline.kernel import bpf, netlink

__all__ = ["ACTS", "act"]

_PATIENCE: Final = 1.0
"""Seconds."""

CLONE_NEWUTS: Final = 0x04000000
PR_SET_NAME: Final = 15
IPC_PRIVATE, IPC_RMID, IPC_CREAT, SHM_EXEC = 0, 0, 0o1000, 0o100000
_libc: Final = ctypes.CDLL(None)


def _exec() -> None:
    os.execv("/bin/true", ["true"])


def _fail_to_exec() -> None:
    """By path and by descriptor: execve and execveat."""
    nothing = "/nonexistent/promissory-self-test"
    for file in (nothing, os.open(os.devnull, os.O_RDONLY)):
        with contextlib.suppress(OSError):
            os.execve(file, [nothing], {})


def _load_bpf() -> None:
    os.close(bpf.load_program(bpf.RAW_TRACEPOINT, bpf.NOTHING))


def _patch_kernel() -> None:
    """The first program of a tracepoint switches it on: the kernel patches its own code there."""
    program = bpf.load_program(bpf.RAW_TRACEPOINT, bpf.NOTHING)
    os.close(bpf.attach_tracepoint(program, "alarmtimer_suspend"))  # hardly anybody looks at that one
    os.close(program)  # before the end of this child, when nobody knows any more whose it is


def _map() -> None:
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
    memory = _libc.shmget(IPC_PRIVATE, mmap.PAGESIZE, IPC_CREAT | 0o600)
    _libc.shmat(memory, None, SHM_EXEC)
    _libc.shmctl(memory, IPC_RMID, None)


def _protect() -> None:
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    _libc.mprotect(ctypes.c_void_p(address), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC)


@contextlib.contextmanager
def _listeners() -> Iterator[list[socket.socket]]:
    """Of each family that this host has."""
    name = f"\0promissory-self-test-{os.getpid()}"
    places: list[tuple[int, tuple[str, int] | str]] = [
        (socket.AF_INET, ("127.0.0.1", 0)),
        (socket.AF_INET6, ("::1", 0)),
        (socket.AF_UNIX, name),
    ]
    with contextlib.ExitStack() as stack:
        made = []
        for family, place in places:
            with contextlib.suppress(OSError):
                listener = stack.enter_context(socket.socket(family))
                listener.settimeout(_PATIENCE)  # where loopback is down, nobody comes
                listener.bind(place)
                listener.listen()
                made.append(listener)
        yield made


def _listen() -> None:
    with _listeners():
        pass


def _connect(*, blocking: bool = True) -> None:
    with _listeners() as listeners:
        for listener in listeners:
            with contextlib.suppress(OSError), socket.socket(listener.family) as client:
                client.setblocking(blocking)
                client.connect_ex(listener.getsockname())
                listener.accept()


def _connect_all() -> None:
    """Datagrams too; none is sent."""
    _connect()
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.connect_ex(("127.0.0.1", 9))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.connect_ex("/nonexistent/promissory-self-test")


def _change_namespace() -> None:
    _libc.unshare(CLONE_NEWUTS)
    _libc.setns(os.open("/proc/self/ns/uts", os.O_RDONLY), CLONE_NEWUTS)


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
    "bind": _listen,
    "listen": _listen,
    "accept": _connect,
    "connect": _connect_all,
    "connect_done": lambda: _connect(blocking=False),
    "namespace": _change_namespace,
    "cgroup": _make_cgroup,
    "comm": lambda: _libc.prctl(PR_SET_NAME, b"self-test"),
    "audit": lambda: netlink.say(netlink.SAID),
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
