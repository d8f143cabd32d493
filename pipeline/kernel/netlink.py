"""The audit system's netlink: listening beside a running auditd, and asking the kernel how it is.

Listening is a multicast group, "best effort": what finds no room in the socket is lost; the kernel says so
(ENOBUFS). The one unicast socket, auditd's, is never touched, and nobody's pid is set. All errors are OSError
with the kernel's errno.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from typing import Final, NamedTuple

from pipeline.audit_types import TEST, USER_AVC

__all__ = ["HEADER", "SAID", "Status", "Witness", "listen", "request", "say", "status"]

SAID: Final = b"promissory: self-test"
"""What the loader says to see whether it is heard."""
NETLINK_AUDIT: Final = 9
READLOG: Final = 1
"""The multicast group, AUDIT_NLGRP_READLOG."""
HEADER: Final = struct.Struct("=IHHII")
"""nlmsghdr: length, type, flags, sequence, port."""
_GET: Final = 1000
_ERROR: Final = 2
_REQUEST, _ACKNOWLEDGE = 1, 4
_RCVBUFFORCE: Final = 33
_LARGEST: Final = 16384
_ROOM: Final = 1 << 20
"""Bytes for what others say meanwhile."""
_PATIENCE: Final = 5.0
"""Seconds for the kernel's answer, which it gives at once."""


class Status(NamedTuple):
    """What AUDIT_GET says; see struct audit_status."""

    mask: int
    enabled: int
    failure: int
    pid: int
    """Of the audit daemon; 0: there is none."""
    rate_limit: int
    backlog_limit: int
    lost: int
    """Records that the kernel gave up since the boot."""
    backlog: int


def listen(buffer: int) -> socket.socket:
    """A socket that gets every record as one message, HEADER and text; non-blocking. `buffer`: bytes that may
    wait in it. Needs CAP_AUDIT_READ.
    """
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_AUDIT)
    try:
        listener.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, buffer)
        listener.bind((0, READLOG))
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def request(number: int, data: bytes = b"", *, acknowledge: bool = True) -> bytes:
    """Send the kernel a message of a type, and return its answer. Needs CAP_AUDIT_CONTROL for most types."""
    flags = _REQUEST | (_ACKNOWLEDGE if acknowledge else 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_AUDIT) as connection:
        connection.settimeout(_PATIENCE)
        connection.sendto(HEADER.pack(HEADER.size + len(data), number, flags, 1, 0) + data, (0, 0))
        answer = connection.recv(_LARGEST)
    _, kind, _, _, _ = HEADER.unpack_from(answer)
    body = answer[HEADER.size :]
    if kind == _ERROR and (code := -struct.unpack_from("=i", body)[0]):
        raise OSError(code, os.strerror(code), "audit")
    return body


def status() -> Status:
    """How the audit system is. Needs CAP_AUDIT_CONTROL."""
    return Status(*struct.unpack_from("=8I", request(_GET, acknowledge=False)))


def say(text: bytes) -> None:
    """Write a record of user space into the audit log. Needs CAP_AUDIT_WRITE.

    Where auditing is off, the kernel takes one type only.
    """
    request(TEST if status().enabled else USER_AVC, text + b"\0")


class Witness:
    """Whether what this machine says is heard (kernel/attempt.py)."""

    def __init__(self) -> None:
        self._listener = listen(_ROOM)

    def seen(self) -> frozenset[str]:
        """`audit`, if SAID came; a thread of the kernel sends it, among what others caused."""
        end = time.monotonic() + _PATIENCE
        while (left := end - time.monotonic()) > 0:
            self._listener.settimeout(left)
            try:
                if SAID in self._listener.recv(_LARGEST):
                    return frozenset({"audit"})
            except TimeoutError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
        return frozenset()

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()
