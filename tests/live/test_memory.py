"""mmap, against what the calls gave back, fstat and /proc/self/maps: any file, or none."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

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
    Facts,
    Memory,
    call,
    line_of,
    make,
    map_,
    map_file,
    mapped,
    opened,
)
from tests.live.witness import execute, libc

pytestmark = pytest.mark.kernel

CLONE_NEWNS, MS_NOEXEC, MS_PRIVATE, MS_REC = 0x20000, 8, 1 << 18, 0x4000


@pytest.mark.vm
def test_a_file(memory: Memory, folder: bytes) -> None:
    path = make(folder + b"/plain")

    def deed() -> Facts:
        file = opened(path)
        address = map_(PAGE + 7, READ | EXECUTE, SHARED, file, 2 * PAGE)
        return {**map_file(file), "address": address, "line": line_of(address)}

    done = memory.did(deed)
    said = {"length": PAGE + 7, "offset": 2 * PAGE, "flags": SHARED}
    same(done.one(), mapped(done.facts, path, **said) | memory.who(done))
    permissions, at, _, inode, name = done.facts["line"].split(None, 5)[1:]
    assert (permissions, int(at, 16)) == ("r-xs", 2 * PAGE)
    assert (int(inode), os.fsencode(name)) == (done.one()["inode"], path)


@pytest.mark.vm
@pytest.mark.parametrize(
    "name", [b"new\nline", b"\xff\xfe", b" ", "ž".encode(), b"file (deleted)", b"memfd:x", b"n" * 255]
)
def test_a_file_of_any_name(memory: Memory, folder: bytes, name: bytes) -> None:
    path = make(folder + b"/" + name)
    done = memory.did(lambda: map_file(opened(path)))
    same(done.one(), mapped(done.facts, path))


@pytest.fixture
def deep(ground: Path) -> Iterator[Callable[[int, int], tuple[int, bytes]]]:
    """Makes folders within folders until a path is so long, and a file at the end; (descriptor, path)."""
    top = ground / "deep"
    top.mkdir()

    def make_deep(length: int, name: int) -> tuple[int, bytes]:
        here, path = os.open(top, os.O_RDONLY), os.fsencode(top)
        while length - len(path) > name + 3:
            os.mkdir(b"d" * name, dir_fd=here)
            below = os.open(b"d" * name, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here, path = below, path + b"/" + b"d" * name
        last = b"f" * (length - len(path) - 1)
        file = os.open(last, os.O_RDWR | os.O_CREAT, dir_fd=here)
        os.close(here)
        os.ftruncate(file, PAGE)
        return file, path + b"/" + last

    yield make_deep
    subprocess.run(["rm", "-rf", top], check=True)  # Python would go too deep


@pytest.mark.parametrize(
    ("length", "name"), [pytest.param(4095, 200, marks=pytest.mark.vm), (4095, 1), (18_000, 59), (200, 40)]
)
def test_a_long_path(
    memory: Memory, deep: Callable[[int, int], tuple[int, bytes]], length: int, name: int
) -> None:
    file, path = deep(length, name)
    assert len(path) == length
    done = memory.did(lambda: map_file(file))
    os.close(file)
    assert "unsettled" not in done.one()
    same(done.one(), mapped(done.facts, path))


@pytest.mark.vm
def test_a_path_beyond_its_cap(memory: Memory, deep: Callable[[int, int], tuple[int, bytes]]) -> None:
    file, path = deep(70_000, 250)
    done = memory.did(lambda: map_file(file))
    os.close(file)
    record = done.one()
    assert record["unsettled"]["path"]["state"] == "capped"
    assert record["unsettled"]["path"]["of"] == len(path)
    assert path.decode().endswith(record["path"])
    assert len(record["path"]) == record["unsettled"]["path"]["have"] > 65_000


@pytest.mark.vm
def test_memory_without_a_file(memory: Memory) -> None:
    def deed() -> Facts:
        address = map_(PAGE, READ | WRITE | EXECUTE, PRIVATE | ANONYMOUS)
        return {"address": address, "line": line_of(address)}

    done = memory.did(deed)
    same(done.one(), mapped(done.facts, None, prot=7, flags=PRIVATE | ANONYMOUS))
    assert "rwxp" in done.facts["line"]


@pytest.mark.vm
def test_a_memfd(memory: Memory) -> None:
    def deed() -> Facts:
        file = os.memfd_create("in memory")
        os.ftruncate(file, PAGE)
        return map_file(file)

    done = memory.did(deed)
    same(done.one(), mapped(done.facts, b"memfd:in memory", memfd=True))


@pytest.mark.vm
def test_a_deleted_file(memory: Memory, folder: bytes) -> None:
    path = make(folder + b"/gone")

    def deed() -> Facts:
        file = opened(path)
        os.unlink(path)
        return map_file(file)

    done = memory.did(deed)
    same(done.one(), mapped(done.facts, path, deleted=True))


def mount(kind: str, at: bytes, options: str = "", flags: int = 0) -> None:
    """Mount in a mount namespace of the caller's own."""
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "unshare")
    if libc.mount(kind.encode(), at, kind.encode(), flags, options.encode()):
        raise OSError(ctypes.get_errno(), f"mount {kind}")


@pytest.mark.vm
def test_a_file_in_another_mount_namespace(memory: Memory, folder: bytes) -> None:
    def deed() -> Facts:
        mount("tmpfs", folder)
        return map_file(opened(make(folder + b"/a/b")))

    done = memory.did(deed)
    assert done.facts["device"] != os.stat(folder).st_dev
    same(done.one(), mapped(done.facts, folder + b"/a/b"))


@pytest.mark.vm
def test_a_file_of_an_overlay(memory: Memory, folder: bytes) -> None:
    def deed() -> Facts:
        mount("tmpfs", folder)
        make(folder + b"/lower/file")
        for name in (b"upper", b"work", b"merged"):
            os.mkdir(folder + b"/" + name)
        options = (f"{name}dir={os.fsdecode(folder)}/{name}" for name in ("lower", "upper", "work"))
        mount("overlay", folder + b"/merged", ",".join(options))
        file = opened(folder + b"/merged/file")
        later = map_(PAGE, READ | WRITE, PRIVATE, file)
        failed = call(libc.mprotect, later, PAGE, READ | EXECUTE)[1]
        return {**map_file(file), "later": later, "failed": failed}

    done = memory.did(deed)
    assert not done.facts["failed"]
    path = folder + b"/merged/file"
    same(done.one(), mapped(done.facts, path))
    expected = {key: done.facts[key] for key in ("inode", "device")}
    same(done.one("mprotect", done.facts["later"]), {**expected, "path": path.decode(), "deleted": False})


@pytest.mark.vm
@pytest.mark.parametrize("why", ["EINVAL", "EPERM", "EACCES"])
def test_a_mapping_that_fails(memory: Memory, folder: bytes, why: str) -> None:
    path = folder + b"/file"

    def deed() -> Facts:
        if why == "EPERM":
            mount("tmpfs", folder, flags=MS_NOEXEC)
        make(path)
        file = os.open(path, os.O_WRONLY if why == "EACCES" else os.O_RDONLY)
        flags = PRIVATE | FIXED if why == "EINVAL" else PRIVATE
        found = os.fstat(file)
        failed = call(libc.mmap, 1, PAGE, READ | EXECUTE, flags, file, 0)[1]
        said = {"errno": failed, "flags": flags}
        return {"address": None, "inode": found.st_ino, "device": found.st_dev, "said": said}

    done = memory.did(deed)
    assert done.facts["said"]["errno"] == getattr(errno, why)
    same(done.one(address=None), mapped(done.facts, path, **done.facts["said"]))


@pytest.mark.vm
def test_what_a_new_program_maps(memory: Memory, folder: bytes) -> None:
    """Its loader's mappings too; all that is seen of them is as its own maps say."""
    out = folder + b"/maps"

    def redirect() -> None:
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT), 9)

    act = execute(b"/bin/sh", [b"sh", b"-c", b"exec cat /proc/self/maps >&9"], before=redirect)
    records = [r for r in memory.of(act.pid) if r["kind"] == "mmap"]
    lines = [line.split(None, 5) for line in Path(os.fsdecode(out)).read_text().splitlines()]
    code = {
        int(where.partition("-")[0], 16): (name, int(inode), int(at, 16))
        for where, permissions, at, _, inode, name in (line for line in lines if len(line) == 6)
        if permissions == "r-xp" and name.startswith("/")
    }
    assert len(code) >= 3
    if memory.surface == "sys_exit":
        code = {at: said for at, said in code.items() if "/libc" in said[0]}
    for address, said in code.items():
        record = next(r for r in reversed(records) if r["address"] == address)
        assert (record["path"], record["inode"], record["offset"]) == said
        assert record["prot"] == READ | EXECUTE
