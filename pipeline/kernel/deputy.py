"""The deputy: a process that may still ask the kernel two things for which the pipeline has no rights left.

    a program of BPF by its id → bpf.ProgramInfo           CAP_SYS_ADMIN
    how many audit records the kernel gave up → a number   CAP_AUDIT_CONTROL

It has these two capabilities and nothing else: the pipeline's user, the same filter of system calls, no way
to be asked anything else. It is there only while a source needs it, and ends when the pipeline does. Run as
`python -m pipeline.kernel.deputy SOCKET NAME UID GID`; the class starts it.

    question   [number, what, about what]
    answer     [the same number, answer]; nil: there is none. Number 0: it is there, and has dropped the rest

By its number an answer is known that comes when nobody waits for it any more.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
COMMAND: Final = (sys.executable, "-m", "pipeline.kernel.deputy")
START: Final = 60.0
"""Seconds for it to begin: an interpreter's start, in an emulated machine with other things to do."""
PATIENCE: Final = 1.0
"""Seconds for an answer, which comes within microseconds. The pipeline stands still meanwhile: for an answer
that is late already it does not."""
END: Final = 5.0
"""Seconds for it to end."""
LARGEST: Final = 1024
ANSWERS: Final[dict[str, Callable[[int], Any]]] = {
    "program": bpf.program_info,
    "lost": lambda _: netlink.status().lost,
}
FOLLOWS: Final = (
    "where audit records come by netlink, nobody knows how many the kernel gives up, and each heartbeat "
    "tells that as a loss (`no reader`); where `bpf_load` comes by perf, name, type and size are nil"
)


class Deputy:
    """The pipeline's side. What nobody answers is said once, and is no error of the pipeline's."""

    def __init__(self, user: User, say: Callable[[str], None], command: Sequence[str] = COMMAND) -> None:
        """Start it, and wait until it is there; its own doing is the pipeline's (I8): children inherit that.
        OSError: there can be no further process.
        """
        self._say = say
        self._asked, self._heard = 0, -1
        self._late = self._gone = self._refused = False
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            arguments = [theirs.fileno(), *user]
            self._process = subprocess.Popen(
                [*command, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd=HOUSE,
            )
        with contextlib.suppress(OSError):
            self._hear(START)

    def program(self, id: int) -> ProgramInfo:
        """See bpf.program_info. OSError: it is gone, or nobody answers."""
        answer = self._ask("program", id)
        if answer is None:
            raise FileNotFoundError(f"there is no program {id}")
        return ProgramInfo(*answer)

    def lost(self) -> int | None:
        """Audit records that the kernel gave up since the boot; None: nobody says."""
        try:
            answer: int | None = self._ask("lost")
        except OSError:
            return None
        if answer is None and not self._refused:
            self._refused = True
            self._say(
                f"the kernel tells the deputy nothing of audit (CAP_AUDIT_CONTROL is for that): {FOLLOWS}"
            )
        return answer

    def _ask(self, what: str, about: int = 0) -> Any:
        """OSError: there is no answer, or not yet."""
        if self._gone:
            raise BrokenPipeError("the deputy is gone")
        if self._heard < self._asked:
            self._hear(0)
        self._connection.settimeout(PATIENCE)
        with self._noticing():
            self._connection.send(msgpack.packb((self._asked + 1, what, about)))
        self._asked += 1
        return self._hear(PATIENCE)

    def _hear(self, patience: float) -> Any:
        """The answer to the last question."""
        end = time.monotonic() + patience
        with self._noticing():
            while self._heard < self._asked:
                self._connection.settimeout(max(end - time.monotonic(), 0))
                said = self._connection.recv(LARGEST)
                if not said:
                    raise ConnectionResetError("the deputy is gone")
                self._heard, answer = msgpack.unpackb(said)
        if self._late:
            self._late = False
            self._say("the deputy answers again")
        return answer

    @contextlib.contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except (TimeoutError, BlockingIOError):
            if not self._late:
                self._late = True
                self._say(f"the deputy does not answer: {FOLLOWS}")
            raise
        except OSError:
            self._gone = True
            self._say(f"the deputy is gone, until `run` is started again: {FOLLOWS}")
            raise

    def close(self) -> None:
        """Let it end."""
        self._connection.close()
        try:
            self._process.wait(END)
        except subprocess.TimeoutExpired:  # somebody stopped it
            with contextlib.suppress(PermissionError):  # before it was the pipeline's user
                self._process.kill()
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
        connection.send(msgpack.packb((0, None)))
        while question := connection.recv(LARGEST):
            asked, what, about = msgpack.unpackb(question)
            try:
                answer = ANSWERS[what](about)
            except OSError:
                answer = None
            connection.send(msgpack.packb((asked, answer)))


if __name__ == "__main__":
    main(sys.argv[1:])
