"""The audit system's netlink of this kernel: what is said is heard, and what finds no room is known."""

from __future__ import annotations

import os
import re
import select
import time

import pytest

from pipeline.kernel import netlink
from pipeline.sources import wires
from pipeline.sources.audit import Audit
from tests.absent import absent
from tests.live.host import need_kernel
from tests.sources.test_audit import World

pytestmark = pytest.mark.kernel
SECOND = 10**9
CROWD = 400


@pytest.fixture(autouse=True)
def _kernel() -> None:
    need_kernel()
    try:
        netlink.listen(1).close()
    except OSError as error:
        absent(f"this kernel's audit system cannot be listened to: {error.strerror}")


def test_what_is_said_is_heard() -> None:
    listener = netlink.listen(1 << 20)
    netlink.say(b"op=promissory-test")
    found = b""
    while b"promissory-test" not in found:
        assert select.select([listener], [], [], 5)[0], "nothing came"
        found = listener.recv(wires.LARGEST)
    listener.close()
    header = netlink.HEADER.unpack_from(found)
    assert header[1] in (1107, 1120)
    text = found[netlink.HEADER.size :].decode()
    assert re.fullmatch(
        rf"audit\(\d+\.\d{{3}}:\d+\): pid={os.getpid()} uid=0 auid=\d+ ses=\d+ (subj=\S+ )?"
        r"msg='op=promissory-test'\0?",
        text,
    )


def test_a_refusal_carries_the_kernels_answer() -> None:
    with pytest.raises(OSError, match="audit"):
        netlink.request(1999)


def test_listening_leaves_the_daemons_socket_alone() -> None:
    before = netlink.status().pid
    listener = netlink.listen(1 << 20)
    assert netlink.status().pid == before
    listener.close()


def test_every_event_that_found_no_room_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wires, "BUFFER", 16384)
    world = World(chunks=4 * CROWD)
    source = Audit(world.ring, world.wire(), lambda pid, time: {}, 1)
    for number in range(CROWD):
        netlink.say(b"number=%d" % number)
    time.sleep(0.2)  # a thread of the kernel sends them
    world.pump(source, 1 * SECOND)
    netlink.say(b"number=last")
    time.sleep(0.2)
    for second in (3, 5, 7, 9):
        world.pump(source, second * SECOND)
    source.close()
    heads = world.payloads
    serials = heads["serial"].astype(int)
    lost = int(world.row["lost"][0])
    assert 0 < len(serials) < CROWD
    assert serials.max() - serials.min() + 1 == len(set(serials)) + lost
    assert any(heads["records_of"] != heads["records_have"])
