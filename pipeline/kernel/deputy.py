"""The deputy: a process that may still ask the kernel two things for which the pipeline has no rights left.

    a program of BPF by its id → bpf.ProgramInfo           CAP_SYS_ADMIN
    how many audit records the kernel gave up → a number   CAP_AUDIT_CONTROL

It has these two capabilities and nothing else: the pipeline's user, the same filter of system calls, no way
to be asked anything else. It is there only while a source needs it, and ends when the pipeline does. Run as
`python -m pipeline.kernel.deputy SOCKET NAME UID GID`; the class starts it.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgpack

from pipeline import privilege
from pipeline.kernel import bpf, netlink
from pipeline.kernel.bpf import ProgramInfo
from pipeline.privilege import User

__all__ = ["Deputy", "main"]

HOUSE: Final = Path(__file__).resolve().parents[2]
KEPT: Final = ("sys_admin", "audit_control")
COMMANDS: Final = (13, 15)
"""Of bpf(): a program by its id, information."""
PATIENCE: Final = 1.0
"""Seconds for an answer, which comes within microseconds."""
LARGEST: Final = 1024
ANSWERS: Final[dict[str, Callable[[int], Any]]] = {
    "program": bpf.program_info,
    "lost": lambda _: netlink.status().lost,
}


class Deputy:
    """The pipeline's side."""

    def __init__(self, user: User) -> None:
        """Start it; its own doing is the pipeline's (I8): children inherit that."""
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.settimeout(PATIENCE)
        self._lost = 0
        with theirs:
            arguments = [theirs.fileno(), *user]
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd=HOUSE,
            )

    def program(self, id: int) -> ProgramInfo:
        """See bpf.program_info. OSError: it is gone, or the deputy is."""
        return ProgramInfo(*self._ask("program", id))

    def lost(self) -> int:
        """Audit records that the kernel gave up since the boot, as far as is known."""
        with contextlib.suppress(OSError):
            self._lost = self._ask("lost")
        return self._lost

    def _ask(self, what: str, number: int = 0) -> Any:
        try:
            self._connection.send(msgpack.packb((what, number)))
            said = self._connection.recv(LARGEST)
        except TimeoutError:  # its answer would be taken for the next one's
            self._connection.close()
            raise
        answer = msgpack.unpackb(said) if said else None
        if answer is None:
            raise FileNotFoundError(f"no answer about {what} {number}")
        return answer

    def close(self) -> None:
        """Let it end."""
        self._connection.close()
        self._process.wait()


def main(arguments: list[str]) -> None:
    """Answer until nobody can ask any more."""
    # A signal to all of a terminal's or a service's processes is for the pipeline, which has work to end.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    file, name, uid, gid = arguments
    privilege.drop(User(name, int(uid), int(gid)), keep=KEPT, commands=COMMANDS)
    # Who asked may be gone before the answer.
    with contextlib.suppress(ConnectionError), socket.socket(fileno=int(file)) as connection:
        while question := connection.recv(LARGEST):
            what, number = msgpack.unpackb(question)
            try:
                answer = ANSWERS[what](number)
            except OSError:
                answer = None
            connection.send(msgpack.packb(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
