"""What a process without privileges can still do: drops them as the pipeline does, then tries. Prints JSON.

confined.py NAME UID GID FOLDER PIN     run by tests/test_privilege.py
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import privilege
from pipeline.kernel import bpf, netlink, perf_event

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
X86_64_BPF = 321
HIGH = 1 << 32
"""The kernel looks at the lower half of an int alone."""


def call(name: str, *arguments: Any) -> Callable[[], None]:
    """A call of the C library's."""

    def do() -> None:
        if getattr(LIBC, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), name)

    return do


def statuses() -> dict[str, dict[str, str]]:
    """/proc/PID/status of every thread."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        found[task.name] = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return found


def said(act: Callable[[], object]) -> str:
    """The name of the error, or `done`."""
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def wait() -> threading.Event:
    """A thread more."""
    until = threading.Event()
    threading.Thread(target=until.wait, daemon=True).start()
    return until


def main(name: str, uid: str, gid: str, folder: str, pin: str) -> None:
    ring = bpf.create_ring(os.sysconf("SC_PAGE_SIZE"), "before")
    os.chown(pin, int(uid), int(gid))
    privilege.drop(privilege.User(name, int(uid), int(gid)))
    wait()
    allowed = {
        "open a pin": lambda: bpf.get(Path(pin)),
        "ask about a map": lambda: bpf.map_info(ring),
        "store": lambda: sqlite3.connect(f"{folder}/db").execute("CREATE TABLE t (x)").connection.close(),
        "make a socket": lambda: socket.socket().close(),
        "start a thread": wait,
    }
    denied = {
        "read a secret": lambda: os.open("/etc/shadow", os.O_RDONLY),
        "run a program": lambda: os.execv("/bin/true", ["true"]),
        "fork": os.fork,
        "become root": lambda: os.setuid(0),
        "take a group": lambda: os.setgroups([0]),
        "load a program of BPF": lambda: bpf.load_program(bpf.RAW_TRACEPOINT, bpf.NOTHING),
        "make a map": lambda: bpf.create_array(8, 1, "after"),
        "load, by a number that is cut": call("syscall", X86_64_BPF, ctypes.c_long(HIGH | 5), 0, 0),
        "ask for programs": lambda: bpf.program_info(1),
        "trace": call("ptrace", 16, os.getppid(), 0, 0),
        "mount": call("mount", b"none", folder.encode(), b"tmpfs", 0, None),
        "unshare": call("unshare", 0x10000000),
        "load a module": call("syscall", 313, -1, b"", 0),
        "look at everybody": lambda: perf_event.Sideband(["comm"]),
        "listen to audit": lambda: netlink.listen(4096),
        "signal others": lambda: os.kill(1, 0),
        "see packets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "make a device": lambda: os.mknod(f"{folder}/device", 0o020600, os.makedev(1, 3)),
        "use io_uring": call("syscall", 425, 1, 0),
        "set the clock": call("settimeofday", b"\0" * 16, None),
    }
    found = {
        what: {act: said(do) for act, do in acts.items()}
        for what, acts in (("allowed", allowed), ("denied", denied))
    }
    print(json.dumps({**found, "threads": statuses()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
