"""Modules of the kernel's own tree, loaded, refused and removed by the test's own calls: against /sys/module,
/proc/modules and what the calls returned.
"""

from __future__ import annotations

import ctypes
import errno
import json
import lzma
import os
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from tests.live.compare import ran, same, who
from tests.live.run import Live, Record, eventually
from tests.live.skipped import expired, without
from tests.live.witness import fork, libc, spoken

pytestmark = [pytest.mark.kernel, pytest.mark.vm]

INIT, DELETE, FINIT = 175, 176, 313
COMPRESSED: Final = 4
UNSIGNED: Final = 13
TAINTS: Final = "PFSRMBUDAWCIOELKXTN"
"""Letters in /sys/module/NAME/taint, by bits."""
SIGNATURE: Final = b"~Module signature appended~\n"
VERSIONED: Final = "tcp_illinois"
NEVER_STARTS: Final = "coretemp"
"""A driver of hardware that no virtual machine has."""


@dataclass(frozen=True)
class Module:
    """One of the kernel's own modules."""

    name: str
    packed: Path
    image: bytes

    @classmethod
    @cache
    def find(cls, name: str) -> Module:
        """By its name, wherever this kernel keeps it: a long look, inside a virtual machine."""
        folder = Path("/lib/modules") / os.uname().release / "kernel"
        path = next(folder.rglob(f"{name.replace('_', '[-_]')}.ko*"))
        data = path.read_bytes()
        return cls(name, path, lzma.decompress(data) if path.suffix == ".xz" else data)

    def shown(self) -> dict[str, Any]:
        """What the kernel shows of it while it is loaded, as its events should have it."""
        folder = Path("/sys/module") / self.name
        letters = (folder / "taint").read_text().strip()
        line = next(line for line in proc_modules() if line[0] == self.name)
        version = folder / "srcversion"  # only of modules that have a version
        return {
            "name": self.name,
            "base": int(line[5], 16),
            "size": int((folder / "coresize").read_text()),
            "taints": sum(1 << TAINTS.index(letter) for letter in letters),
            "srcversion": version.read_text().strip() if version.exists() else None,
        }


NOWHERE: Final = {"base": None, "size": None, "taints": None, "srcversion": None}
"""What is known of where a module lies that was not loaded."""
NO_FILE: Final = {"path": None, "inode": None, "device": None}


def proc_modules() -> list[list[str]]:
    return [line.split() for line in Path("/proc/modules").read_text().splitlines()]


def from_file(path: Path, parameters: bytes = b"", flags: int = 0) -> int:
    """finit_module; its errno."""
    file = os.open(path, os.O_RDONLY)
    try:
        return _called(FINIT, file, parameters, flags)
    finally:
        os.close(file)


def from_memory(image: bytes, parameters: bytes = b"") -> int:
    """init_module; its errno."""
    return _called(INIT, image, ctypes.c_size_t(len(image)), parameters)


def remove(name: str) -> int:
    """delete_module; its errno."""
    return _called(DELETE, name.encode(), os.O_NONBLOCK)


def _called(*arguments: Any) -> int:
    return ctypes.get_errno() if libc.syscall(*arguments) else 0


@pytest.fixture
def dummy(live: Live, tmp_path: Path) -> Module:
    """A module of which nothing is loaded; its image lies in dummy.ko of tmp_path."""
    live.need("module_load", "module_unload")
    module = Module.find("dummy")
    remove(module.name)
    (tmp_path / "dummy.ko").write_bytes(module.image)
    return module


def done(live: Live, kind: str, path: Path, call: Callable[[], int]) -> tuple[Record, int]:
    """The one event of this kind that a child's call made, its process compared; and the call's errno."""
    note = path / "note"
    act = fork(spoken(note, lambda: {"errno": call(), **who()}))
    assert act.status == 0
    said = json.loads(note.read_text())
    result = said.pop("errno")
    live.ended(act.pid)
    found = live.log.of(act.pid, kind)
    assert len(found) == 1, f"{kind} after errno {result}: {found}"
    same(found[0], {**said, **ran(live.log, by_child=True)})
    return found[0], result


def file_of(path: Path) -> dict[str, Any]:
    found = path.stat()
    return {"path": str(path.resolve()), "inode": found.st_ino, "device": found.st_dev}


def unreadable(module: Module, folder: Path) -> Path:
    """A file of which no image comes: the call ends before load_module."""
    path = folder / f"{module.name}.ko.xz"
    path.write_bytes(lzma.compress(module.image)[:1000])
    return path


def test_a_load_from_a_file_and_its_removal(live: Live, dummy: Module, tmp_path: Path) -> None:
    path = tmp_path / "dummy.ko"
    record, result = done(live, "module_load", tmp_path, lambda: from_file(path, b"numdummies=2"))
    assert result == 0
    shown = dummy.shown()
    signed = not shown["taints"] >> UNSIGNED & 1
    same(record, {**shown, **file_of(path), "errno": 0, "sig_ok": signed, "parameters": "numdummies=2"})
    record, result = done(live, "module_unload", tmp_path, lambda: remove("dummy"))
    assert result == 0
    same(record, shown)


def test_a_load_from_memory(live: Live, dummy: Module, tmp_path: Path) -> None:
    """Of a module that has a version, and with it a hash of its sources."""
    module = Module.find(VERSIONED)
    remove(module.name)
    record, result = done(live, "module_load", tmp_path, lambda: from_memory(module.image))
    assert result == 0
    shown = module.shown()
    assert shown["srcversion"]
    same(record, {**shown, **NO_FILE, "errno": 0, "parameters": ""})
    record, result = done(live, "module_unload", tmp_path, lambda: remove(module.name))
    assert result == 0
    same(record, shown)


def test_one_that_is_there_already(live: Live, dummy: Module, tmp_path: Path) -> None:
    path = tmp_path / "dummy.ko"
    assert from_file(path) == 0
    record, result = done(live, "module_load", tmp_path, lambda: from_file(path, b"numdummies=3"))
    assert result == errno.EEXIST
    same(record, {**NOWHERE, **file_of(path), "name": "dummy", "errno": result, "parameters": "numdummies=3"})
    assert remove("dummy") == 0


@pytest.mark.parametrize("content", [b"no module", b"\x7fELF" + bytes(500)], ids=["text", "zeros"])
def test_what_is_no_module(live: Live, dummy: Module, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "none.ko"
    path.write_bytes(content)
    record, result = done(live, "module_load", tmp_path, lambda: from_file(path))
    assert result in (errno.ENOEXEC, errno.EINVAL)
    same(
        record,
        {**NOWHERE, **file_of(path), "name": None, "errno": result, "sig_ok": False, "parameters": ""},
    )


def test_a_signature_that_is_wrong(live: Live, dummy: Module, tmp_path: Path) -> None:
    assert dummy.image.endswith(SIGNATURE), "Debian signs its modules"
    path = tmp_path / "altered.ko"
    altered = bytearray(dummy.image)
    altered[len(altered) // 2] ^= 1
    path.write_bytes(altered)
    record, result = done(live, "module_load", tmp_path, lambda: from_file(path))
    assert result in (errno.EKEYREJECTED, errno.EBADMSG)
    same(record, {**NOWHERE, **file_of(path), "name": "dummy", "errno": result, "sig_ok": False})


def test_no_signature(live: Live, dummy: Module, tmp_path: Path) -> None:
    """The kernel loads it, and is tainted."""
    path = tmp_path / "unsigned.ko"
    path.write_bytes(dummy.image.removesuffix(SIGNATURE))
    record, result = done(live, "module_load", tmp_path, lambda: from_file(path))
    assert result == 0
    shown = dummy.shown()
    assert shown["taints"] >> UNSIGNED & 1
    same(record, {**shown, **file_of(path), "errno": 0, "sig_ok": False})
    assert remove("dummy") == 0


def test_a_parameter_that_is_wrong(live: Live, dummy: Module, tmp_path: Path) -> None:
    record, result = done(live, "module_load", tmp_path, lambda: from_memory(dummy.image, b"numdummies=some"))
    assert result == errno.EINVAL
    same(record, {**NOWHERE, **NO_FILE, "name": "dummy", "errno": result, "parameters": "numdummies=some"})


def test_a_start_that_fails(live: Live, dummy: Module, tmp_path: Path) -> None:
    """It had its place, and loses it again."""
    module = Module.find(NEVER_STARTS)
    note = tmp_path / "note"
    act = fork(spoken(note, lambda: {"errno": from_memory(module.image)}))
    result = json.loads(note.read_text())["errno"]
    assert result == errno.ENODEV
    live.ended(act.pid)
    loaded, unloaded = (live.log.of(act.pid, kind)[0] for kind in ("module_load", "module_unload"))
    same(loaded, {"name": module.name, "errno": result, **NO_FILE})
    same(loaded, {key: unloaded[key] for key in ("base", "size", "taints", "srcversion")})
    assert loaded["base"]


@pytest.mark.parametrize("length", [600, 3900])
def test_a_long_path(live: Live, dummy: Module, tmp_path: Path, length: int) -> None:
    path = tmp_path / "line\nbreak"
    while len(str(path)) < length:
        path /= "x" * min(200, length - len(str(path)))
    path.mkdir(parents=True)
    path /= "dummy.ko"
    path.write_bytes(dummy.image)
    record, result = done(live, "module_load", tmp_path, lambda: from_file(path))
    assert result == 0
    same(record, file_of(path))
    assert remove("dummy") == 0


@pytest.mark.parametrize(("length", "whole"), [(2000, True), (5000, False)])
def test_long_parameters(live: Live, dummy: Module, tmp_path: Path, length: int, whole: bool) -> None:
    """What there is no room for is told, and what came before it kept."""
    given = b"numdummies=0 " + b"x" * length
    record, _ = done(live, "module_load", tmp_path, lambda: from_memory(dummy.image, given))
    assert given.decode().startswith(record["parameters"])
    assert ("parameters" not in record.get("unsettled", ())) is whole
    assert (len(record["parameters"]) == len(given)) is whole
    remove("dummy")


def test_a_compressed_file(live: Live, dummy: Module, tmp_path: Path) -> None:
    if dummy.packed.suffix == ".xz" and from_file(dummy.packed, flags=COMPRESSED) == 0:
        assert remove("dummy") == 0
        record, result = done(
            live, "module_load", tmp_path, lambda: from_file(dummy.packed, flags=COMPRESSED)
        )
        assert result == 0
        same(record, {**dummy.shown(), **file_of(dummy.packed)})
        assert remove("dummy") == 0
    broken = unreadable(dummy, tmp_path)
    record, result = done(live, "module_load", tmp_path, lambda: from_file(broken, flags=COMPRESSED))
    assert result
    same(record, {**NOWHERE, **file_of(broken), "name": None, "errno": result, "sig_ok": None})


def by_32_bit_call(live: Live, acts: bytes, path: Path, flags: int = 0) -> tuple[Record, int]:
    """The one event of such a load; and the call's errno."""
    command = [acts, b"finit-32", os.fsencode(path), b"numdummies=2", b"%d" % flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        result = -int(process.communicate()[0])
    if result == errno.ENOSYS:
        pytest.skip("NOT TESTED: this kernel has no 32-bit calls")
    live.ended(process.pid)
    (record,) = live.log.of(process.pid, "module_load")
    same(record, {**file_of(path), "errno": result, "parameters": "numdummies=2"})
    return record, result


def test_32_bit_calls(live: Live, dummy: Module, acts: bytes, tmp_path: Path) -> None:
    record, result = by_32_bit_call(live, acts, tmp_path / "dummy.ko")
    assert result == 0
    same(record, dummy.shown())
    assert remove("dummy") == 0
    record, result = by_32_bit_call(live, acts, unreadable(dummy, tmp_path), COMPRESSED)
    assert result
    same(record, {**NOWHERE, "name": None, "sig_ok": None})


def test_loads_that_race(live: Live, dummy: Module, tmp_path: Path) -> None:
    """Each has the file that it came from."""
    modules = [dummy, Module.find("ifb")]
    pids = []
    for module in modules:
        path = tmp_path / f"{module.name}.ko"
        path.write_bytes(module.image)
        remove(module.name)
        pids.append(os.fork())
        if not pids[-1]:
            for _ in range(5):
                from_file(path)
                remove(module.name)
            os._exit(0)
    for pid in pids:
        os.waitpid(pid, 0)
    for pid, module in zip(pids, modules, strict=True):
        live.ended(pid)
        records = live.log.of(pid, "module_load")
        assert len(records) == 5
        for record in records:
            same(record, {"name": module.name, "errno": 0, **file_of(tmp_path / f"{module.name}.ko")})
        assert len(live.log.of(pid, "module_unload")) == 5


def test_a_request_for_a_module(live: Live, tmp_path: Path) -> None:
    live.need("module_request")
    family = 27
    """No kernel has sockets of it, and no module gives them."""

    def ask() -> int:
        try:
            socket.socket(family, socket.SOCK_STREAM).close()
        except OSError as error:
            return error.errno or 0
        return 0

    record, result = done(live, "module_request", tmp_path, ask)
    assert result == errno.EAFNOSUPPORT
    same(record, {"name": f"net-pf-{family}"})


FINIT_ENDS: Final = "fexit/__x64_sys_finit_module"


def test_a_load_whose_end_is_not_seen_lends_its_file_to_no_other(
    live: Live, dummy: Module, tmp_path: Path
) -> None:
    before = expired(live, "module_load")
    broken = unreadable(dummy, tmp_path)

    def call() -> int:
        assert from_file(broken, flags=COMPRESSED)
        return from_memory(dummy.image)

    with without(live, "module_load", FINIT_ENDS):
        record, result = done(live, "module_load", tmp_path, call)
    assert result == 0
    same(record, {**dummy.shown(), **NO_FILE})
    assert remove("dummy") == 0
    assert live.joins() == 0
    assert expired(live, "module_load") == before + 1


def test_one_whose_end_is_not_seen_ends_with_its_task(live: Live, dummy: Module, tmp_path: Path) -> None:
    before = expired(live, "module_load")
    broken = unreadable(dummy, tmp_path)
    with without(live, "module_load", FINIT_ENDS):
        act = fork(lambda: from_file(broken, flags=COMPRESSED))
    live.ended(act.pid)
    assert live.log.of(act.pid, "module_load") == []
    assert live.joins() == 0
    assert expired(live, "module_load") == before + 1


def test_no_join_stays_open(live: Live, dummy: Module) -> None:
    """After all of these: nothing that one hook remembered still waits for another."""
    eventually(lambda: live.joins() == 0, "all joins to end")
