"""The deputy by itself: what the kernel says through it stands in tests/live/test_privilege.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import msgpack
import pytest

from pipeline import privilege
from pipeline.config import Config
from tests.absent import absent


@pytest.mark.kernel
def test_who_asked_may_be_gone_before_the_answer() -> None:
    if os.geteuid() != 0:
        absent("the deputy: it wants root")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    user = privilege.find(Config().user)
    command = [sys.executable, "-m", "pipeline.kernel.deputy", str(theirs.fileno()), *map(str, user)]
    with ours, theirs:
        deputy = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
        for number in range(50):
            ours.send(msgpack.packb(("program", number)))
    assert deputy.communicate()[1] == b""
    assert deputy.returncode == 0
