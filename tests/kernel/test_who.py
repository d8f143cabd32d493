"""Who a pid was: never a guess, by a map of the kernel's that the test writes, and /proc as it is."""

from __future__ import annotations

import os
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.kernel import bpf
from pipeline.kernel.layout import IDENTITY, OURS, TEST, TICK, Identity, start_ticks
from pipeline.kernel.who import NAMELESS, Who
from tests.kernel_ring import boottime

PIDS, IDENTITIES = 100, 200
GONE = 4_000_000
"""A pid beyond pid_max."""
SECOND = 10**9
KNOWN = {
    "start": 100 * SECOND,
    "exec_id": 7,
    "exec_time": 102 * SECOND,
    "before_id": 6,
    "before_time": 101 * SECOND,
    "parent_start": 50 * SECOND,
    "cgroup": 0,
    "flags": 0,
    "ended": 200 * SECOND,
    "parent_pid": GONE + 1,
    "ns_pid": 3,
    "uid": 1000,
    "gid": 1001,
    "before_uid": 1000,
    "before_gid": 1001,
    "comm": b"name",
}


class Maps:
    """The kernel's maps."""

    def __init__(self) -> None:
        self.content: dict[tuple[int, bytes], bytes] = {}
        self.asked: list[bytes] = []

    def lookup(self, fd: int, key: bytes, size: int) -> bytes | None:
        self.asked.append(key)
        found = self.content.get((fd, key))
        assert found is None or len(found) == size
        return found

    def know(self, pid: int, **values: Any) -> None:
        """As bpf/identity.h lays it out."""
        given = {**KNOWN, **values}
        packed = struct.pack("=9Q6I16s", *(given[name] for name in KNOWN))
        self.content[PIDS, pid.to_bytes(4, "little")] = packed

    def identify(self, pid: int, start: int, exec_id: int, flags: int = 0) -> None:
        self.content[IDENTITIES, Identity(pid, start).key] = IDENTITY.pack(exec_id, flags, 0)


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> Maps:
    found = Maps()
    monkeypatch.setattr(bpf, "lookup", found.lookup)
    return found


@pytest.fixture
def who() -> Who:
    return Who(PIDS, IDENTITIES)


def test_one_that_ended_is_known_by_the_map(maps: Maps, who: Who) -> None:
    maps.know(GONE)
    maps.know(GONE + 1, start=50 * SECOND, exec_id=5, exec_time=60 * SECOND)
    assert who(GONE, 150 * SECOND) == {
        "pid": GONE,
        "tid": GONE,
        "start": 100 * SECOND,
        "exec_id": 7,
        "ns_pid": 3,
        "uid": 1000,
        "gid": 1001,
        "cgroup": 0,
        "parent_pid": GONE + 1,
        "parent_start": 50 * SECOND,
        "parent_exec_id": 5,
        "comm": b"name".ljust(16, b"\0"),
    }


@pytest.mark.parametrize(("when", "exec_id"), [(103, 7), (102, 7), (101.5, 6), (101, 6), (100.5, 0)])
def test_a_record_that_is_older_than_an_exec_gets_the_exec_before(
    maps: Maps, who: Who, when: float, exec_id: int
) -> None:
    maps.know(GONE)
    found = who(GONE, int(when * SECOND))
    assert found is not None
    assert found["exec_id"] == exec_id
    assert ("comm" in found) == (when >= 102), "the exec changed the name"


def test_what_an_exec_may_have_changed_is_not_told_of_before(maps: Maps, who: Who) -> None:
    """A program that runs as its owner: uid 0 is not whose the mapping before it was."""
    maps.know(GONE, uid=0)
    before, after = who(GONE, 101 * SECOND), who(GONE, 110 * SECOND)
    assert before is not None
    assert after is not None
    assert "uid" not in before
    assert before["gid"] == 1001
    assert after["uid"] == 0


def test_the_pipeline_does_not_look_at_itself(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look can be a record of its own, which would ask for the next."""
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("it looked at /proc"))
    who = Who(PIDS, IDENTITIES, os.getpid())
    assert who(os.getpid(), boottime()) is None
    assert who.whose(os.getpid(), boottime()) == "self"
    assert not maps.asked


def test_a_record_from_before_the_start_is_of_somebody_else(maps: Maps, who: Who) -> None:
    maps.know(GONE)
    assert who(GONE, 99 * SECOND) == {"pid": GONE, "tid": GONE}


def test_nothing_is_known_of_one_that_nobody_saw(maps: Maps, who: Who) -> None:
    assert who(GONE, 99 * SECOND, GONE + 5) == {"pid": GONE, "tid": GONE + 5}
    assert who(0, 99 * SECOND) == {"pid": 0, "tid": 0}


def test_what_the_end_contradicts_is_unknown(maps: Maps, who: Who) -> None:
    """The kernel's side marks it: bpf/identity.h."""
    maps.know(GONE, parent_pid=0, comm=NAMELESS)
    found = who(GONE, 150 * SECOND)
    assert found is not None
    assert "parent_pid" not in found
    assert bytes(found["comm"]).startswith(NAMELESS)


@pytest.mark.parametrize(
    ("flags", "whose"), [(0, "self"), (OURS, "self"), (TEST, "test"), (OURS | TEST, "test")]
)
def test_our_own_are_none(maps: Maps, who: Who, flags: int, whose: str) -> None:
    maps.know(GONE, flags=flags)
    assert (who(GONE, 150 * SECOND) is None) == bool(flags)
    assert who.whose(GONE, 150 * SECOND) == whose
    start = start_ticks(os.getpid())
    maps.identify(os.getpid(), start, 9, flags)
    now = boottime()
    assert (who(os.getpid(), now) is None) == bool(flags)
    assert who.whose(os.getpid(), now) == whose


def test_the_loader_is_told_apart_when_it_runs_already(maps: Maps, who: Who, sleeper: int) -> None:
    """`pids` has it from before, and `identities` forgets it at its end; what it once was, it stays."""
    known = known_of(sleeper)
    maps.know(sleeper, **known)
    assert who(sleeper, boottime()) is not None
    maps.identify(sleeper, start_ticks(sleeper), 9, TEST)
    assert who(sleeper, boottime()) is None
    maps.content = {}
    maps.know(sleeper, **{**known, "ended": boottime()})
    assert who(sleeper, boottime()) is None
    assert who.whose(sleeper, boottime()) == "test"
    maps.know(sleeper, **{**known, "start": known["start"] + TICK, "exec_time": known["start"] + TICK})
    assert who(sleeper, boottime()) is not None, "another has its pid"


def known_of(pid: int) -> dict[str, Any]:
    """What the map would have of a living process."""
    status = Path(f"/proc/{pid}/status").read_text()
    parent = int(status.partition("PPid:\t")[2].split()[0])
    return {
        "start": start_ticks(pid) * TICK + 5,
        "exec_time": start_ticks(pid) * TICK + 6,
        "ended": 0,
        "uid": os.getuid(),
        "gid": os.getgid(),
        "parent_pid": parent,
        "parent_start": start_ticks(parent) * TICK,
        "comm": Path(f"/proc/{pid}/comm").read_bytes()[:-1],
    }


def test_one_that_lives_is_compared_with_proc(maps: Maps, who: Who) -> None:
    mine = known_of(os.getpid())
    maps.know(os.getpid(), **mine)
    found = who(os.getpid(), boottime())
    assert found is not None
    assert {name: found[name] for name in ("uid", "gid", "parent_pid")} == {
        "uid": os.getuid(),
        "gid": os.getgid(),
        "parent_pid": os.getppid(),
    }
    assert bytes(found["comm"]).rstrip(b"\0") == mine["comm"]


@pytest.mark.parametrize(
    ("name", "other"), [("uid", 12345), ("gid", 12345), ("parent_pid", 12345), ("comm", b"other")]
)
def test_what_proc_contradicts_is_unknown(maps: Maps, who: Who, name: str, other: Any) -> None:
    maps.know(os.getpid(), **{**known_of(os.getpid()), name: other})
    found = who(os.getpid(), boottime())
    assert found is not None
    assert name not in found
    assert found["start"] == known_of(os.getpid())["start"]


def test_one_that_the_map_forgot_is_asked_of_proc(maps: Maps, who: Who) -> None:
    start, parent = start_ticks(os.getpid()), start_ticks(os.getppid())
    maps.identify(os.getpid(), start, 9)
    maps.identify(os.getppid(), parent, 8)
    found = who(os.getpid(), boottime())
    assert found is not None
    assert found["start"] == start * TICK
    assert found["uid"] == os.getuid()
    assert (found["exec_id"], found["parent_exec_id"]) == (9, 8)
    assert found["comm"] == Path("/proc/self/comm").read_bytes()[:-1]
    assert who(os.getpid(), start * TICK - 1) == {"pid": os.getpid(), "tid": os.getpid()}


def test_a_successor_in_proc_is_not_the_one_in_the_map(maps: Maps, who: Who) -> None:
    """The pid was given again: /proc says nothing of who had it before."""
    maps.know(os.getpid(), **{**known_of(os.getpid()), "start": 5 * TICK, "exec_time": 5 * TICK})
    found = who(os.getpid(), 6 * TICK)
    assert found is not None
    assert found["start"] == 5 * TICK
    assert not {"uid", "gid", "comm", "parent_pid", "cgroup"} & found.keys()


@pytest.fixture
def sleeper() -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


def test_a_look_counts_for_what_was_before_it(maps: Maps, who: Who, sleeper: int) -> None:
    maps.know(sleeper, **known_of(sleeper))
    key, before = sleeper.to_bytes(4, "little"), boottime()
    who(sleeper, before)
    who(sleeper, before)
    assert maps.asked.count(key) == 1
    who(sleeper, boottime())
    assert maps.asked.count(key) == 2, "what happened since may have changed it"


def test_a_thread_has_a_name_of_its_own(maps: Maps, who: Who) -> None:
    maps.know(os.getpid(), **known_of(os.getpid()))
    told: list[int] = []
    end = threading.Event()

    def thread() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_bytes(b"another")
        told.append(threading.get_native_id())
        end.wait(20)

    running = threading.Thread(target=thread)
    running.start()
    while not told:
        time.sleep(0.01)
    found = who(os.getpid(), boottime(), told[0])
    end.set()
    running.join()
    while Path(f"/proc/self/task/{told[0]}").exists():
        time.sleep(0.01)
    assert found is not None
    assert (found["tid"], found["comm"]) == (told[0], b"another")
    gone = Who(PIDS, IDENTITIES)(os.getpid(), boottime(), told[0])
    assert gone is not None
    assert gone["comm"] == NAMELESS


def test_what_changed_long_ago_is_known_by_two_looks(maps: Maps, who: Who) -> None:
    """A daemon that gave up its rights without an exec: it may just have been, but not at the next record."""
    maps.know(os.getpid(), **{**known_of(os.getpid()), "uid": 12345})
    first, second = who(os.getpid(), boottime()), who(os.getpid(), boottime())
    assert first is not None
    assert second is not None
    assert "uid" not in first
    assert second["uid"] == os.getuid()
    assert first["gid"] == second["gid"] == os.getgid()
