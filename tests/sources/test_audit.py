"""The audit source over a ring of its own: what the socket gives is put, or booked."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from pipeline.audit_types import EOE, EXECVE, SYSCALL
from pipeline.chunk import AUDIT_RING, STRIDE
from pipeline.event import UNKNOWN
from pipeline.kernel import netlink
from pipeline.kernel.layout import OWN
from pipeline.kernel.own_ring import OwnMemory, OwnRing
from pipeline.kernel.ring import PAGE
from pipeline.schema import by_name
from pipeline.sources.audit import Audit, who_did
from pipeline.sources.serials import EXPIRY, Record, Serials
from pipeline.sources.wires import BATCH, Multicast
from tests.audit_writer import stamp

SCHEMA = by_name()["audit"]
SECOND = 10**9
BODY = b'arch=c000003e syscall=59 ppid=11 pid=12 uid=1000 gid=100 comm="cat" exe="/bin/cat" key=(null)'


@dataclass
class World:
    """A source with a socket of paper, its ring and its row."""

    waiting: list[bytes | OSError] = field(default_factory=list)
    lost: int = 0
    chunks: int = 64
    now: int = 0

    def __post_init__(self) -> None:
        fd = os.memfd_create("ring")
        os.ftruncate(fd, 2 * PAGE + self.chunks * STRIDE)
        self.memory = OwnMemory(fd, self.chunks * STRIDE)
        os.close(fd)
        self.row: Any = np.zeros(1, OWN)
        self.ring = OwnRing(AUDIT_RING, self.memory, self.row, {"argv": 1 << 20})

    def recv(self, _: int) -> bytes:
        """As a socket's."""
        if not self.waiting:
            raise BlockingIOError
        found = self.waiting.pop(0)
        if isinstance(found, OSError):
            raise found
        return found

    def say(self, number: int, serial: int, body: bytes = b"") -> None:
        """One record more waits."""
        text = stamp(serial) + body
        self.waiting.append(netlink.HEADER.pack(16 + len(text), number, 0, 0, 0) + text)

    def wire(self) -> Multicast:
        """Over this paper."""
        return Multicast(lambda: netlink.status().lost, lambda: self.now)

    def pump(self, audit: Audit, now: int, **more: bool) -> None:
        """Look at `now`."""
        self.now = now
        audit.pump(now, **more)

    def call(self, serial: int) -> None:
        """A system call's records."""
        self.say(SYSCALL, serial, BODY)
        self.say(1307, serial, b'cwd="/"')
        self.say(EOE, serial)

    @property
    def heads(self) -> Any:
        """The events in the ring."""
        chunks = self.memory.chunks[: int(self.memory.producer[0]) // STRIDE]
        return chunks[chunks["part"] == 0]

    @property
    def payloads(self) -> Any:
        """The same as audit events."""
        return self.heads.copy().view(SCHEMA.dtype)

    def kind(self, counter: str) -> int:
        """A counter of the kind."""
        return int(self.row["kinds"][0][counter][SCHEMA.number])


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(netlink, "listen", lambda buffer: world)
    monkeypatch.setattr(netlink, "status", lambda: netlink.Status(0, 1, 1, 0, 0, 64, world.lost, 0))
    return world


def nothing(pid: int, time: int) -> Mapping[str, int | bytes]:
    return {}


def test_an_event_is_put_with_who_did_it(world: World) -> None:
    audit = Audit(
        world.ring, world.wire(), lambda pid, time: {"start": pid * 100, "exec_id": time, "comm": b"cat"}, 1
    )
    world.call(7)
    world.pump(audit, 50)
    assert not audit.waits
    (head,) = world.payloads
    names = [
        "pid",
        "parent_pid",
        "uid",
        "gid",
        "start",
        "exec_id",
        "serial",
        "records_count",
        "type",
        "audit_time",
    ]
    assert [int(head[name]) for name in names] == [
        12, 11, 1000, 100, 1200, 50, 7, 2, SYSCALL, 1_795_409_857_274_000_000,
    ]  # fmt: skip
    assert bytes(head["comm"]).rstrip(b"\0") == b"cat"
    assert int(world.heads[0]["time"]) == 50
    assert (
        int(head["records_of"])
        == int(head["records_have"])
        == len(b"type=1300 msg=" + stamp(7) + BODY + b"\0type=1307 msg=" + stamp(7) + b'cwd="/"\0')
    )
    assert (world.kind("attempted"), int(world.row["received"][0])) == (1, 3)


@pytest.mark.parametrize(
    ("comm", "number", "exec_id"),
    [(b"cat", 1307, 9), (b"other", 1307, 0), (b"other", EXECVE, 9)],
)
def test_an_exec_in_between_makes_the_program_unknown(
    world: World, comm: bytes, number: int, exec_id: int
) -> None:
    """The process may have run another program before the one that is known when its records come."""

    def who(pid: int, time: int) -> dict[str, int | bytes]:
        return {"exec_id": 9 if time == 50 else 8, "comm": comm.ljust(16, b"\0")}

    audit = Audit(world.ring, world.wire(), who, 1)
    world.say(SYSCALL, 7, BODY)
    world.say(number, 7)
    world.say(EOE, 7)
    world.pump(audit, 50)
    (head,) = world.payloads
    assert int(head["exec_id"]) == exec_id


def test_another_parent_by_now_is_not_the_parent(world: World) -> None:
    known = {"parent_pid": 1, "parent_start": 5, "parent_exec_id": 6, "start": 7}
    audit = Audit(world.ring, world.wire(), lambda pid, time: known, 1)
    world.call(7)
    world.pump(audit, 50)
    (head,) = world.payloads
    assert [int(head[name]) for name in ("parent_pid", "parent_exec_id", "start")] == [11, 0, 7]
    assert int(head["parent_start"]) == (1 << 64) - 1


def test_only_those_asked_for(world: World) -> None:
    audit = Audit(world.ring, world.wire(), nothing, 1, uids=[5])
    world.call(7)
    world.say(1305, 8, b"op=set")
    world.pump(audit, 50, last=True)
    assert world.payloads["serial"].tolist() == [8], "whose is unknown is reported"
    assert (world.kind("attempted"), world.kind("filtered_uid")) == (2, 1)


def test_what_we_do_ourselves_is_filtered(world: World) -> None:
    audit = Audit(world.ring, world.wire(), lambda pid, time: None if pid == 12 else {}, 1)
    world.call(7)
    world.say(1105, 8, b"pid=13 uid=0 msg='op=x pid=12'")
    world.pump(audit, 50)
    (head,) = world.payloads
    assert int(head["pid"]) == 13
    assert (world.kind("attempted"), world.kind("filtered_self")) == (2, 1)


def test_an_event_that_is_open_is_nobodys_yet(world: World) -> None:
    audit = Audit(world.ring, world.wire(), nothing, 1)
    world.call(6)
    world.say(SYSCALL, 7, BODY)
    world.pump(audit, 50)
    assert audit.waits
    assert int(world.row["seen"][0]) == 50
    world.pump(audit, 60)
    assert int(world.row["seen"][0]) == 50, "a reader after us would have missed it since then"
    world.pump(audit, 50 + EXPIRY)
    assert int(world.row["seen"][0]) == 50 + EXPIRY
    head = world.payloads[1]
    assert int(head["records_of"]) == UNKNOWN
    assert int(head["records_have"]) > 0


def test_the_last_look_leaves_nothing_open(world: World) -> None:
    audit = Audit(world.ring, world.wire(), nothing, 1)
    world.say(1305, 7, b"op=set audit_enabled=1 old=0 auid=0 ses=1 res=1")
    world.pump(audit, 50, last=True)
    (head,) = world.payloads
    assert int(head["records_of"]) == int(head["records_have"])
    assert int(head["pid"]) == 0


def test_the_last_look_takes_all_that_waits(world: World) -> None:
    audit = Audit(world.ring, world.wire(), nothing, 1)
    for serial in range(1, BATCH + 3):
        world.say(EOE, serial)
    world.pump(audit, 50)
    held = [audit.oldest]
    world.pump(audit, 60, last=True)
    assert not world.waiting
    assert [*held, audit.oldest] == [50, None], "no heartbeat vouches for what is on the wire"


def test_no_heartbeat_vouches_for_an_event_that_is_open(world: World) -> None:
    audit = Audit(world.ring, world.wire(), nothing, 1)
    world.say(1400, 7, b"avc: denied")  # nothing says that it is over
    held = []
    for now in (50, SECOND, 50 + EXPIRY):
        world.pump(audit, now)
        held.append(audit.oldest)
    assert held == [50, 50, None]
    assert int(world.heads[0]["time"]) == 50


def test_an_overrun_is_said_and_counted(world: World) -> None:
    audit = Audit(world.ring, world.wire(), nothing, 1)
    world.call(7)
    world.waiting.append(OSError(errno.ENOBUFS, "no buffer"))
    world.call(8)
    world.call(12)
    world.lost = 2
    for second in (1, 3, 5):
        world.pump(audit, second * SECOND)
    assert not audit.waits
    assert int(world.row["lost"][0]) == 3, "numbers; the kernel is asked for a heartbeat"
    world.pump(audit, 6 * SECOND, beat=True)
    assert world.payloads["serial"].tolist() == [7, 8, 12]
    whole = world.payloads["records_of"] == world.payloads["records_have"]
    assert whole.tolist() == [True, False, False]
    assert int(world.row["lost"][0]) == 2 + 3
    world.pump(audit, 7 * SECOND, beat=True)
    assert int(world.row["lost"][0]) == 2 + 3


def test_other_errors_are_not_swallowed(world: World) -> None:
    audit = Audit(world.ring, world.wire(), nothing, 1)
    world.waiting.append(OSError(errno.EIO, "broken"))
    with pytest.raises(OSError, match="broken"):
        world.pump(audit, 50)


def test_a_look_is_bounded(world: World) -> None:
    audit = Audit(world.ring, world.wire(), nothing, 1)
    for serial in range(BATCH):
        world.call(serial)
    world.pump(audit, 50)
    assert audit.waits
    assert len(world.waiting) == 2 * BATCH
    assert world.kind("attempted") == world.kind("lost_full") + len(world.heads)


def test_time_without_a_reader_is_booked(world: World) -> None:
    world.pump(Audit(world.ring, world.wire(), nothing, 1000), 2000)
    Audit(world.ring, world.wire(), nothing, 5000)
    assert (int(world.row["away"][0]), int(world.row["away_ns"][0])) == (2, 1000 + 5000 - 2000)


@pytest.mark.parametrize(
    ("number", "body", "found"),
    [
        (1105, b"pid=5 uid=0 auid=1 ses=2 msg='pid=6 gid=7'", {"pid": 5, "uid": 0}),
        (
            1300,
            b"ppid=1 pid=5 uid=4294967295 comm=6120620A",
            {"parent_pid": 1, "pid": 5, "uid": 4294967295, "comm": b"a b\n"},
        ),
        (1300, b"pid=9999999999 uid=x", {"pid": 9999999999 & 0xFFFFFFFF}),
        (1305, b"op=set audit_enabled=1 opid=3", {}),
        (1318, b"opid=3 oauid=1 ouid=2", {}),
    ],
)
def test_who_did_it(number: int, body: bytes, found: dict[str, int | bytes]) -> None:
    serials = Serials()
    (event,) = [*serials.feed(Record(number, stamp(1) + body, 0)), *serials.finish()]
    assert who_did(event) == found


def test_the_system_call_speaks_first() -> None:
    serials = Serials()
    assert not list(serials.feed(Record(1400, stamp(1) + b'avc: denied for pid=1 comm="x"', 0)))
    assert not list(serials.feed(Record(SYSCALL, stamp(1) + BODY, 0)))
    (event,) = serials.feed(Record(EOE, stamp(1), 0))
    assert who_did(event)["pid"] == 12
