"""exec: whose process it is: ids, login, namespaces, cgroup, parent."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from tests.live.run import Live
from tests.live.witness import execute, libc, spoken

CLONE_NEWS = 0x00020000 | 0x04000000 | 0x08000000 | 0x40000000  # mount, UTS, IPC, network

pytestmark = pytest.mark.kernel


def test_users_and_groups(live: Live, acts: bytes) -> None:
    def become() -> None:
        os.setresgid(54322, 54323, 54323)
        os.setresuid(54321, 0, 0)

    record = live.exec_of(execute(acts, [b"x"], before=become))
    assert (record["process"]["uid"], record["euid"]) == (54321, 0)
    assert (record["process"]["gid"], record["egid"]) == (54322, 54323)


@pytest.mark.vm
def test_a_setuid_program(live: Live, acts: bytes, ground: Path) -> None:
    program = ground / "setuid"
    shutil.copy(os.fsdecode(acts), program)
    os.chown(program, 4321, 4322)
    program.chmod(0o755 | stat.S_ISUID | stat.S_ISGID)

    def become() -> None:
        os.setgroups([])
        os.setresgid(777, 777, 777)
        os.setresuid(777, 777, 777)

    record = live.exec_of(execute(os.fsencode(program), [b"x"], before=become))
    assert (record["process"]["uid"], record["euid"]) == (777, 4321)
    assert (record["process"]["gid"], record["egid"]) == (777, 4322)


def own_ids() -> dict[str, int]:
    return {name: int(Path(f"/proc/self/{name}").read_text()) for name in ("loginuid", "sessionid")}


def test_login_and_session(live: Live, acts: bytes) -> None:
    record = live.exec_of(execute(acts, [b"x"]))
    own = own_ids()
    unset = 0xFFFFFFFF
    assert record["loginuid"] == (None if own["loginuid"] == unset else own["loginuid"])
    assert record["session"] == (None if own["sessionid"] == unset else own["sessionid"])


def test_a_login(live: Live, acts: bytes, tmp_path: Path) -> None:
    def log_in() -> dict[str, int]:
        Path("/proc/self/loginuid").write_text("4242")
        return own_ids()

    record = live.exec_of(execute(acts, [b"x"], before=spoken(tmp_path / "said", log_in)))
    said = json.loads((tmp_path / "said").read_text())
    assert record["loginuid"] == said["loginuid"] == 4242
    assert record["session"] == said["sessionid"]


def own_namespaces() -> dict[str, int]:
    return {
        name: os.stat(f"/proc/self/ns/{name}").st_ino
        for name in ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
    }


def test_namespaces(live: Live, acts: bytes) -> None:
    assert live.exec_of(execute(acts, [b"x"]))["namespaces"] == own_namespaces()


@pytest.mark.vm
def test_namespaces_of_its_own(live: Live, acts: bytes, tmp_path: Path) -> None:
    def leave() -> dict[str, int]:
        assert libc.unshare(ctypes.c_int(CLONE_NEWS)) == 0
        return own_namespaces()

    record = live.exec_of(execute(acts, [b"x"], before=spoken(tmp_path / "said", leave)))
    said = json.loads((tmp_path / "said").read_text())
    assert record["namespaces"] == said
    assert {k for k, v in own_namespaces().items() if said[k] != v} == {"mnt", "uts", "ipc", "net"}
    assert record["executable"] == acts.decode()


def test_the_cgroup_is_right_or_unknown(live: Live, acts: bytes) -> None:
    record = live.exec_of(execute(acts, [b"x"]))
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        own = Path("/proc/self/cgroup").read_text().partition("::")[2].strip()
        assert record["process"]["cgroup"] == os.stat(root / own.lstrip("/")).st_ino
    else:
        assert record["process"]["cgroup"] is None


@pytest.mark.vm
def test_a_thread_that_is_not_the_leader(live: Live, acts: bytes) -> None:
    first, second = live.execs_of(execute(acts, [b"acts", b"thread-exec", acts, b"by-thread"]))
    assert second["argv"] == [acts.decode(), "by-thread"]
    assert second["process"]["pid"] == second["process"]["tid"] == first["process"]["pid"]
    assert second["process"]["id"] == first["process"]["id"]


def test_what_a_process_is_and_where_it_comes_from(live: Live, acts: bytes) -> None:
    record = live.exec_of(execute(acts, [b"x"]))
    process = record["process"]
    assert process["tid"] == process["ns_pid"] == process["pid"]
    assert process["parent"]["pid"] == os.getpid()
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    assert process["parent"]["start"] // 10_000_000 == int(ticks)
    assert record["id"] == process["exec_id"]
    assert record["schema"] == "exec/2"
    assert record["surface"] == live.kinds["exec"]
