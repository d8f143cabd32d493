"""Unix sockets and their names, byte for byte; and what a security module denies."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.compare import same
from tests.live.sockets import Sockets, ends, listening, raw
from tests.live.witness import fork, libc

pytestmark = pytest.mark.kernel

UNIX = socket.AF_UNIX
LONGEST = 108
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF, PR_SET_NO_NEW_PRIVS = 444, 446, 38
LANDLOCK_NETWORK = struct.pack("=QQ", 0, 0b11)
"""A ruleset that handles, and so denies, TCP's bind and connect."""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a test: names of sockets are short."""
    made = tmp_path_factory.mktemp("s")
    made.chmod(0o755)
    made.parent.chmod(0o755)
    monkeypatch.chdir(made)
    return made


def abstract(length: int, mark: bytes) -> bytes:
    """An abstract name of so many bytes, NULs among them."""
    return (b"\0promissory\0" + b"%d" % os.getpid() + mark + b"\0" * 3).ljust(length, b"x")


NAMES = [
    (b"a path", b"another"),
    (b"new\nline", "ünï".encode()),
    (b"l" * LONGEST, b"m" * LONGEST),
    pytest.param(b"m" * 100, b"l" * LONGEST, marks=pytest.mark.vm),
    pytest.param(abstract(20, b"1"), abstract(LONGEST, b"2"), marks=pytest.mark.vm),
    (abstract(LONGEST, b"3"), b"short"),
    (b"not unicode \xff", b"\0"),
]
"""Names of a listening socket and of one that connects to it."""


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
@pytest.mark.parametrize(("name", "client_name"), NAMES)
def test_a_connection(sockets: Sockets, folder: Path, kind: int, name: bytes, client_name: bytes) -> None:
    with listening(UNIX, name, backlog=2, kind=kind) as server, socket.socket(UNIX, kind) as client:
        assert raw(libc.bind, client, client_name) == 0
        assert raw(libc.connect, client, name) == 0
        with server.accept()[0] as accepted:
            here, there = shown(name), shown(client_name)
            bound, *listened = sockets.of(server)
            same(bound, ends(server) | {"local_path": here})
            bound, *connected = sockets.of(client)
            same(bound, ends(client) | {"local_path": there, "remote_path": None})
            (record,) = sockets.of(accepted)
            same(record, ends(accepted) | {"local_path": here, "remote_path": there})
            if sockets.full("listen"):
                same(listened[0], ends(server, backlog=2) | {"local_path": here})
                sockets.connected(connected, ends(client) | {"local_path": there, "remote_path": here})
            else:
                assert listened == connected == []


def shown(name: bytes) -> str | bytes:
    """A name as a record has it."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name


@pytest.mark.vm
def test_the_name_that_the_kernel_chose(sockets: Sockets) -> None:
    with socket.socket(UNIX) as chosen:
        chosen.bind("")
        (record,) = sockets.of(chosen)
        assert record["local_path"].startswith("\0")
        same(record, ends(chosen))


@pytest.mark.vm
def test_datagrams_are_connected_and_dissolved(sockets: Sockets, folder: Path) -> None:
    with socket.socket(UNIX, socket.SOCK_DGRAM) as server, socket.socket(UNIX, socket.SOCK_DGRAM) as client:
        server.bind("d")
        client.connect("d")
        expected = [ends(client)]
        assert expected[0]["remote_path"] == "d"
        dissolve = (ctypes.c_char * 16)()
        assert libc.connect(client.fileno(), dissolve, len(dissolve)) == 0
        expected.append(ends(client))
        found = sockets.of(client)
        if not sockets.full("connect"):
            assert found == []
            return
        for record, each in zip(found, expected, strict=True):
            same(record, {**each, "connect_id": record["id"]})


def refused(path: bytes) -> int:
    with socket.socket(UNIX) as gone:
        gone.bind(path)
    os.chmod(path, 0o666)
    return errno.ECONNREFUSED


def absent(path: bytes) -> int:
    return errno.ENOENT


def forbidden(path: bytes) -> int:
    refused(path)
    os.chmod(path, 0o600)
    return errno.EACCES


@pytest.mark.vm
@pytest.mark.parametrize("prepare", [refused, absent, forbidden])
def test_a_connect_that_fails_says_where_to(
    sockets: Sockets, folder: Path, prepare: Callable[[bytes], int]
) -> None:
    path = b"where-to" + b"y" * 60
    error = prepare(path)
    with socket.socket(UNIX) as client:

        def child() -> None:
            os.setuid(54321)
            assert client.connect_ex(path) == error

        act = fork(child)
        assert act.status == 0
        found = sockets.of(client)
        if sockets.full("connect"):
            sockets.connected(found, ends(client, errno=error, remote_path=path.decode()))
            same(found[0], {"process.pid": act.pid, "process.uid": 54321})
        else:
            assert found == []


@pytest.mark.vm
def test_a_bind_that_fails_says_what_was_asked_for(sockets: Sockets, folder: Path) -> None:
    with socket.socket(UNIX) as first, socket.socket(UNIX) as second, socket.socket(UNIX) as third:
        first.bind("taken")
        with pytest.raises(OSError, match="in use"):
            second.bind("taken")
        with pytest.raises(FileNotFoundError):
            third.bind("no/such/folder")
        same(sockets.of(second)[0], ends(second, errno=errno.EADDRINUSE, local_path="taken"))
        same(sockets.of(third)[0], ends(third, errno=errno.ENOENT, local_path="no/such/folder"))


@pytest.mark.vm
def test_an_address_that_cannot_be_read(sockets: Sockets) -> None:
    """The call fails before the socket is asked: only a system call's end shows it, without an address."""
    with socket.socket(UNIX) as client:
        assert libc.bind(client.fileno(), ctypes.c_void_p(8), 20) == -1
        assert ctypes.get_errno() == errno.EFAULT
        found = sockets.of(client)
        if sockets.surfaces["bind"] == "sys_exit":
            same(found[0], ends(client, errno=errno.EFAULT))
        else:
            assert found == []


@pytest.mark.vm
def test_what_a_security_module_denies(sockets: Sockets) -> None:
    """Landlock says no before bind and connect are begun."""
    with listening() as server, socket.socket() as binding, socket.socket() as connecting:
        address = server.getsockname()

        def child() -> None:
            rules = libc.syscall(LANDLOCK_CREATE_RULESET, LANDLOCK_NETWORK, len(LANDLOCK_NETWORK), 0)
            if rules < 0:
                os._exit(77)
            libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            assert libc.syscall(LANDLOCK_RESTRICT_SELF, rules, 0) == 0
            with pytest.raises(PermissionError):
                binding.bind(("127.0.0.1", 4))
            assert connecting.connect_ex(address) == errno.EACCES

        status = os.waitstatus_to_exitcode(fork(child).status)
        if status == 77:
            pytest.skip("NOT TESTED: this kernel's Landlock knows no network (it does since Linux 6.7)")
        assert status == 0
        (record,) = sockets.of(binding)
        same(record, ends(binding, errno=errno.EACCES, local_address="127.0.0.1", local_port=4))
        found = sockets.of(connecting)
        if sockets.full("connect"):
            asked = {"remote_address": address[0], "remote_port": address[1]}
            sockets.connected(found, ends(connecting, errno=errno.EACCES) | asked)
        else:
            assert found == []
