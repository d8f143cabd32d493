"""exec_failed: path, arguments and errno of what did not run, read again from where the caller has them."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from pathlib import Path

import pytest

from tests.live.run import Live, Record
from tests.live.witness import Act, Arguments, as_record, execute, libc

pytestmark = pytest.mark.kernel

NOWHERE = b"/nonexistent/program"
ENVIRONMENT = [b"PATH=/bin", b"MARK=hunter2"]
PT_LOAD = 1
ADDR_NO_RANDOMIZE = 0x0040000
UNREADABLE = 0x1000
"""Nothing is ever mapped there."""


def failed(live: Live, act: Act) -> Record:
    """The one failed exec of a process."""
    live.ended(act.pid)
    (record,) = live.log.of(act.pid, "exec_failed")
    return record


def failed_with(live: Live, act: Act, number: int) -> Record:
    """The same, and the errno as both sides saw it."""
    record = failed(live, act)
    assert os.waitstatus_to_exitcode(act.status) == record["errno"] == number
    return record


@pytest.mark.vm
def test_there_is_no_such_file(live: Live) -> None:
    argv = [b"zero", b"", b"two\n", b"\xff"]
    record = failed_with(live, execute(NOWHERE, argv, ENVIRONMENT), errno.ENOENT)
    assert record["path"] == NOWHERE.decode()
    assert record["argv"] == [as_record(a) for a in argv]
    assert record["argc"] == 4
    assert record["environment"] == ["PATH=/bin", "MARK=***"]
    assert record["envc"] == 2
    assert record["interpreter"] is None
    assert record["cwd"] == os.getcwd()
    assert record["executable"] == os.path.realpath("/proc/self/exe")
    assert record["process"]["parent"]["pid"] == os.getpid()
    assert record["id"] != record["process"]["exec_id"]
    assert "unsettled" not in record


@pytest.mark.parametrize(
    ("content", "mode", "number"),
    [
        (b"#!/bin/sh\n", 0o644, errno.EACCES),
        (b"\x7fnothing", 0o755, errno.ENOEXEC),
        (b"#!/none\n", 0o755, errno.ENOENT),
    ],
)
def test_files_that_do_not_run(live: Live, tmp_path: Path, content: bytes, mode: int, number: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    path.chmod(mode)
    record = failed_with(live, execute(os.fsencode(path), [b"x"]), number)
    assert record["path"] == str(path)
    assert record["argv"] == ["x"]


@pytest.mark.vm
def test_folders_and_loops(live: Live, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert failed_with(live, execute(os.fsencode(loop), [b"x"]), errno.ELOOP)["path"] == str(loop)
    failed_with(live, execute(os.fsencode(tmp_path), [b"x"]), errno.EACCES)
    failed_with(live, execute(b"/etc/passwd/x", [b"x"]), errno.ENOTDIR)
    assert failed_with(live, execute(b"", [b"x"]), errno.ENOENT)["path"] == ""


@pytest.mark.parametrize(
    ("length", "number"), [(4095, errno.ENOENT), (4096, errno.ENAMETOOLONG), (8191, errno.ENAMETOOLONG)]
)
def test_a_long_path(live: Live, length: int, number: int) -> None:
    path = (b"/ppppppp" * 1024)[:length]
    record = failed_with(live, execute(path, [b"x"]), number)
    assert record["path"] == path.decode()
    assert record["argv"] == ["x"]
    assert "unsettled" not in record


def test_a_path_longer_than_is_read(live: Live) -> None:
    record = failed_with(live, execute(b"/" + b"p" * 9000, [b"x"]), errno.ENAMETOOLONG)
    settled = record["unsettled"]["path"]
    assert (settled["state"], settled["have"], settled["of"]) == ("capped", 8191, None)
    assert record["path"] == "/" + "p" * 8190
    assert record["argv"] == ["x"]


@pytest.mark.vm
def test_one_argument_is_too_long(live: Live) -> None:
    record = failed_with(
        live, execute(b"/bin/true", [b"true", b"a" * 131_072, b"after"], ENVIRONMENT), errno.E2BIG
    )
    assert record["argv"] == ["true", "a" * 131_071]
    settled = record["unsettled"]["argv"]
    assert (settled["state"], settled["have"], settled["of"]) == ("capped", 5 + 131_071, None)
    assert record["argc"] is None
    assert record["environment"] == ["PATH=/bin", "MARK=***"]


def test_too_many_bytes(live: Live) -> None:
    argv = [b"true", *(b"%c" % (65 + i) * 131_071 for i in range(17))]
    record = failed_with(live, execute(b"/bin/true", argv, ENVIRONMENT), errno.E2BIG)
    of = sum(len(a) + 1 for a in argv)
    settled = record["unsettled"]["argv"]
    assert (settled["state"], settled["have"], settled["of"]) == ("capped", 2 << 20, of)
    assert record["argv"] == [k.decode() for k in b"\0".join(argv)[: 2 << 20].split(b"\0")]
    assert record["environment"] == ["PATH=/bin", "MARK=***"]


@pytest.mark.vm
def test_many_strings(live: Live) -> None:
    argv = [b"%d" % i for i in range(3900)]
    record = failed_with(live, execute(NOWHERE, argv, ENVIRONMENT), errno.ENOENT)
    assert record["argv"] == [a.decode() for a in argv]
    assert record["environment"] == ["PATH=/bin", "MARK=***"]
    assert "unsettled" not in record


def test_more_strings_than_can_be_read(live: Live) -> None:
    argv = [b"%d" % i for i in range(20_000)]
    record = failed_with(live, execute(NOWHERE, argv, ENVIRONMENT), errno.ENOENT)
    settled = record["unsettled"]
    assert settled["argv"]["state"] == settled["environment"]["state"] == "capped"
    assert settled["argv"]["of"] is None
    had = len(record["argv"])
    assert had > 3900
    assert record["argv"] == [a.decode() for a in argv[:had]]


@pytest.mark.vm
def test_a_path_that_cannot_be_read(live: Live) -> None:
    record = failed_with(live, execute(UNREADABLE, [b"x", b"y"]), errno.EFAULT)
    assert record["path"] is None
    assert record["unsettled"]["path"]["state"] == "fault"
    assert record["argv"] == ["x", "y"]


def test_arguments_that_cannot_be_read(live: Live) -> None:
    record = failed_with(live, execute(NOWHERE, UNREADABLE, ENVIRONMENT), errno.ENOENT)
    assert record["path"] == NOWHERE.decode()
    assert record["unsettled"]["argv"]["state"] == "fault"
    assert record["unsettled"]["argv"]["have"] == 0
    assert record["argv"] is None
    assert record["argc"] is None
    assert record["environment"] == ["PATH=/bin", "MARK=***"]


def test_one_argument_that_cannot_be_read(live: Live) -> None:
    first = ctypes.create_string_buffer(b"first")
    array = (ctypes.c_void_p * 4)(ctypes.addressof(first), UNREADABLE, ctypes.addressof(first), None)
    record = failed_with(live, execute(NOWHERE, ctypes.addressof(array)), errno.ENOENT)
    assert record["unsettled"]["argv"]["state"] == "fault"
    assert record["argv"] == ["first"]


def test_an_environment_that_cannot_be_read(live: Live) -> None:
    argv = Arguments([b"x"])
    record = failed_with(live, execute(NOWHERE, argv.address, UNREADABLE), errno.ENOENT)
    assert record["argv"] == ["x"]
    assert record["unsettled"]["environment"]["state"] == "fault"


@pytest.mark.vm
def test_a_32_bit_caller(live: Live, acts: bytes) -> None:
    record = failed_with(
        live, execute(acts, [b"acts", b"exec-32", NOWHERE, b"zero", b"", b"\xff"]), errno.ENOENT
    )
    assert record["path"] == NOWHERE.decode()
    assert record["argv"] == ["zero", "", b"\xff"]
    assert record["environment"] == ["A=***"]
    assert record["executable"] == acts.decode()
    assert "unsettled" not in record


@pytest.mark.vm
def test_execveat(live: Live, acts: bytes, tmp_path: Path) -> None:
    record = failed_with(
        live, execute(acts, [b"acts", b"at", os.fsencode(tmp_path), b"none", b"x"], ENVIRONMENT), errno.ENOENT
    )
    assert record["path"] == "none"
    assert record["argv"] == ["x"]
    assert record["environment"] == ["PATH=/bin", "MARK=***"]


@pytest.mark.vm
def test_past_the_point_of_no_return_nothing_is_made_up(live: Live, acts: bytes, tmp_path: Path) -> None:
    """The caller's memory is gone by then; where its strings were, something else can be read."""
    image = bytearray(Path(os.fsdecode(acts)).read_bytes())
    (table,) = struct.unpack_from("<Q", image, 32)
    size, count = struct.unpack_from("<HH", image, 54)
    headers = [table + size * i for i in range(count)]
    loads = [header for header in headers if struct.unpack_from("<I", image, header)[0] == PT_LOAD]
    struct.pack_into("<Q", image, loads[-1] + 16, 0x7FFF_FFFF_F000)  # beyond what can be mapped
    broken = tmp_path / "broken"
    broken.write_bytes(image)
    broken.chmod(0o755)
    argv = [b"acts", b"of-stack", os.fsencode(broken), *(b"%d" % i for i in range(200))]
    # Without randomised addresses the old stack's strings lie where the new one's are now.
    act = execute(acts, argv, ENVIRONMENT, lambda: libc.personality(ADDR_NO_RANDOMIZE))
    assert os.WTERMSIG(act.status) == signal.SIGSEGV
    record = failed(live, act)
    assert record["errno"]
    assert {name: record["unsettled"][name]["state"] for name in ("path", "argv", "environment")} == {
        "path": "fault",
        "argv": "fault",
        "environment": "fault",
    }
    assert record["path"] is record["argv"] is record["environment"] is None
