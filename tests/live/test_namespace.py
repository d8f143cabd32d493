"""namespace: who left which for which, against /proc/PID/ns. cgroup: which were made, against stat(2)."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from tests.live.compare import cannot, ran, same, who
from tests.live.host import need_tracing
from tests.live.run import Live, Record, eventually
from tests.live.skipped import without
from tests.live.witness import Act, Arguments, fork, libc

pytestmark = pytest.mark.kernel

FLAGS: Final = {
    "cgroup": 0x02000000,
    "ipc": 0x08000000,
    "mnt": 0x00020000,
    "net": 0x40000000,
    "pid": 0x20000000,
    "time": 0x00000080,
    "user": 0x10000000,
    "uts": 0x04000000,
}
ALL: Final = sum(FLAGS.values())
CLONE, UNSHARE, SETNS = 1, 2, 3
CLONE_FS = 0x200
CLONE3, PIDFD_OPEN = 435, 434
NOBODY = 65534
IN_ALL: Final = {"mnt", "pid", "time", "user"}
"""Of these kinds, those that the virtual machines try too."""
each_kind = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.vm if kind in IN_ALL else ()) for kind in FLAGS]
)


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, make_live: Callable[..., Live]) -> Iterator[Live]:
    """The shared run where it sees all calls; where only perf sees some (test_perf.py), another one."""
    shared: Live = request.getfixturevalue("live")
    if shared.kinds["namespace"] == "fexit":
        yield shared
        return
    live = make_live(surface="sys_exit")
    live.start(events="process,namespace")
    yield live
    assert live.stop() == 0, live.said()
    assert live.ledger()["balanced"], live.ledger()


@pytest.fixture
def told(tmp_path: Path) -> Path:
    return tmp_path / "told"


def spaces(pid: int | str = "self") -> dict[str, int]:
    return {kind: os.stat(f"/proc/{pid}/ns/{kind}").st_ino for kind in FLAGS}


def expected(
    live: Live, who: Mapping[str, Any], before: Mapping[str, int], after: Mapping[str, int], **more: Any
) -> dict[str, Any]:
    """A record of unshare or setns. At the end of a system call nobody knows what was before."""
    known = live.kinds["namespace"] == "fexit" or more["call"] == CLONE
    return {
        **who,
        **(ran(live.log, by_child=True) if who else {}),
        **{f"before.{kind}": before[kind] if known else None for kind in FLAGS},
        **{f"after.{kind}": after[kind] for kind in FLAGS},
        "child_pid": None,
        **more,
    }


def only(live: Live, act: Act) -> Record:
    (record,) = these(live, act, 1)
    return record


def these(live: Live, act: Act, number: int) -> list[Record]:
    """The events of a process, when there are that many; no more may be there."""

    def found() -> list[Record]:
        records = live.log.of(act.pid, "namespace")
        return records if len(records) >= number else []

    records: list[Record] = eventually(found, f"{number} events of process {act.pid}")
    return records


def call(function: Callable[[], int]) -> int:
    """The errno of a call; 0: it succeeded."""
    ctypes.set_errno(0)
    return ctypes.get_errno() if function() < 0 else 0


@contextmanager
def container() -> Iterator[int]:
    """A process in new namespaces of every kind."""
    ready, tell = os.pipe()
    holder = os.fork()
    if holder == 0:
        failed = libc.unshare(ctypes.c_int(ALL))
        inner = os.fork()
        if inner == 0:
            libc.prctl(1, signal.SIGKILL)  # ends with its parent
            signal.pause()
        os.write(tell, b"0" if failed else b"%d" % inner)
        os.waitpid(inner, 0)
        os._exit(0)
    said = int(os.read(ready, 20))
    os.close(ready)
    os.close(tell)
    try:
        assert said
        # What the holder's number for it is not what ours is: it stands in a pid namespace below.
        (inner,) = map(int, Path(f"/proc/{holder}/task/{holder}/children").read_text().split())
        yield inner
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)


@each_kind
def test_unshare(run: Live, told: Path, kind: str) -> None:
    before = spaces()

    def leave() -> None:
        mine = who()
        assert libc.unshare(ctypes.c_int(FLAGS[kind])) == 0

        def look() -> None:  # a pid or time namespace is that of children
            told.write_text(json.dumps([mine, os.stat(f"/proc/self/ns/{kind}").st_ino]))

        fd = os.open(told, os.O_CREAT | os.O_WRONLY, 0o666)
        os.close(fd)
        assert fork(look).status == 0

    record = only(run, fork(leave))
    mine, inode = json.loads(told.read_text())
    assert inode != before[kind]
    after = {**before, kind: inode}
    same(record, expected(run, mine, before, after, call=UNSHARE, flags=FLAGS[kind], errno=0))


@each_kind
def test_setns_by_a_namespace(run: Live, told: Path, kind: str) -> None:
    before = spaces()
    with container() as other:
        wanted = {**before, kind: spaces(other)[kind]}

        def enter() -> None:
            told.write_text(json.dumps(who()))
            fd = os.open(f"/proc/{other}/ns/{kind}", os.O_RDONLY)
            assert libc.setns(fd, 0) == 0

        record = only(run, fork(enter))
    mine = json.loads(told.read_text())
    assert wanted != before
    same(record, expected(run, mine, before, wanted, call=SETNS, flags=0, errno=0))


@pytest.mark.vm
def test_setns_by_a_process(run: Live, told: Path) -> None:
    before, chosen = spaces(), ("mnt", "net", "uts")
    flags = sum(FLAGS[kind] for kind in chosen)
    with container() as other:
        there = spaces(other)

        def enter() -> None:
            told.write_text(json.dumps(who()))
            fd = libc.syscall(PIDFD_OPEN, other, 0)
            assert libc.setns(fd, ctypes.c_int(flags)) == 0

        record = only(run, fork(enter))
    after = {**before, **{kind: there[kind] for kind in chosen}}
    same(record, expected(run, json.loads(told.read_text()), before, after, call=SETNS, flags=flags, errno=0))


def forbidden() -> int:
    os.setresuid(NOBODY, NOBODY, NOBODY)
    return int(libc.unshare(FLAGS["net"]))


FAILURES = {
    "a flag that there is not": (lambda: libc.unshare(FLAGS["uts"] | 1), UNSHARE, FLAGS["uts"], errno.EINVAL),
    "not permitted": (forbidden, UNSHARE, FLAGS["net"], errno.EPERM),
    "no descriptor": (lambda: libc.setns(-1, FLAGS["uts"]), SETNS, FLAGS["uts"], errno.EBADF),
    "no namespace": (lambda: libc.setns(0, 0), SETNS, 0, errno.EINVAL),
    "of another type": (
        lambda: libc.setns(os.open("/proc/self/ns/uts", os.O_RDONLY), FLAGS["net"]),
        SETNS,
        FLAGS["net"],
        errno.EINVAL,
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_what_fails_changes_nothing(run: Live, failure: str) -> None:
    function, number, flags, wanted = FAILURES[failure]

    def fail() -> None:
        os.close(0)
        os.open(os.devnull, os.O_RDONLY)
        os._exit(call(function))

    act = fork(fail)
    record = only(run, act)
    now = spaces()
    assert os.waitstatus_to_exitcode(act.status) == wanted
    same(record, expected(run, {}, now, now, call=number, flags=flags, errno=wanted))


@pytest.mark.vm
def test_what_has_nothing_to_do_with_namespaces_is_none(run: Live) -> None:
    act = fork(lambda: (libc.unshare(CLONE_FS), libc.unshare(FLAGS["uts"])))
    assert only(run, act)["flags"] == FLAGS["uts"]


class CloneArguments(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("ids", ctypes.c_uint64 * 3),
        ("signal", ctypes.c_uint64),
        ("rest", ctypes.c_uint64 * 3),
    )


def clone3(flags: int) -> int:
    arguments = CloneArguments(flags=flags, signal=signal.SIGCHLD)
    return int(libc.syscall(CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments)))


@pytest.mark.vm
def test_a_container_in_all_new_namespaces(run: Live, live: Live, acts: bytes, told: Path) -> None:
    before = spaces()
    argv, environment = Arguments([b"inside"]), Arguments([b"LANG=C"])
    path = ctypes.create_string_buffer(acts)
    ready, go = os.pipe()

    def make() -> None:
        mine = who()
        child = clone3(ALL)
        if child == 0:
            os.read(ready, 1)
            libc.execve(ctypes.addressof(path), argv.address, environment.address)
            os._exit(99)
        told.write_text(json.dumps([mine, child, spaces(child)]))
        os.write(go, b"x")
        os._exit(os.waitpid(child, 0)[1])

    act = fork(make)
    os.close(ready)
    os.close(go)
    assert act.status == 0
    record = only(run, act)
    mine, child, after = json.loads(told.read_text())
    assert not {kind for kind in FLAGS if before[kind] == after[kind]}
    flags = expected(run, mine, before, after, call=CLONE, flags=ALL, errno=0)
    same(record, {**flags, "child_pid": child})
    live.ended(child)
    (inside,) = live.log.of(child, "exec")
    assert inside["namespaces"] == after
    assert inside["argv"] == ["inside"]
    assert inside["process"]["ns_pid"] == 1
    assert inside["process"]["uid"] == 0, "as the first user namespace knows it"
    assert inside["process"]["parent"]["pid"] == act.pid


@pytest.mark.vm
def test_a_clone_that_fails(run: Live) -> None:
    need_tracing()
    assert run.kinds["namespace"] == "fexit"
    flags = FLAGS["user"] | CLONE_FS
    act = fork(lambda: os._exit(call(lambda: clone3(flags))))
    assert os.waitstatus_to_exitcode(act.status) == errno.EINVAL
    now = spaces()
    more = {"call": CLONE, "flags": FLAGS["user"], "errno": errno.EINVAL}
    same(only(run, act), expected(run, {}, now, now, **more))


@pytest.mark.vm
def test_every_call_of_a_storm_is_seen(run: Live) -> None:
    times = 200

    def storm() -> None:
        for _ in range(times):
            libc.unshare(FLAGS["uts"])
            libc.setns(-1, 0)

    found = these(run, fork(storm), 2 * times)
    assert [(record["call"], record["errno"]) for record in found] == [
        (UNSHARE, 0),
        (SETNS, errno.EBADF),
    ] * times
    inodes = [record["after"]["uts"] for record in found]
    assert inodes[::2] == inodes[1::2]
    if run.kinds["namespace"] == "fexit":
        assert [record["before"]["uts"] for record in found[1:]] == inodes[:-1]


@pytest.mark.vm
def test_what_was_before_is_not_an_earlier_call_s(run: Live) -> None:
    """Where the kernel skips the run at a call's beginning, nobody knows."""
    need_tracing()
    ready, tell = os.pipe()
    begin, go = os.pipe()

    def leave_twice() -> None:
        libc.unshare(FLAGS["uts"])
        os.write(tell, b"x")
        os.read(begin, 1)
        libc.unshare(FLAGS["uts"])
        libc.setns(-1, 0)

    with ThreadPoolExecutor() as pool:
        future = pool.submit(fork, leave_twice)
        os.read(ready, 1)
        with without(run, "namespace", "fentry/__x64_sys_unshare"):
            os.write(go, b"x")
            act = future.result()
    first, second, third = these(run, act, 3)
    assert first["before"] == spaces()
    assert first["after"]["uts"] not in (first["before"]["uts"], second["after"]["uts"])
    assert set(second["before"].values()) == {None}
    assert third["before"] == third["after"] == second["after"]


# ---- control groups


def hierarchies() -> Iterator[tuple[Path, int]]:
    """Where hierarchies are mounted, and their numbers."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    numbers = {line.split(":")[1]: int(line.split(":")[0]) for line in lines}
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2":
            yield Path(place), 0
        elif kind == "cgroup":
            known = [
                n for name, n in numbers.items() if name and set(name.split(",")) <= set(options.split(","))
            ]
            yield from ((Path(place), number) for number in known[:1])


@contextmanager
def made(root: Path, names: list[str], told: Path) -> Iterator[tuple[Path, int]]:
    """A control group in a control group …, by a child, which says who it is; the last one's folder and the
    maker's pid.
    """

    def make() -> None:
        told.write_text(json.dumps(who()))
        folder = root
        for name in names:
            folder /= name
            folder.mkdir()

    act = fork(make)
    folder = root.joinpath(*names)
    try:
        assert act.status == 0
        yield folder, act.pid
    finally:
        for path in (folder, *folder.parents[: len(names) - 1]):
            with suppress(FileNotFoundError):
                path.rmdir()


@pytest.fixture(scope="module")
def hierarchy() -> tuple[Path, int]:
    for root, number in hierarchies():
        if os.access(root, os.W_OK) and os.path.samefile(root, root.parent / root.name):
            return root, number
    cannot("cgroup", "no hierarchy is mounted")


def base(root: Path) -> str:
    """Where in its hierarchy the mounted folder is."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(root):
            return fields[3].rstrip("/")
    return ""


@pytest.mark.vm
def test_a_control_group(live: Live, hierarchy: tuple[Path, int], told: Path) -> None:
    root, number = hierarchy
    with made(root, [f"promissory-{os.getpid()}"], told) as (folder, pid):
        live.ended(pid)
        (record,) = live.log.of(pid, "cgroup")
        same(
            record,
            {
                "cgroup_id": folder.stat().st_ino,
                "hierarchy": number,
                "path": f"{base(root)}/{folder.name}",
                **json.loads(told.read_text()),
                **ran(live.log, by_child=True),
            },
        )


@pytest.mark.vm
def test_a_path_that_the_kernel_cut(live: Live, hierarchy: tuple[Path, int], told: Path) -> None:
    root, _ = hierarchy
    names = [f"promissory-{os.getpid()}-", *("d" * 200 for _ in range(6))]
    with made(root, names, told) as (folder, pid):
        live.ended(pid)
        *whole, _, cut = live.log.of(pid, "cgroup")
        path = f"{base(root)}/{'/'.join(names)}"
        assert [record["path"] for record in whole] == [path.rsplit("/", n)[0] for n in range(6, 1, -1)]
        assert cut["path"] == path[:1023]
        assert cut["unsettled"]["path"] == {"state": "capped", "have": 1023, "of": None, "chunks": []}
        assert cut["cgroup_id"] == folder.stat().st_ino
