"""process: what was there before the probes, against the test's own look at /proc."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.kernel import bpf
from pipeline.kernel.layout import IDENTITY_KEY
from pipeline.kernel.proc import Process, processes
from tests.live.run import Live, eventually
from tests.live.witness import as_record

pytestmark = pytest.mark.kernel


def test_everything_that_was_there_has_its_event(
    live: Live, before: frozenset[Process], ended: subprocess.Popen[bytes]
) -> None:
    there = before & frozenset(processes())
    lasting = {(p.identity.pid, p.identity.start) for p in there if p.identity.pid != ended.pid}
    assert len(lasting) > 10

    def missing() -> set[tuple[int, int]]:
        described = {
            (r["process"]["pid"], r["process"]["start"] // 10_000_000)
            for r in live.log.read()
            if r["kind"] in ("process", "exec")
        }
        return lasting - described

    eventually(lambda: not missing(), "the last of them to be stored")


def test_one_event_each_with_the_surface_proc(live: Live) -> None:
    live.log.read()
    found = [r for r in live.log.records if r["kind"] == "process"]
    assert len({r["process"]["id"] for r in found}) == len(found)
    assert {r["surface"] for r in found} == {"proc"}
    assert all(r["id"] == r["process"]["exec_id"] for r in found)


def test_the_test_itself(live: Live) -> None:
    live.log.read()
    (record,) = live.log.of(os.getpid(), "process")
    own = Path("/proc/self")
    argv = (own / "cmdline").read_bytes().removesuffix(b"\0").split(b"\0")
    assert record["argv"] == [as_record(a) for a in argv]
    assert record["executable"] == os.readlink(own / "exe")
    assert (record["inode"], record["device"]) == (os.stat(own / "exe").st_ino, os.stat(own / "exe").st_dev)
    assert (record["process"]["uid"], record["euid"]) == (os.getuid(), os.geteuid())
    assert record["namespaces"] == {
        name: os.stat(own / "ns" / name).st_ino
        for name in ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
    }
    names = {entry.partition("=")[0] for entry in record["environment"]}
    assert "PATH" in names
    assert record["process"]["parent"]["pid"] == os.getppid()


def test_the_same_process_has_the_same_id_in_all_events(live: Live) -> None:
    """/proc knows starts to 10 ms only; what the kernel says of a process later joins all the same."""
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    live.log.read()
    ids = {r["process"]["id"] for r in live.log.of(os.getpid())}
    assert len(ids) == 1


def test_a_process_whose_leader_has_ended(live: Live, acts: bytes, headless: subprocess.Popen[bytes]) -> None:
    live.log.read()
    (record,) = live.log.of(headless.pid, "process")
    assert record["executable"] == acts.decode()
    assert record["argv"] == [acts.decode(), "headless", "argument"]


def test_a_process_that_has_ended_has_no_event_and_no_identity(
    live: Live, ended: subprocess.Popen[bytes]
) -> None:
    assert Path(f"/proc/{ended.pid}").exists()
    assert not live.log.of(ended.pid)
    map = bpf.get(live.pins / "map_identities")
    try:
        pids = {IDENTITY_KEY.unpack(key)[1] for key in bpf.keys(map, IDENTITY_KEY.size)}
    finally:
        os.close(map)
    assert ended.pid not in pids
    assert os.getpid() in pids


def test_threads_of_the_kernel_have_no_program(live: Live) -> None:
    live.log.read()
    (record,) = live.log.of(2, "process")
    assert record["process"]["comm"] == "kthreadd"
    assert record["executable"] is None
