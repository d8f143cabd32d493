"""The perf feed: records become events of the kinds that are wanted, with who it was; its books add up."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.chunk import PERF_RING, STRIDE
from pipeline.kernel import bpf
from pipeline.kernel.bpf import ProgramInfo
from pipeline.kernel.kallsyms import Kallsyms
from pipeline.kernel.layout import OWN
from pipeline.kernel.own_ring import OwnMemory, OwnRing
from pipeline.kernel.perf_record import (
    Bpf,
    Cgroup,
    Comm,
    Content,
    Ksymbol,
    Mmap,
    Namespaces,
    Record,
    Task,
    TextPoke,
)
from pipeline.kernel.ring import PAGE
from pipeline.kernel.who import NAMELESS, Who, Whose
from pipeline.schema import by_name
from pipeline.sources import perf as perf_module
from pipeline.sources import perf_events
from pipeline.sources.perf import EVER, Perf, Wanted
from pipeline.sources.perf_events import Events

Values = dict[str, int | bytes]
START = 1000
FILE = Mmap(7, 7, 4096, 8192, 4096, 65024, 99, 5, 2, b"/usr/bin/true")
SPACES = {"net": 1, "uts": 2, "ipc": 3, "pid": 4, "user": 5, "mnt": 6, "cgroup": 7}
KINDS = (
    "mmap",
    "comm",
    "fork",
    "exit",
    "namespace",
    "ksymbol",
    "bpf_load",
    "bpf_unload",
    "kernel_text",
    "cgroup",
)


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> dict[int, ProgramInfo]:
    """No kernel behind it: which programs there are, which namespaces."""
    programs: dict[int, ProgramInfo] = {}

    def info(id: int) -> ProgramInfo:
        if id not in programs:
            raise FileNotFoundError
        return programs[id]

    monkeypatch.setattr(bpf, "program_info", info)
    monkeypatch.setattr(bpf, "program_ids", lambda: iter(list(programs)))
    monkeypatch.setattr(perf_events, "_all_spaces", lambda: iter([(7, SPACES)]))
    monkeypatch.setattr(perf_events, "_memory_devices", lambda: iter([1]))
    return programs


def record(pid: int = 7, tid: int = 0, time: int = 5000) -> Record:
    return Record(0, 0, b"", pid, tid or pid, time)


def event(said: Content, *, events: Events | None = None, pid: int = 7, tid: int = 0) -> Any:
    return (events or Events(KINDS))(record(pid, tid), said)


def test_a_mapping_of_a_file() -> None:
    found = event(FILE)
    assert (found.kind, found.pid, found.tid) == ("mmap", 7, 7)
    assert found.values == {
        "address": 4096,
        "length": 8192,
        "offset": 4096,
        "inode": 99,
        "device": 65024,
        "prot": 5,
        "flags": 2,
    }
    assert found.data == {"path": b"/usr/bin/true"}


@pytest.mark.parametrize(
    ("name", "inode", "device", "path", "memfd", "deleted"),
    [
        (b"//anon", 0, 0, b"", 0, 0),
        (b"[heap]", 0, 0, b"", 0, 0),
        (b"//toolong", 99, 65024, None, 0, 0),
        (b"//enomem", 99, 65024, None, 0, 0),
        (b"/memfd:x (deleted)", 99, 1, b"memfd:x", 1, 0),
        (b"/memfd:a/b\nc (deleted) (deleted)", 99, 1, b"memfd:a/b\nc (deleted)", 1, 0),
        (b"/memfd:x (deleted)", 99, 65024, b"/memfd:x", 0, 1),
        (b"/memfd:x", 99, 65024, b"/memfd:x", 0, 0),
        (b"/gone (deleted)", 99, 65024, b"/gone", 0, 1),
        (b"/SYSV00000000 (deleted)", 99, 1, b"/SYSV00000000", 0, 1),
    ],
)
def test_names_of_mappings(
    name: bytes, inode: int, device: int, path: bytes | None, memfd: int, deleted: int
) -> None:
    found = event(FILE._replace(name=name, inode=inode, device=device))
    assert found.data == {"path": path}
    assert (found.values.get("memfd", 0), found.values.get("deleted", 0)) == (memfd, deleted)
    assert found.values["offset"] == (4096 if inode else 0)


def test_a_file_that_is_called_deleted(tmp_path: Path) -> None:
    path = tmp_path / "x (deleted)"
    path.touch()
    file = path.stat()
    said = FILE._replace(
        name=os.fsencode(path), inode=file.st_ino, device=file.st_dev & 0xFFFFFFFF, pid=2**22 + 1
    )
    assert event(said).data == {"path": os.fsencode(path)}
    other = event(said._replace(inode=file.st_ino + 1))
    assert other.data == {"path": os.fsencode(tmp_path / "x")}
    assert other.values["deleted"]


def test_what_the_kernel_maps_by_itself_is_no_event() -> None:
    assert event(FILE._replace(name=b"[vdso]", inode=0)) is None
    assert event(FILE._replace(name=b"[vdso]")) is not None


def test_kinds_that_are_not_wanted_are_none() -> None:
    events = Events(["comm"])
    assert event(FILE, events=events) is None
    assert event(Comm(7, 7, b"x", False), events=events).data == {"name": b"x"}
    assert event(Comm(7, 7, b"x", True), events=events) is None


def test_forks_and_exits() -> None:
    made = event(Task(8, 7, 8, 7, False), pid=7, tid=70)
    assert (made.kind, made.pid, made.tid, made.values) == ("fork", 7, 70, {"child_pid": 8})
    assert event(Task(7, 7, 8, 7, False)) is None, "a thread"
    ended = event(Task(8, 7, 8, 7, True), pid=8)
    assert (ended.kind, ended.pid, ended.tid) == ("exit", 8, 8)


def test_new_namespaces_are_events_and_those_of_every_fork_are_not() -> None:
    events = Events(KINDS)
    assert event(Namespaces(8, 8, SPACES), events=events, pid=7) is None, "a child like its parent"
    changed = {**SPACES, "uts": 22}
    found = event(Namespaces(8, 8, changed), events=events, pid=8)
    assert (found.pid, found.tid) == (8, 8)
    assert found.values == {
        **{f"before_{name}": inode for name, inode in SPACES.items()},
        **{f"after_{name}": inode for name, inode in changed.items()},
    }
    assert event(Namespaces(8, 8, changed), events=events, pid=8) is None, "nothing new"
    made = event(Namespaces(9, 9, {**changed, "pid": 44}), events=events, pid=8)
    assert (made.pid, made.values["call"], made.values["child_pid"]) == (8, 1, 9)
    assert (made.values["before_uts"], made.values["before_pid"], made.values["after_pid"]) == (22, 4, 44)
    thread = event(Namespaces(8, 80, changed), events=events, pid=8, tid=8)
    assert thread is None, "a thread like its process"


def test_of_one_that_nobody_knew_the_namespaces_before_are_unknown() -> None:
    found = event(Namespaces(50, 50, SPACES), pid=50)
    assert found.values == {f"after_{name}": inode for name, inode in SPACES.items()}


def test_programs_are_remembered_beyond_their_end(world: dict[int, ProgramInfo]) -> None:
    world[1] = ProgramInfo(17, b"11111111", b"old", 2, 20)
    events = Events(KINDS)
    world[2] = ProgramInfo(2, b"22222222", b"new", 4, 40)
    loaded = event(Bpf(1, 2, b"22222222"), events=events)
    assert loaded.values == {
        "tag": b"22222222",
        "program_id": 2,
        "program_type": 2,
        "instructions": 4,
        "jited": 40,
    }
    assert loaded.data == {"name": b"new"}
    world.clear()
    for id, name, tag in ((1, b"old", b"11111111"), (2, b"new", b"22222222")):
        freed = event(Bpf(2, id, tag), events=events)
        assert (freed.kind, freed.data) == ("bpf_unload", {"name": name})
    unknown = event(Bpf(1, 3, b"33333333"), events=events)
    assert (unknown.values, unknown.data) == ({"tag": b"33333333", "program_id": 3}, {"name": None})
    other = event(Bpf(2, 2, b"another!"), events=events)
    assert other.data == {"name": None}, "the id was given again"


def test_the_kernels_symbols_groups_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kallsyms, "at", lambda _, address: b"f+0x1/0x2" if address == 9 else None)
    symbol = event(Ksymbol(9, 8, 1, True, b"bpf_prog_x"))
    assert symbol.values == {"address": 9, "length": 8, "type": 1, "unregister": True}
    assert symbol.data == {"name": b"bpf_prog_x"}
    group = event(Cgroup(77, b"/a"))
    assert (group.values, group.data) == ({"cgroup_id": 77}, {"path": b"/a"})
    code = event(TextPoke(9, b"", b"abc"))
    assert code.values == {"address": 9, "length": 3}
    assert code.data == {"symbol": b"f+0x1/0x2", "old": b"", "new": b"abc"}
    assert event(TextPoke(8, b"", b"")).data["symbol"] == b""


class Sideband:
    """Buffers that hold what the test puts there."""

    def __init__(self, kinds: Sequence[str], *, data: bool = False) -> None:
        self.kinds, self.data = kinds, data
        self.coming: list[tuple[Record, Content]] = []
        self.lost = 0
        self.descriptors = [3]
        self.listening = self.closed = False

    @property
    def waits(self) -> bool:
        return bool(self.coming)

    def listen(self, on: bool) -> None:
        self.listening = on

    def read(self, until: int) -> tuple[list[Record], int]:
        now = [(record, said) for record, said in self.coming if record.time <= until]
        self.coming = [each for each in self.coming if each not in now]
        lost, self.lost = self.lost, 0
        said_of.update({id(record): said for record, said in now})
        kept.extend(record for record, _ in now)
        return [record for record, _ in sorted(now, key=lambda each: each[0].time)], lost

    def close(self) -> None:
        self.closed = True


said_of: dict[int, Content] = {}
kept: list[Record] = []
"""Records stay alive, so that their ids are theirs alone."""


class Known(Who):
    """Knows what the test writes down."""

    def __init__(self, known: Mapping[int, Values | Whose]) -> None:
        self._known_of = known

    def __call__(self, pid: int, when: int, tid: int = 0) -> Values | None:
        known = self._known_of.get(pid, {})
        return None if isinstance(known, str) else {"pid": pid, "tid": tid or pid, **known}

    def whose(self, pid: int, when: int) -> Whose:
        known = self._known_of[pid]
        assert isinstance(known, str)
        return known


class World:
    """The feed, its ring, and what is known of processes."""

    def __init__(self, **wanted: Any) -> None:
        self.row: Any = np.zeros(1, OWN)
        self.row["start"] = self.row["sequence"] = START
        self.fd = os.memfd_create("ring")
        size = 64 * 1024
        os.ftruncate(self.fd, 2 * PAGE + size)
        self.memory = OwnMemory(self.fd, size)
        self.known: dict[int, Values | Whose] = {}
        ring = OwnRing(PERF_RING, self.memory, self.row, {"path": 65536})
        self.feed = Perf(ring, Known(self.known), Wanted(**{"kinds": KINDS, **wanted}), START * 1000 + 70)
        self.sideband: Any = self.feed._sideband

    def come(self, said: Content, time: int = 5000, pid: int = 7) -> None:
        self.sideband.coming.append((record(pid, time=time), said))

    @property
    def chunks(self) -> Any:
        return self.memory.chunks[: int(self.memory.producer[0]) // STRIDE]

    def heads(self, kind: str) -> Any:
        schema = by_name()[kind]
        return self.chunks[self.chunks["kind"] == schema.number].view(schema.dtype)

    def booked(self, kind: str, counter: str) -> int:
        return int(self.row["kinds"][0][by_name()[kind].number][counter])


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(perf_module, "Sideband", Sideband)
    monkeypatch.setattr(perf_module, "content", lambda record: said_of.get(id(record)))
    yield
    said_of.clear()
    kept.clear()


def test_records_go_into_the_ring_in_order_of_time() -> None:
    world = World()
    for time in (5003, 5001, 5002, 9000):
        world.come(FILE._replace(address=time), time)
    world.feed.pump(6000)
    assert world.heads("mmap")["address"].tolist() == [5001, 5002, 5003]
    assert world.chunks["time"].tolist() == [5001, 5002, 5003]
    assert world.feed.waits, "what is later may have something before it in another buffer"
    world.feed.pump(9500)
    assert world.heads("mmap")["address"].tolist()[3:] == [9000]
    assert not world.feed.waits


def test_the_last_time_nothing_stays_behind() -> None:
    world = World()
    world.come(FILE, EVER - 1)
    world.feed.pump(6000, last=True)
    assert len(world.heads("mmap")) == 1


def test_what_came_and_what_was_lost_is_in_the_books() -> None:
    world = World()
    world.come(FILE)
    world.come(Comm(7, 7, b"x", True))
    world.sideband.lost = 5
    world.feed.pump(6000)
    assert (int(world.row["received"][0]), int(world.row["lost"][0])) == (2, 5)
    assert (int(world.row["away"][0]), int(world.row["away_ns"][0])) == (1, 70)
    assert int(world.row["seen"][0]) == 6000
    assert world.booked("mmap", "attempted") == 1
    assert world.booked("comm", "attempted") == 0


def test_our_own_are_filtered_and_booked() -> None:
    """What the pipeline does, and what the loader does for a hand-over."""
    world = World()
    world.known |= {7: "self", 8: "test"}
    world.come(FILE)
    for _ in range(2):
        world.come(FILE._replace(pid=8))
    world.feed.pump(6000)
    assert len(world.chunks) == 0
    assert world.booked("mmap", "attempted") == 3
    assert (world.booked("mmap", "filtered_self"), world.booked("mmap", "filtered_test")) == (1, 2)


@pytest.mark.parametrize(("asked", "counter"), [("uids", "filtered_uid"), ("cgroups", "filtered_cgroup")])
def test_filters_of_the_kernel_hold_here_too(asked: str, counter: str) -> None:
    """Whose is unknown is reported: better one too many."""
    world = World(**{asked: (1000, 1001)})
    name = {"uids": "uid", "cgroups": "cgroup"}[asked]
    for pid, value in ((1, 1000), (2, 5), (3, None)):
        world.known[pid] = {} if value is None else {name: value}
        world.come(FILE._replace(pid=pid))
    world.feed.pump(6000)
    assert world.heads("mmap")["pid"].tolist() == [1, 3]
    assert world.booked("mmap", counter) == 1
    assert world.booked("mmap", "attempted") == 3


def test_a_name_is_that_of_its_time() -> None:
    """By the records before: an exec's too. Not one of an earlier process with this pid, nor a thread's."""
    world = World()
    world.known[7] = {"start": 5000, "comm": NAMELESS}
    for time, said in (
        (4000, Comm(7, 7, b"earlier", True)),
        (5001, FILE),
        (5002, Comm(7, 7, b"first", True)),
        (5003, FILE),
        (5004, Comm(7, 70, b"thread", False)),
        (5005, FILE),
        (5006, Comm(7, 7, b"second", False)),
        (5007, FILE),
        (5008, FILE._replace(tid=70)),
    ):
        world.come(said, time)
    world.feed.pump(6000)
    names = [bytes(name).rstrip(b"\0") for name in world.heads("mmap")["comm"].tolist()]
    assert names == [NAMELESS, b"first", b"first", b"second", NAMELESS]


def test_a_fork_says_what_is_known_of_the_child() -> None:
    world = World()
    world.known[8] = {"start": 4000, "ns_pid": 2}
    for child in (8, 9):
        world.come(Task(child, 7, child, 7, False))
    world.feed.pump(6000)
    assert world.heads("fork")["child_pid"].tolist() == [8, 9]
    assert world.heads("fork")["child_start"].tolist() == [4000, 2**64 - 1]
    assert world.heads("fork")["child_ns_pid"].tolist() == [2, 0]


def test_the_rest_is_the_sidebands() -> None:
    world = World(data=True)
    assert world.sideband.data
    assert world.feed.descriptors == [3]
    world.feed.listen(True)
    assert world.sideband.listening
    world.feed.close()
    assert world.sideband.closed
