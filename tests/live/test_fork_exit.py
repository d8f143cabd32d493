"""fork and exit, against clone's and wait4's own account."""

from __future__ import annotations

import os
import resource
import signal
import time

import pytest

from tests.live.run import Live, Record
from tests.live.witness import Act, execute, fork

pytestmark = pytest.mark.kernel

CLONE_VM, CLONE_VFORK, CLONE_SETTID, CLONE_CLEARTID = 0x100, 0x4000, 0x1000000, 0x200000
SIGNALS = 0xFF


def fork_of(live: Live, act: Act, parent: int) -> Record:
    """The fork that made a process."""
    live.ended(act.pid)
    (record,) = [r for r in live.log.of(parent, "fork") if r["child"]["pid"] == act.pid]
    return record


def test_fork_names_the_child(live: Live, acts: bytes) -> None:
    act = execute(acts, [b"x"])
    record = fork_of(live, act, os.getpid())
    (started,) = live.log.of(act.pid, "exec")
    assert record["child"]["id"] == started["process"]["id"]
    assert record["child"]["start"] == started["process"]["start"]
    assert record["child"]["ns_pid"] == act.pid
    assert record["process"]["pid"] == os.getpid()
    assert record["process"]["id"] == started["process"]["parent"]["id"]
    assert record["flags"] & ~SIGNALS == CLONE_SETTID | CLONE_CLEARTID


def test_the_ids_of_processes_are_text_and_unique(live: Live, acts: bytes) -> None:
    ids = [live.exec_of(execute(acts, [b"x"]))["process"]["id"] for _ in range(5)]
    assert len(set(ids)) == 5
    assert all(isinstance(id, str) for id in ids)


@pytest.mark.vm
def test_threads_are_no_forks(live: Live, acts: bytes) -> None:
    act = execute(acts, [b"acts", b"threads"])
    live.ended(act.pid)
    assert not live.log.of(act.pid, "fork")
    assert [r["kind"] for r in live.log.of(act.pid, "exec", "exit")] == ["exec", "exit"]


@pytest.mark.vm
def test_vfork(live: Live, acts: bytes) -> None:
    act = execute(acts, [b"acts", b"vfork", acts, b"child"])
    live.ended(act.pid)
    (record,) = live.log.of(act.pid, "fork")
    assert record["flags"] & CLONE_VM
    assert record["flags"] & CLONE_VFORK
    child = record["child"]["pid"]
    (started,) = live.log.of(child, "exec")
    assert started["argv"] == [acts.decode(), "child"]
    assert started["process"]["parent"]["pid"] == act.pid


@pytest.mark.parametrize("code", [0, 1, 77, 255])
def test_exit_codes(live: Live, code: int) -> None:
    act = fork(lambda: os._exit(code))
    record = live.ended(act.pid)
    assert os.WEXITSTATUS(act.status) == record["code"] == code
    assert record["signal"] == 0
    assert record["core"] is False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGRTMIN])
def test_signals(live: Live, acts: bytes, number: int) -> None:
    act = execute(acts, [b"acts", b"die", b"%d" % number])
    record = live.ended(act.pid)
    assert os.WTERMSIG(act.status) == record["signal"] == number
    assert record["code"] == 0
    assert record["core"] is False


def test_a_core_dump(live: Live, acts: bytes, tmp_path: object) -> None:
    def may_dump() -> None:
        os.chdir(str(tmp_path))
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # jobs in a shell's background ignore it
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    act = execute(acts, [b"acts", b"die", b"%d" % signal.SIGQUIT], before=may_dump)
    record = live.ended(act.pid)
    assert record["signal"] == signal.SIGQUIT
    assert os.WCOREDUMP(act.status) == record["core"]
    assert record["core"] is True


@pytest.mark.vm
def test_the_last_thread_is_not_the_leader(live: Live, acts: bytes) -> None:
    act = execute(acts, [b"acts", b"leader-first"])
    record = live.ended(act.pid)
    assert record["code"] == os.WEXITSTATUS(act.status)
    assert record["process"]["pid"] == act.pid
    assert record["process"]["tid"] != act.pid
    assert len(live.log.of(act.pid, "exit")) == 1


def test_one_exit_of_many_threads(live: Live, acts: bytes) -> None:
    act = execute(acts, [b"acts", b"threads"])
    assert live.ended(act.pid)["code"] == os.WEXITSTATUS(act.status) == 41
    time.sleep(0.1)
    assert len(live.log.of(act.pid, "exit")) == 1


def test_cpu_times(live: Live, acts: bytes) -> None:
    act = execute(acts, [b"acts", b"work", b"80"])
    record = live.ended(act.pid)
    used = act.rusage.ru_utime + act.rusage.ru_stime
    assert used > 0.16
    assert record["runtime"] / 1e9 == pytest.approx(used, abs=0.01)
    # Ticks are counted, and a tick is up to 10 ms.
    assert (record["utime"] + record["stime"]) / 1e9 == pytest.approx(used, abs=0.06)
    assert record["utime"] / 1e9 == pytest.approx(act.rusage.ru_utime, abs=0.06)


def test_times_of_an_event(live: Live, acts: bytes) -> None:
    first = time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    act = execute(acts, [b"x"])
    last = time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    live.ended(act.pid)
    for record in live.log.of(act.pid):
        assert first[1] <= record["boottime"] <= last[1]
        assert first[0] - 1_000_000 <= record["time"] <= last[0] + 1_000_000
