"""What was there before us: one look at /proc, written as chunks, so that every exec id and parent can be
resolved.

The probes are attached first. Then every process gets its identity in the kernel's map unless fork or exec
gave it one meanwhile (BPF_NOEXIST), and one `process` event. The events have one time, that of the beginning
of the look, and a ring of their own (chunk.PROC_RING) in a file: from there on they go the way of all chunks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.chunk import HEADER, PROC_RING, REDACTED, event_id, sequence_of, split
from pipeline.event import UNKNOWN, Array
from pipeline.kernel import bpf
from pipeline.kernel.layout import IDENTITY, TICK, Identity, cgroup_known, start_ticks, stat
from pipeline.redact import Redaction
from pipeline.schema import Schema, by_name

__all__ = ["Process", "look", "processes"]

PROC: Final = Path("/proc")
NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
CGROUPS: Final = Path("/sys/fs/cgroup")
GONE: Final = (FileNotFoundError, ProcessLookupError)
DELETED: Final = b" (deleted)"
NONE: Final = 0xFFFFFFFF
LOOKS: Final = 5
PF_EXITING: Final = 0x4


@dataclass(frozen=True, slots=True)
class Process:
    """One process of /proc, as far as its identity goes."""

    identity: Identity
    parent: int


def processes(root: Path = PROC) -> Iterator[Process]:
    """All processes there are; one that ends meanwhile is left out."""
    for name in os.listdir(root):
        if not name.isdigit():
            continue
        try:
            _, fields = stat(root / name)
        except GONE:
            continue
        yield Process(Identity(int(name), int(fields[19])), int(fields[1]))


def look(
    identities: int, now: int, first: int, caps: Mapping[str, int], redaction: Redaction
) -> tuple[int, bytes]:
    """Give every process that has none an identity; returns how many, and the chunks of their `process`
    events.

    `identities` is the descriptor of the kernel's map, `now` the boottime (ns) of the look, `first` the
    sequence of the first chunk, `caps` the most bytes of each promise. Looks again until nobody is left that
    was forked by a process that had no identity yet.
    """
    events: list[Array] = []
    sequence = first
    for _ in range(LOOKS):
        before = len(events)
        for process in sorted(processes(), key=lambda p: (p.identity.start, p.identity.pid)):
            if bpf.lookup(identities, process.identity.key, IDENTITY.size):
                continue
            exec_id = event_id(PROC_RING, sequence)
            event = _event(process, exec_id, identities, now, caps, redaction)
            if event is not None and _give(identities, process.identity, exec_id):
                events.append(event)
                sequence += len(event)
        if len(events) == before:
            break
    return len(events), b"".join(event.tobytes() for event in events)


def _give(identities: int, process: Identity, exec_id: int) -> bool:
    """Put an identity into the kernel's map, unless fork or exec did; False: no event for it.

    The hook at exit takes it out again. Should that have run already, nobody would: then it is taken out
    here.
    """
    if not bpf.update(identities, process.key, IDENTITY.pack(exec_id, 0, 0), bpf.NOEXIST):
        return False
    return _living_thread(process.pid) is not None or not bpf.delete(identities, process.key)


def _living_thread(pid: int) -> Path | None:
    """The folder of a process's leader, or of another thread: the leader may be gone while others go on.

    Once thread ids have wrapped around, the leader's need not be the smallest.
    """
    try:
        threads = sorted((PROC / str(pid) / "task").iterdir(), key=lambda folder: folder.name != str(pid))
    except GONE:
        return None
    return next(filter(_lives, threads), None)


def _lives(thread: Path) -> bool:
    try:
        state, *_, flags = stat(thread)[1][:7]
    except GONE:
        return False
    return state not in (b"Z", b"X") and not int(flags) & PF_EXITING


def _event(
    process: Process, exec_id: int, identities: int, now: int, caps: Mapping[str, int], redaction: Redaction
) -> Array | None:
    """One process's event as chunks; None: it has ended. Sorted by start, a parent has its identity before
    its children.
    """
    schema = by_name()["process"]
    folder = _living_thread(process.identity.pid)
    if folder is None:
        return None
    head = np.zeros(1, HEADER)
    head["kind"], head["time"], head["id"] = schema.number, now, exec_id
    head["sequence"] = sequence_of(exec_id)
    view = head.view(schema.dtype)[0]
    try:
        _identity(view, folder, process, exec_id)
        _parent(view, process.parent, identities)
        data = _promises(head, folder, schema, caps, redaction)
    except GONE:
        return None
    head["faults"] = sum(1 << i for i, p in enumerate(schema.promises) if view[f"{p.name}_of"] == UNKNOWN)
    return split(head[0], data, schema.room)


def _parent(view: Any, pid: int, identities: int) -> None:
    if not pid:
        return
    parent = Identity(pid, start_ticks(pid))
    known = bpf.lookup(identities, parent.key, IDENTITY.size)
    view["parent_pid"], view["parent_start"] = pid, parent.start * TICK
    view["parent_exec_id"] = IDENTITY.unpack(known)[0] if known else 0


def _identity(view: Any, folder: Path, process: Process, exec_id: int) -> None:
    status = dict(re.findall(r"^(\w+):\s*(.*)$", (folder / "status").read_text(errors="replace"), re.M))
    uids, gids = status["Uid"].split(), status["Gid"].split()
    pid = process.identity.pid
    view["exec_id"], view["start"] = exec_id, process.identity.start * TICK
    view["pid"], view["tid"] = pid, pid
    view["ns_pid"] = int(status["NStgid"].split()[-1]) if "NStgid" in status else pid
    view["uid"], view["euid"], view["gid"], view["egid"] = map(int, (uids[0], uids[1], gids[0], gids[1]))
    view["comm"] = np.void((folder / "comm").read_bytes()[:-1][:15].ljust(16, b"\0"))
    view["cgroup"] = _cgroup(folder)
    view["loginuid"], view["session"] = _number(folder / "loginuid"), _number(folder / "sessionid")
    for name in NAMESPACES:
        view[f"{name}_ns"] = _inode(folder / "ns" / name)


def _promises(
    head: Array, folder: Path, schema: Schema, caps: Mapping[str, int], redaction: Redaction
) -> bytes:
    """Fill the {of, have} pairs and the fields about the executable; returns the promises' data.

    Nothing secret may lie in the file: command lines and environments are masked before they are written.
    """
    view = head.view(schema.dtype)[0]
    executable = _executable(view, folder)
    argv, environment = _read(folder / "cmdline"), _read(folder / "environ")
    view["argc"] = argv.count(b"\0") if argv is not None else NONE
    view["envc"] = environment.count(b"\0") if environment is not None else NONE
    shown = argv if argv is None else redaction.arguments(argv)
    head["flags"] = 0 if shown is argv else REDACTED
    values = {
        "executable": executable,
        "cwd": _link(folder / "cwd"),
        "argv": shown,
        "environment": environment if environment is None else redaction.variables(environment),
    }
    if not redaction.environment:
        values["environment"] = b""
    kept = []
    for promise in schema.promises:
        value = values[promise.name]
        data = (value or b"")[: caps[promise.cap]]
        view[f"{promise.name}_of"] = UNKNOWN if value is None else len(value)
        view[f"{promise.name}_have"] = len(data)
        kept.append(data)
    return b"".join(kept)


def _executable(view: Any, folder: Path) -> bytes:
    """Path of the executable, without what /proc adds to it; empty for a thread of the kernel."""
    path = _link(folder / "exe") or b""
    try:
        file = (folder / "exe").stat()
        view["inode"], view["device"] = file.st_ino, file.st_dev & NONE
    except OSError:
        return b""
    if path.startswith(b"/memfd:"):
        view["memfd"] = True
        return path.removeprefix(b"/").removesuffix(DELETED)
    if path.endswith(DELETED):
        view["deleted"] = True
        path = path.removesuffix(DELETED)
    view["chrooted"] = (_link(folder / "root") or b"/") != b"/"
    return path


def _cgroup(folder: Path) -> int:
    """Inode number of the version-2 cgroup; 0: unknown."""
    if not cgroup_known():
        return 0
    line = (folder / "cgroup").read_text().partition("::")[2].strip()
    return _inode(CGROUPS / line.removeprefix("/"))


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return NONE


def _read(path: Path) -> bytes | None:
    """A file of /proc; empty for a thread of the kernel; None: not allowed to know."""
    try:
        return path.read_bytes()
    except PermissionError:
        return None
    except ProcessLookupError:
        return b""


def _link(path: Path) -> bytes | None:
    """Where a link of /proc points; empty for a thread of the kernel; None: not allowed to know."""
    try:
        return os.fsencode(path.readlink())
    except PermissionError:
        return None
    except FileNotFoundError:
        return b""
