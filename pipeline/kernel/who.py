"""Who a pid was: for records that name a process by nothing else (perf, audit).

    the map `pids` (bpf/identity.h), which remembers processes beyond their end → else /proc → else nil

Never a guess: what could have changed between the last exec and the record is told only where it is the same
before and after (in the map, and at the process's end or in /proc now).
"""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from pipeline.kernel import bpf
from pipeline.kernel.layout import IDENTITY, OURS, TEST, TICK, Identity, cgroup_known, stat

__all__ = ["NAMELESS", "Who", "Whose"]

Whose = Literal["self", "test"]
"""The pipeline's own, or the loader's self-test."""
Values = dict[str, int | bytes]
NAMELESS: Final = b"\0\xff"
"""An unknown comm (schemas/common.toml)."""
_NOBODY: Final = 0xFFFFFFFF
_KNOWN: Final = struct.Struct("=9Q6I16s")
_KEPT: Final = 4096
"""Processes that are kept in mind between two looks."""
_CGROUPS: Final = "/sys/fs/cgroup"


class _Known(NamedTuple):
    """struct known of bpf/identity.h."""

    start: int
    exec_id: int
    exec_time: int
    before_id: int
    before_time: int
    parent_start: int
    cgroup: int
    flags: int
    ended: int
    parent_pid: int
    ns_pid: int
    uid: int
    gid: int
    before_uid: int
    before_gid: int
    comm: bytes

    def runs(self, time: int) -> int:
        """The exec whose program it ran at a time, ns since boot; 0: unknown."""
        if time >= self.exec_time:
            return self.exec_id
        return self.before_id if 0 < self.before_time <= time else 0


@dataclass(frozen=True, slots=True)
class _Living:
    """What /proc says."""

    start: int
    """Ticks."""
    parent_pid: int
    parent_start: int | None
    """ns, to a tick."""
    ns_pid: int
    uid: int
    gid: int
    cgroup: int
    comm: bytes


class _Runs(NamedTuple):
    """What a process runs: by the map, which knows since when, else by `identities`."""

    known: _Known | None
    exec_id: int
    flags: int

    def at(self, when: int) -> int:
        """The exec at a time, ns since boot; 0: unknown."""
        return self.known.runs(when) if self.known else self.exec_id


_NOBODYS: Final = _Runs(None, 0, 0)


class _Look(NamedTuple):
    """What was found of a pid and its parent, and when (ns since boot): true for all records until then."""

    at: int
    living: _Living | None
    runs: _Runs
    parent: _Runs
    earlier: _Living | None
    """What /proc said at the look before this one, which was before every record that needs this one."""
    start: int
    """Ticks; -1: unknown."""
    flags: int
    """Of layout: whose it is. What it once was, it stays."""

    def steady(self, name: str) -> bool:
        """Whether something stayed as it is now since the look before."""
        return None not in (self.living, self.earlier) and getattr(self.living, name) == getattr(
            self.earlier, name
        )


class Who:
    """Call it for fields of the common block (schemas/common.toml)."""

    def __init__(self, pids: int, identities: int, own: int = 0) -> None:
        """Descriptors of the kernel's maps, and the pipeline's own pid."""
        self._pids, self._identities, self._own = pids, identities, own
        self._cgroups = cgroup_known()
        self._looks: dict[int, _Look] = {}

    def __call__(self, pid: int, when: int, tid: int = 0) -> Values | None:
        """What is known of the process that had this pid at `when` (ns since boot); None: it is one of ours,
        see `whose`. `tid`: the thread, where it is known.
        """
        values: Values = {"pid": pid, "tid": tid or pid}
        if not pid:
            return values
        if pid == self._own:  # before any look at it: that could be what the next record is about
            return None
        look = self._look(pid, when)
        known, living = look.runs.known, look.living
        start = known.start if known else living.start * TICK if living else when + 1
        if when < start:
            return values  # of somebody who had the pid before
        if look.flags & (OURS | TEST):
            return None
        values["exec_id"] = look.runs.at(when)
        if known:
            self._of_known(values, known, look, when)
        elif living:
            self._of_living(values, living)
        if values["tid"] != pid:
            values["comm"] = _thread_comm(pid, tid) if living else NAMELESS
        if "parent_pid" in values:
            values["parent_exec_id"] = look.parent.at(when)
        return values

    def whose(self, pid: int, when: int) -> Whose:
        """Of which of ours a process is, where that is all that is known of it."""
        return "test" if pid != self._own and self._look(pid, when).flags & TEST else "self"

    def _look(self, pid: int, when: int) -> _Look:
        look = self._looks.get(pid)
        if look is None or look.at < when:
            if len(self._looks) >= _KEPT:
                self._looks.clear()
            look = self._looks[pid] = self._look_again(pid, look)
        return look

    def _look_again(self, pid: int, before: _Look | None) -> _Look:
        at = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        known = self._known(pid)
        living = None if known and known.ended else self._living(pid)
        if living is None and known and not known.ended:
            known = self._known(pid)  # it ended in between
        if known and living and living.start != known.start // TICK:
            living = None
        parent = _NOBODYS
        if known and known.parent_pid:
            parent = self._runs(known.parent_pid, known.parent_start // TICK)
        elif living and living.parent_start is not None:
            parent = self._runs(living.parent_pid, living.parent_start // TICK)
        start = known.start // TICK if known else living.start if living else -1
        runs = _Runs(known, 0, known.flags) if known else self._runs(pid, start)
        if before and before.start != start:
            before = None
        flags = runs.flags | (before.flags if before else 0)
        if known and living:  # a loader runs already when it says whose it is: there, while it lives
            flags |= self._identity(pid, start).flags
        earlier = before.living if before and living else None
        return _Look(at, living, runs, parent, earlier, start, flags)

    def _known(self, pid: int) -> _Known | None:
        found = bpf.lookup(self._pids, pid.to_bytes(4, "little"), _KNOWN.size)
        return _Known(*_KNOWN.unpack(found)) if found else None

    def _runs(self, pid: int, start: int) -> _Runs:
        """What the process runs that began then, in ticks."""
        known = self._known(pid)
        if known and known.start // TICK == start:
            return _Runs(known, 0, known.flags)
        return self._identity(pid, start)

    def _identity(self, pid: int, start: int) -> _Runs:
        found = bpf.lookup(self._identities, Identity(pid, start).key, IDENTITY.size) if start >= 0 else None
        return _Runs(None, *IDENTITY.unpack(found)[:2]) if found else _NOBODYS

    def _of_known(self, values: Values, known: _Known, look: _Look, when: int) -> None:
        older, living = when < known.exec_time, look.living
        sure = bool(known.ended or living)
        values |= {"start": known.start, "ns_pid": known.ns_pid}
        for name in ("uid", "gid"):
            value = getattr(known, name)
            same = living is None or getattr(living, name) == value
            before = not older or getattr(known, f"before_{name}") == value
            if sure and same and before:
                values[name] = value
            elif look.steady(name):
                values[name] = getattr(living, name)
        if sure and (living is None or living.cgroup == known.cgroup):
            values["cgroup"] = known.cgroup
        if sure and known.parent_pid and (living is None or living.parent_pid == known.parent_pid):
            values["parent_pid"], values["parent_start"] = known.parent_pid, known.parent_start
        if sure and not older and (living is None or living.comm == known.comm.partition(b"\0")[0]):
            values["comm"] = known.comm

    def _of_living(self, values: Values, living: _Living) -> None:
        values |= {
            "start": living.start * TICK,
            "ns_pid": living.ns_pid,
            "uid": living.uid,
            "gid": living.gid,
            "cgroup": living.cgroup,
            "comm": living.comm,
        }
        if living.parent_start is not None:
            values["parent_pid"], values["parent_start"] = living.parent_pid, living.parent_start

    def _living(self, pid: int) -> _Living | None:
        """None: it has ended."""
        try:
            folder = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return None
        try:
            comm, fields = stat(f"/proc/self/fd/{folder}")
            lines = _read(f"/proc/self/fd/{folder}/status").splitlines()
            status = dict(line.split(b":\t", 1) for line in lines if b":\t" in line)
            path = _read(f"/proc/self/fd/{folder}/cgroup").partition(b"0::")[2] if self._cgroups else b""
        except OSError:
            return None
        finally:
            os.close(folder)
        parent = int(fields[1])
        return _Living(
            start=int(fields[19]),
            parent_pid=parent,
            parent_start=_start(parent),
            ns_pid=int(status[b"NSpid"].split()[-1]),
            uid=int(status[b"Uid"].split()[0]),
            gid=int(status[b"Gid"].split()[0]),
            cgroup=_inode(path.rstrip(b"\n")) if self._cgroups else 0,
            comm=comm,
        )


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(1 << 16)


def _start(pid: int) -> int | None:
    """ns since boot, to a tick; None: it has ended, or is the kernel itself."""
    try:
        return int(stat(f"/proc/{pid}")[1][19]) * TICK if pid else None
    except OSError:
        return None


def _thread_comm(pid: int, tid: int) -> bytes:
    try:
        return stat(f"/proc/{pid}/task/{tid}")[0]
    except OSError:
        return NAMELESS


def _inode(path: bytes) -> int:
    """Of a version-2 cgroup, by its path; 0: unknown."""
    try:
        return os.stat(os.fsencode(_CGROUPS) + path).st_ino
    except OSError:
        return 0
