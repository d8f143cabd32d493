"""What the tests of sockets share: a run that is asked about sockets by their inode numbers, and what sockets
say of themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

from tests.live.compare import same
from tests.live.run import Live, Record, eventually
from tests.live.witness import libc

__all__ = ["FAMILIES", "FULL", "LOOPBACK", "SOCKETS", "Sockets", "ends", "inode", "listening", "raw"]

SOCKETS: Final = ("bind", "listen", "accept", "connect", "connect_done")
LOOPBACK: Final = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
FAMILIES: Final = [
    (socket.AF_INET, "127.0.0.1"),
    (socket.AF_INET6, "::1"),
    (socket.AF_INET6, "::ffff:127.0.0.1"),
]
"""Families, and an address of each; the last is IPv4, mapped."""
FULL: Final = ("fexit", "sys_exit")
"""Surfaces that see every call, of every family, with its result."""


class Sockets:
    """A run, and what it says of sockets."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.surfaces = live.kinds

    def of(self, *those: socket.socket | int) -> list[Record]:
        """All events of these sockets (or of these inode numbers) up to now, in their order."""
        with socket.socket(type=socket.SOCK_DGRAM) as last:
            last.bind(("127.0.0.1", 0))
            number = inode(last)
        eventually(lambda: self._records(number), "the last of the events")
        return self._records(*(that if isinstance(that, int) else inode(that) for that in those))

    def _records(self, *numbers: int) -> list[Record]:
        return [r for r in self.live.log.read() if r["kind"] in SOCKETS and r["socket"] in numbers]

    def kinds(self, *those: socket.socket | int) -> list[str]:
        """Their kinds."""
        return [record["kind"] for record in self.of(*those)]

    def full(self, kind: str) -> bool:
        """Whether a kind comes from a surface that sees every call of it."""
        return self.surfaces[kind] in FULL

    def connected(self, records: list[Record], expected: dict[str, Any]) -> None:
        """Assert that these are the events of one connect that was, in the end, as `expected`.

        A call that did not come back before the end is one event; where only TCP's states are seen, it is
        always the two of a connection under way.
        """
        if self.full("connect"):
            (record,) = records
            same(record, {**expected, "connect_id": record["id"]})
        else:
            self.under_way(records, expected)

    def under_way(self, records: list[Record], expected: dict[str, Any], began: int = 0) -> None:
        """Assert that a connect came back with `began`, and that a connect_done says `expected`."""
        first, done = records
        assert (first["kind"], done["kind"]) == ("connect", "connect_done")
        same(first, {**expected, **self._begun(), "errno": began, "connect_id": first["id"]})
        same(done, {**expected, "connect_id": first["id"]})
        waited = done["boottime"] - first["boottime"]
        assert 0 <= done["elapsed"] <= waited
        same(done, {"elapsed": done["elapsed"]})

    def _begun(self) -> dict[str, Any]:
        """What is not known of a connection that has just begun."""
        return {} if self.full("connect") else {"local_port": None}


def inode(of: socket.socket) -> int:
    """The number by which the kernel and ss name a socket."""
    return os.fstat(of.fileno()).st_ino


def ends(of: socket.socket, **besides: Any) -> dict[str, Any]:
    """A socket as it describes itself, as records have it; no error."""
    family = of.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)
    local, remote = of.getsockname(), None
    with contextlib.suppress(OSError):
        remote = of.getpeername()
    return {
        "socket": inode(of),
        "family": family,
        "type": of.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
        "protocol": of.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL),
        "net_ns": os.stat("/proc/self/ns/net").st_ino,
        "errno": 0,
        **_end("local", family, local),
        **_end("remote", family, remote),
        **besides,
    }


def _end(name: str, family: int, address: Any) -> dict[str, Any]:
    if family == socket.AF_UNIX:
        text = address.decode() if isinstance(address, bytes) else address
        return {f"{name}_address": None, f"{name}_port": None, f"{name}_path": text or None}
    ip, port = address[:2] if address else (None, None)
    return {f"{name}_address": ip, f"{name}_port": port or None, f"{name}_path": None}


def raw(call: Callable[..., int], of: socket.socket, rest: bytes) -> int:
    """bind or connect with nothing in between: to an address of its family that goes on with `rest`."""
    family = of.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)
    address = family.to_bytes(2, "little") + rest
    return call(of.fileno(), ctypes.create_string_buffer(address, len(address)), len(address))


@contextlib.contextmanager
def listening(
    family: int = socket.AF_INET,
    address: bytes | None = None,
    backlog: int = 8,
    kind: int = socket.SOCK_STREAM,
) -> Iterator[socket.socket]:
    """A socket that listens: with this unix name, or at a port of loopback's that the kernel chose."""
    with socket.socket(family, kind) as made:
        if isinstance(address, bytes):
            assert raw(libc.bind, made, address) == 0
        else:
            made.bind((LOOPBACK[socket.AddressFamily(family)], 0))
        made.listen(backlog)
        yield made
