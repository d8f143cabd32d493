"""Memory that becomes executable, but not by mmap: mprotect, shared memory, a personality; races, storms."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.live.compare import same
from tests.live.memory import (
    ANONYMOUS,
    EXECUTE,
    FIXED,
    PAGE,
    PRIVATE,
    READ,
    SHARED,
    WRITE,
    Done,
    Facts,
    Memory,
    call,
    line_of,
    make,
    map_,
    mapped,
    opened,
    protected,
)
from tests.live.run import eventually
from tests.live.witness import execute, libc

pytestmark = [pytest.mark.kernel, pytest.mark.vm]

READ_IMPLIES_EXEC, SHM_EXEC, IPC_CREAT, IPC_RMID = 0x400000, 0o100000, 0o1000, 0
PKEY_MPROTECT = 329


def test_read_implies_exec(memory: Memory, folder: bytes) -> None:
    """The personality makes executable what is to be read: the LSM hooks say so."""
    path = make(folder + b"/file")

    def deed() -> Facts:
        assert libc.personality(READ_IMPLIES_EXEC) != -1
        address = map_(PAGE, READ, PRIVATE, opened(path))
        later = map_(PAGE, WRITE, PRIVATE | ANONYMOUS)
        call(libc.mprotect, later, PAGE, READ)
        return {"address": address, "line": line_of(address), "later": later}

    done = memory.did(deed)
    assert " r-xp " in done.facts["line"]
    found = done.of("mmap", done.facts["address"]) + done.of("mprotect", done.facts["later"])
    assert [r["prot"] for r in found] == {
        "lsm": [READ | EXECUTE, READ | EXECUTE],
        "fexit": [READ, READ | EXECUTE],
        "sys_exit": [READ, READ] if memory.is_all else [],
    }[memory.surface]


def test_shared_memory(memory: Memory) -> None:
    def deed() -> Facts:
        segment = libc.shmget(0, 3 * PAGE, IPC_CREAT | 0o700)
        address, failed = call(libc.shmat, segment, None, SHM_EXEC)
        libc.shmctl(segment, IPC_RMID, None)
        assert not failed
        return {"address": address, "line": line_of(address)}

    done = memory.did(deed)
    assert " rwxs " in done.facts["line"]
    if memory.surface != "lsm":
        assert not done.of("mmap", done.facts["address"])
        return
    device, inode = done.facts["line"].split()[3:5]
    major, minor = (int(part, 16) for part in device.split(":"))
    done.facts |= {"inode": int(inode) or None, "device": os.makedev(major, minor)}
    same(done.one(), mapped(done.facts, b"SYSV00000000", length=3 * PAGE, prot=7, flags=SHARED))


def test_what_cannot_be_executed(memory: Memory, folder: bytes) -> None:
    path = make(folder + b"/file")

    def deed() -> Facts:
        address = map_(PAGE, READ | WRITE, PRIVATE, opened(path))
        return {"address": address, "failed": call(libc.mprotect, address, PAGE, READ)[1]}

    done = memory.did(deed)
    kinds = [r["kind"] for r in done.records if r["address"] == done.facts["address"]]
    assert kinds == (["mmap", "mprotect"] if memory.is_all else [])


def test_mprotect_of_memory_without_a_file(memory: Memory) -> None:
    def deed() -> Facts:
        address = map_(2 * PAGE, READ | WRITE, PRIVATE | ANONYMOUS)
        return {"address": address, "failed": call(libc.mprotect, address, PAGE + 1, READ | EXECUTE)[1]}

    done = memory.did(deed)
    assert not done.facts["failed"]
    expected = protected(done.facts["address"], length=PAGE + 1)
    same(done.one("mprotect"), expected | memory.who(done))


def test_mprotect_of_a_file(memory: Memory, folder: bytes) -> None:
    path = make(folder + b"/file")

    def deed() -> Facts:
        file = opened(path)
        found = os.fstat(file)
        address = map_(3 * PAGE, READ, PRIVATE, file) + PAGE
        os.close(file)
        os.unlink(path)
        failed = libc.syscall(PKEY_MPROTECT, ctypes.c_void_p(address), PAGE, READ | EXECUTE, -1)
        facts = {"address": address, "inode": found.st_ino, "device": found.st_dev, "failed": failed}
        return {**facts, "line": line_of(address)}

    done = memory.did(deed)
    assert not done.facts["failed"]
    assert " r-xp " in done.facts["line"]
    said = {key: done.facts[key] for key in ("inode", "device")}
    expected = protected(done.facts["address"], **said, path=path.decode(), deleted=True, old_prot=READ)
    same(done.one("mprotect"), expected)


def test_one_mprotect_of_several_mappings(memory: Memory, folder: bytes) -> None:
    """The first that becomes executable stands for all; one that is so already does not."""
    paths = [make(folder + b"/" + name) for name in (b"0", b"1", b"2")]

    def deed() -> Facts:
        address = map_(3 * PAGE, READ, PRIVATE | ANONYMOUS)
        for number, (path, prot) in enumerate(zip(paths, (READ | EXECUTE, READ, READ | WRITE), strict=True)):
            map_(PAGE, prot, PRIVATE | FIXED, opened(path), 0, address + number * PAGE)
        return {"address": address, "failed": call(libc.mprotect, address, 3 * PAGE, READ | EXECUTE)[1]}

    done = memory.did(deed)
    assert not done.facts["failed"]
    first = 0 if memory.is_all else 1
    found = os.stat(paths[first])
    said = {"inode": found.st_ino, "device": found.st_dev, "path": paths[first].decode(), "length": 3 * PAGE}
    expected = protected(done.facts["address"], **said, old_prot=READ if first else READ | EXECUTE)
    same(done.one("mprotect"), expected)


def test_mprotect_of_what_is_executable(memory: Memory) -> None:
    def deed() -> Facts:
        address = map_(PAGE, READ | WRITE | EXECUTE, PRIVATE | ANONYMOUS)
        return {"address": address, "failed": call(libc.mprotect, address, PAGE, READ | EXECUTE)[1]}

    done = memory.did(deed)
    assert len(done.of("mprotect", done.facts["address"])) == (memory.is_all or memory.surface == "sys_exit")


def test_mprotect_that_fails(memory: Memory) -> None:
    """Before any mapping, and after the first."""

    def deed() -> Facts:
        address = map_(3 * PAGE, READ | WRITE, PRIVATE | ANONYMOUS)
        libc.munmap(address + PAGE, PAGE)
        errors = [call(libc.mprotect, address + n * PAGE, 2 * PAGE, READ | EXECUTE)[1] for n in (0, 1)]
        return {"address": address, "errors": errors}

    done = memory.did(deed)
    assert done.facts["errors"] == [errno.ENOMEM] * 2
    said = {"length": 2 * PAGE, "errno": errno.ENOMEM}
    address = done.facts["address"]
    same(done.one("mprotect"), protected(address, **said))
    same(done.one("mprotect", address + PAGE), protected(address + PAGE, **said, old_prot=None))


def test_a_32_bit_call(memory: Memory, acts: bytes, folder: bytes) -> None:
    path, out = make(folder + b"/file"), folder + b"/said"

    def redirect() -> None:
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT), 9)

    act = execute(acts, [b"acts", b"map-32", path], before=redirect)
    assert act.status == 0
    address, later = (int(word) for word in Path(os.fsdecode(out)).read_text().split())
    done = Done({"address": address}, memory.of(act.pid))
    found = os.stat(path)
    said = {"inode": found.st_ino, "device": found.st_dev, "offset": 2 * PAGE, "length": PAGE + 7}
    same(done.one(), mapped(done.facts, path, **said))
    same(done.one("mprotect", later), protected(later, old_prot=READ))


def test_threads_that_race(memory: Memory, folder: bytes) -> None:
    """Each event has the file of its own thread, at the address that its call gave back."""
    paths = [make(folder + b"/%d" % number) for number in range(4)]

    def deed() -> Facts:
        found: dict[str, Any] = {}

        def race(path: bytes) -> None:
            file = opened(path)
            made = found[str(threading.get_native_id())] = []
            for _ in range(50):
                address = map_(PAGE, READ | EXECUTE, PRIVATE, file)
                later = map_(PAGE, READ, PRIVATE, file)
                assert not call(libc.mprotect, later, PAGE, READ | EXECUTE)[1]
                made += [["mmap", address, os.fsdecode(path)], ["mprotect", later, os.fsdecode(path)]]

        threads = [threading.Thread(target=race, args=(path,)) for path in paths]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"made": found}

    done = memory.did(deed)
    told: dict[str, list[Any]] = {tid: [] for tid in done.facts["made"]}
    for record in done.records:
        tid = str(record["process"]["tid"])
        if tid in told and record["prot"] & EXECUTE:
            told[tid].append([record["kind"], record["address"], record["path"]])
    if memory.surface == "sys_exit":  # it does not know the file of an mprotect
        for made in done.facts["made"].values():
            made[1::2] = [[kind, address, None] for kind, address, _ in made[1::2]]
    kept = {tid: [event for event in made if event in told[tid]] for tid, made in done.facts["made"].items()}
    assert told == kept
    missing = sum(map(len, done.facts["made"].values())) - sum(map(len, told.values()))
    assert missing <= memory.live.skipped("mmap", "mprotect")


def test_a_storm_leaves_nothing_open(memory: Memory) -> None:
    rounds = 300

    def deed() -> Facts:
        errors = []
        for _ in range(rounds):
            address = map_(PAGE, READ | WRITE, PRIVATE | ANONYMOUS)
            errors.append(call(libc.mprotect, address, PAGE, READ | EXECUTE)[1])
            libc.munmap(address, PAGE)
            errors.append(call(libc.mprotect, address, PAGE, READ | EXECUTE)[1])
            errors.append(call(libc.mmap, 1, PAGE, READ | EXECUTE, PRIVATE | ANONYMOUS | FIXED, -1, 0)[1])
        return {"errors": errors}

    done = memory.did(deed)
    assert done.facts["errors"] == [0, errno.ENOMEM, errno.EINVAL] * rounds
    told = [r["errno"] for r in done.records if r["kind"] == "mprotect" or r["prot"] & EXECUTE]
    assert told == done.facts["errors"]
    eventually(lambda: memory.live.joins() == 0, "the last join to end")
    losses = [row for row in memory.live.ledger()["losses"] if row["kind"] in ("mmap", "mprotect")]
    lost = Counter[str]()
    for row in losses:
        lost[row["reason"]] += row["count"]
    # A call whose end the kernel skipped is found again by its join, which expires.
    assert set(+lost) <= {"skipped", "expired"}
    assert lost["expired"] <= lost["skipped"]
