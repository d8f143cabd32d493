"""The deputy by itself: what the kernel says through it stands in tests/live/test_privilege.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import msgpack
import pytest

from pipeline import privilege
from pipeline.config import Config
from pipeline.kernel import deputy as deputy_module
from pipeline.kernel.bpf import ProgramInfo
from pipeline.kernel.deputy import Deputy
from pipeline.privilege import User
from tests.absent import absent

DEPUTY = """
import socket, sys, time, msgpack
connection = socket.socket(fileno=int(sys.argv[1]))
def ask():
    return msgpack.unpackb(connection.recv(1024) or sys.exit())
def answer(*said):
    connection.send(msgpack.packb(said))
"""
PROGRAM = ProgramInfo(2, b"tag", b"name", 3, 4)
USER = User("nobody", 1, 1)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def make(said: list[str]) -> Iterator[Callable[[str], Deputy]]:
    """A deputy that does what a test writes."""
    made: list[Deputy] = []

    def start(script: str) -> Deputy:
        made.append(Deputy(USER, said.append, (sys.executable, "-c", DEPUTY + script)))
        return made[-1]

    yield start
    for each in made:
        each.close()


def eventually(found: Callable[[], object]) -> object:
    end = time.monotonic() + 20
    while not (answer := found()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return answer


@pytest.mark.kernel
def test_who_asked_may_be_gone_before_the_answer() -> None:
    if os.geteuid() != 0:
        absent("the deputy: it wants root")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    user = privilege.find(Config().user)
    command = [sys.executable, "-m", "pipeline.kernel.deputy", str(theirs.fileno()), *map(str, user)]
    with ours, theirs:
        deputy = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
        assert msgpack.unpackb(ours.recv(100)) == [0, None]
        for number in range(50):
            ours.send(msgpack.packb((number, "program", number)))
    assert deputy.communicate()[1] == b""
    assert deputy.returncode == 0


def test_it_is_waited_for(make: Callable[[str], Deputy], said: list[str]) -> None:
    """However long its start takes, the first question gets its answer."""
    deputy = make(f"time.sleep(1.5); answer(0, None); answer(ask()[0], 7); answer(ask()[0], {[*PROGRAM]})")
    assert deputy.lost() == 7
    assert deputy.program(5) == PROGRAM
    assert said == []


def test_a_late_answer_ends_nothing(
    make: Callable[[str], Deputy], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is nobody's any more, and least of all the next question's."""
    monkeypatch.setattr(deputy_module, "PATIENCE", 0.2)
    deputy = make(
        "answer(0, None); n, *_ = ask(); time.sleep(1); answer(n, 111)\nwhile True: answer(ask()[0], 222)"
    )
    assert deputy.lost() is None
    began = time.monotonic()
    assert deputy.lost() is None
    with pytest.raises(BlockingIOError):
        deputy.program(8)
    assert time.monotonic() - began < 0.15, "once is enough to stand still"
    assert eventually(deputy.lost) == 222
    assert deputy.lost() == 222
    assert [text.partition(":")[0] for text in said] == [
        "the deputy does not answer",
        "the deputy answers again",
    ]


def test_a_start_that_takes_too_long_is_late_too(
    make: Callable[[str], Deputy], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deputy_module, "START", 0.1)
    deputy = make("time.sleep(0.5); answer(0, None); answer(ask()[0], 7); ask()")
    assert deputy.lost() is None
    assert eventually(deputy.lost) == 7
    assert len(said) == 2


@pytest.mark.parametrize(
    "script", ["sys.exit()", "answer(0, None); sys.exit()", "answer(0, None); ask(); sys.exit()"]
)
def test_one_that_dies_is_missed_once(make: Callable[[str], Deputy], said: list[str], script: str) -> None:
    deputy = make(script)
    for _ in range(3):
        assert deputy.lost() is None
        with pytest.raises(OSError, match="gone"):
            deputy.program(1)
    (text,) = said
    assert text.startswith("the deputy is gone, until `run` is started again: ")
    assert "(`no reader`)" in text


def test_what_the_kernel_does_not_tell(make: Callable[[str], Deputy], said: list[str]) -> None:
    """A program may be gone: nobody need know. That audit says nothing is another matter."""
    deputy = make("answer(0, None)\nwhile True: answer(ask()[0], None)")
    with pytest.raises(FileNotFoundError):
        deputy.program(1)
    assert said == []
    assert deputy.lost() is None
    assert deputy.lost() is None
    (text,) = said
    assert text.startswith("the kernel tells the deputy nothing of audit")


def test_one_that_was_stopped_holds_nobody_up(
    make: Callable[[str], Deputy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deputy_module, "END", 0.1)
    deputy = make("answer(0, None); time.sleep(100)")
    began = time.monotonic()
    deputy.close()
    assert time.monotonic() - began < 20
