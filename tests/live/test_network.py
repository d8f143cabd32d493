"""bind, listen, accept and connect, against what the sockets say of themselves, ss and strace."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.absent import absent
from tests.live.compare import ran, same, who
from tests.live.run import Record
from tests.live.sockets import FAMILIES, Sockets, ends, listening, raw
from tests.live.witness import fork, libc

pytestmark = pytest.mark.kernel

UNSPECIFIED = (ctypes.c_char * 16)()
"""A struct sockaddr of family AF_UNSPEC: it dissolves a connection."""
NOWHERE = "192.0.2.1"
"""An address that no host has (TEST-NET-1)."""


def common(sockets: Sockets, record: Record) -> None:
    """Compare the common block of an event of our own."""
    same(record, {**who(), **ran(sockets.live.log)})


@pytest.mark.vm
@pytest.mark.parametrize(("family", "address"), FAMILIES)
def test_a_connection(sockets: Sockets, family: int, address: str) -> None:
    with socket.socket(family) as server, socket.socket(family) as client:
        server.bind((address, 0))
        server.listen(7)
        client.connect(server.getsockname())
        with server.accept()[0] as accepted:
            bound, listened = sockets.of(server)
            same(bound, ends(server))
            same(listened, ends(server, backlog=7))
            sockets.connected(sockets.of(client), ends(client))
            (record,) = sockets.of(accepted)
            same(record, ends(accepted))
            for each in (bound, listened, record, *sockets.of(client)):
                common(sockets, each)
            assert f"ino:{record['socket']} " in as_ss_says(record)


def as_ss_says(record: Record) -> str:
    """The line of ss about a connection."""
    ports = [f"{name} = :{record[end]}" for name, end in (("sport", "local_port"), ("dport", "remote_port"))]
    command = ["ss", "-Htne", "state", "established", f"( {ports[0]} and {ports[1]} )"]
    (line,) = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    local, remote = line.split()[2:4]
    for said, end in ((local, "local"), (remote, "remote")):
        assert said.rpartition(":")[0].strip("[]") == record[f"{end}_address"]
    return line


@pytest.mark.vm
def test_the_port_that_listen_chose(sockets: Sockets) -> None:
    with socket.socket() as server:
        server.listen(3)
        (record,) = sockets.of(server)
        chosen = {} if sockets.full("listen") else {"local_port": None}
        same(record, ends(server, backlog=3) | chosen)


@pytest.mark.parametrize(("family", "address"), FAMILIES)
def test_a_bind_that_fails_says_what_was_asked_for(sockets: Sockets, family: int, address: str) -> None:
    with socket.socket(family) as first, socket.socket(family) as second:
        first.bind((address, 0))
        port = first.getsockname()[1]
        assert failure(second.bind, (address, port)) == errno.EADDRINUSE
        asked = {"errno": errno.EADDRINUSE, "local_address": address, "local_port": port}
        same(sockets.of(second)[0], ends(second) | asked)
        assert failure(first.bind, (address, port)) == errno.EINVAL
        same(sockets.of(first)[1], ends(first) | asked | {"errno": errno.EINVAL})


def failure(call: Any, *arguments: Any) -> int:
    """The errno of a call that has to fail."""
    with pytest.raises(OSError, match=r"\[Errno ") as found:
        call(*arguments)
    return found.value.errno or 0


@pytest.mark.vm
def test_a_bind_to_an_address_of_nobody(sockets: Sockets) -> None:
    with socket.socket() as lost:
        assert failure(lost.bind, (NOWHERE, 80)) == errno.EADDRNOTAVAIL
        asked = {"errno": errno.EADDRNOTAVAIL, "local_address": NOWHERE, "local_port": 80}
        same(sockets.of(lost)[0], ends(lost) | asked)


@pytest.mark.vm
def test_a_bind_that_is_not_allowed(sockets: Sockets) -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first < 2:
        absent("a port that is not free to everybody: sysctl net.ipv4.ip_unprivileged_port_start=1024")
    with socket.socket() as denied:

        def child() -> None:
            os.setuid(54321)
            assert failure(denied.bind, ("127.0.0.1", first - 1)) == errno.EACCES

        act = fork(child)
        assert act.status == 0
        (record,) = sockets.of(denied)
        asked = {"errno": errno.EACCES, "local_address": "127.0.0.1", "local_port": first - 1}
        same(record, ends(denied) | asked | {"process.pid": act.pid, "process.uid": 54321})


@pytest.mark.vm
def test_an_address_that_is_too_short_is_not_made_up(sockets: Sockets) -> None:
    with socket.socket() as bare:
        assert raw(libc.bind, bare, b"\0\x50\x7f\0\0\1") == -1
        assert ctypes.get_errno() == errno.EINVAL
        expected = {"errno": errno.EINVAL, "local_address": None, "local_port": None}
        same(sockets.of(bare)[0], ends(bare) | expected)


@pytest.mark.vm
@pytest.mark.parametrize(("family", "address"), FAMILIES)
def test_udp_is_connected_and_dissolved(sockets: Sockets, family: int, address: str) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.connect((address, 9))
        expected = [ends(client)]
        client.connect((address, 10))
        expected.append(ends(client))
        assert libc.connect(client.fileno(), UNSPECIFIED, len(UNSPECIFIED)) == 0
        expected.append(ends(client))
        assert expected[2]["remote_address"] is None
        found = sockets.of(client)
        if not sockets.full("connect"):
            assert found == []
            return
        for record, each in zip(found, expected, strict=True):
            same(record, {**each, "connect_id": record["id"]})


@pytest.mark.vm
def test_a_raw_socket_has_no_ports(sockets: Sockets) -> None:
    with socket.socket(type=socket.SOCK_RAW, proto=socket.IPPROTO_ICMP) as raw:
        raw.bind(("127.0.0.1", 0))
        (record,) = sockets.of(raw)
        same(record, ends(raw) | {"local_port": None})


@pytest.mark.parametrize(("family", "address"), FAMILIES)
def test_a_refused_connection(sockets: Sockets, family: int, address: str) -> None:
    with socket.socket(family) as taken, socket.socket(family) as client:
        taken.bind((address, 0))
        port = taken.getsockname()[1]
        assert failure(client.connect, (address, port)) == errno.ECONNREFUSED
        asked = {"errno": errno.ECONNREFUSED, "remote_address": address, "remote_port": port}
        expected = ends(client) | asked
        if not sockets.full("connect"):  # before the kernel forgot it
            expected["local_address"] = address
        sockets.connected(sockets.of(client), expected)


@pytest.mark.vm
def test_a_connect_without_a_way_there(sockets: Sockets) -> None:
    with socket.socket(socket.AF_INET6) as client:
        assert failure(client.connect, ("ff02::1", 80)) == errno.ENETUNREACH
        asked = {"errno": errno.ENETUNREACH, "remote_address": "ff02::1", "remote_port": 80}
        found = sockets.of(client)
        if sockets.full("connect"):
            sockets.connected(found, ends(client) | asked)
        else:
            assert found == []


@pytest.mark.vm
def test_an_accept_that_fails(sockets: Sockets) -> None:
    with socket.socket() as idle, listening() as server:
        server.setblocking(False)
        assert failure(server.accept) == errno.EAGAIN
        assert failure(idle.accept) == errno.EINVAL
        assert sockets.kinds(server) == ["bind", "listen"]
        (record,) = sockets.of(idle)
        assert record["kind"] == "accept"
        same(record, ends(idle, errno=errno.EINVAL))


@pytest.mark.vm
def test_a_listen_that_fails(sockets: Sockets) -> None:
    with listening() as server, socket.socket() as client:
        client.connect(server.getsockname())
        assert failure(client.listen, 5) == errno.EINVAL
        found = [record for record in sockets.of(client) if record["kind"] == "listen"]
        if sockets.full("listen"):
            (record,) = found
            nobody = {"remote_address": None, "remote_port": None}
            same(record, ends(client, errno=errno.EINVAL, backlog=5) | nobody)
        else:
            assert found == []


@pytest.mark.vm
def test_strace_saw_the_same(sockets: Sockets, tmp_path: Path) -> None:
    port = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); "
    deed = port + "t = socket.socket(); t.setblocking(False); t.connect_ex(s.getsockname())"
    command = [
        "strace",
        "-o",
        str(tmp_path / "trace"),
        "-e",
        "trace=bind,connect",
        sys.executable,
        "-c",
        deed,
    ]
    subprocess.run(command, check=True)
    lines = (tmp_path / "trace").read_text()
    (bound,) = re.findall(r'^bind\(\d+, {sa_family=AF_INET, .*inet_addr\("(.+)"\)}, 16\) = 0$', lines, re.M)
    ((to, address, error),) = re.findall(
        r'^connect\(.*sin_port=htons\((\d+)\), .*inet_addr\("(.+)"\)}, 16\) = -1 (\w+)', lines, re.M
    )
    sockets.of()
    found = [r for r in sockets.live.log.read() if r["kind"] in ("bind", "connect", "connect_done")]
    done = next(r for r in found if r["kind"] == "connect_done" and r["remote_port"] == int(to))
    began = next(r for r in found if r["id"] == done["connect_id"])
    first = next(r for r in found if r["process"]["pid"] == done["process"]["pid"])
    same(first, {"local_address": bound, "local_port": int(to)})
    same(began, {"remote_address": address, "errno": getattr(errno, error)})
    same(done, {"errno": errno.ECONNREFUSED, "remote_address": address})
