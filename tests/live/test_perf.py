"""The perf side-band on its own: every kind that it gives, against /proc, bpftool and the tests' own calls.

One run with `--surface perf`; the processes are short-lived, so what is told of them was kept by the kernel's
side.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.live.compare import cannot, ran, same, who
from tests.live.run import SLOWER, Live, Record, eventually
from tests.live.witness import as_record, fork, libc, spoken

pytestmark = pytest.mark.kernel

KINDS = {"mmap", "comm", "namespace", "bpf_load", "bpf_unload", "ksymbol", "cgroup"}
PAGE = mmap.PAGESIZE
READ_EXECUTE = mmap.PROT_READ | mmap.PROT_EXEC
SPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
CLONE_NEWUTS = 0x04000000
BPF, BPF_PROG_LOAD, SOCKET_FILTER = 321, 5, 1
RETURN_0 = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)


@pytest.fixture(scope="module")
def perf(make_live: Callable[..., Live]) -> Iterator[Live]:
    live = make_live(surface="perf")
    live.start()
    assert {kind for kind, surface in live.kinds.items() if surface == "perf"} - {"kernel_text"} == KINDS
    yield live
    assert live.stop() == 0, live.said()
    assert live.ledger()["balanced"], live.ledger()


def one(live: Live, pid: int, kind: str, which: Callable[[Record], bool]) -> Record:
    """The one such record, when it has come."""
    return only(lambda: [r for r in live.log.of(pid, kind) if which(r)], f"a {kind} of process {pid}")


def only(found: Callable[[], list[Record]], what: str) -> Record:
    (record,) = eventually(found, what)
    assert isinstance(record, dict)
    return record


def told(path: Path) -> dict[str, Any]:
    """What a child wrote down."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def common(path: Path) -> dict[str, Any]:
    """What a child wrote down of itself."""
    return {key: value for key, value in told(path).items() if key.startswith("process.")}


def map_file(file: int, offset: int = 0, flags: int = mmap.MAP_PRIVATE) -> dict[str, Any]:
    """Map a page that can be executed; say what /proc/self/maps says."""
    address = libc.mmap(None, PAGE, READ_EXECUTE, flags, file, offset)
    line = next(
        line
        for line in Path("/proc/self/maps").read_bytes().splitlines()
        if line.startswith(b"%x-" % address)
    )
    _, _, at, device, inode, *_ = line.split(None, 5)
    major, minor = (int(part, 16) for part in device.split(b":"))
    return {
        **who(),
        "address": address,
        "offset": int(at, 16),
        "inode": int(inode) or None,
        "device": os.makedev(major, minor) or None,
        "permissions": line.split()[1].decode(),
    }


def mapped(live: Live, ground: Path, open_file: Callable[[], int], offset: int = 0) -> tuple[Record, Path]:
    """The event of a mapping that a child makes, and what it wrote down."""
    note = ground / f"mapped-{time.monotonic_ns()}"
    flags = mmap.MAP_PRIVATE

    def child() -> None:
        file = open_file()
        spoken(note, lambda: map_file(file, offset, flags | (mmap.MAP_ANONYMOUS if file < 0 else 0)))()

    act = fork(child)
    assert act.status == 0
    return one(live, act.pid, "mmap", lambda r: r["address"] == told(note)["address"]), note


def expected(note: Path, path: bytes | None, *, memfd: bool = False, deleted: bool = False) -> dict[str, Any]:
    said = told(note)
    assert said["permissions"] == "r-xp"
    return {
        **{key: said[key] for key in ("address", "offset", "inode", "device")},
        "length": PAGE,
        "prot": READ_EXECUTE,
        "flags": mmap.MAP_PRIVATE,
        "errno": 0,
        "memfd": memfd,
        "deleted": deleted,
        "path": None if path is None else as_record(path),
    }


NAMES = {
    "plain": b"plain",
    "newline": b"two\nlines and \\012",
    "not UTF-8": b"\xff\xfe\x80",
    "as if deleted": b"file (deleted)",
    "as if a memfd": b"memfd:x",
    "long": b"/".join([b"x" * 200] * 15),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_file(perf: Live, ground: Path, name: str) -> None:
    path = os.path.join(os.fsencode(ground), b"mmap", NAMES[name])
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(bytes(3 * PAGE))
    record, note = mapped(perf, ground, lambda: os.open(path, os.O_RDONLY), offset=2 * PAGE)
    same(record, expected(note, path))
    same(record, common(note))


def test_a_deleted_file(perf: Live, ground: Path) -> None:
    path = os.fsencode(ground / "soon gone")

    def opened() -> int:
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.write(file, bytes(PAGE))
        os.unlink(path)
        return file

    record, note = mapped(perf, ground, opened)
    same(record, expected(note, path, deleted=True))


def test_a_memfd(perf: Live, ground: Path) -> None:
    def opened() -> int:
        file = os.memfd_create("code (deleted)")
        os.write(file, bytes(PAGE))
        return file

    record, note = mapped(perf, ground, opened)
    same(record, expected(note, b"memfd:code (deleted)", memfd=True))


def test_anonymous_memory(perf: Live, ground: Path) -> None:
    record, note = mapped(perf, ground, lambda: -1)
    same(record, expected(note, None))


def test_who_it_was_is_known_of_one_that_is_gone(perf: Live, ground: Path, acts: bytes) -> None:
    """The program before an exec, the program after it, and its parent's."""
    note = ground / "before-exec"

    def child() -> None:
        file = os.open(acts, os.O_RDONLY)
        spoken(note, lambda: map_file(file))()
        os.execv(acts, [acts])

    act = fork(child)
    before = one(perf, act.pid, "mmap", lambda r: r["address"] == told(note)["address"])
    mine = only(lambda: perf.log.of(os.getpid(), "process"), "our own process event")
    same(before, {"process.exec_id": mine["id"], "process.parent.exec_id": mine["id"]})
    assert before["process"]["executable"] == mine["executable"]
    assert before["process"]["parent"]["id"] == mine["process"]["id"]
    assert before["process"]["id"].startswith(before["host"]["boot_id"])


def spaces() -> dict[str, int]:
    return {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in SPACES}


def test_unshare(perf: Live, ground: Path) -> None:
    note = ground / "unshared"

    def child() -> None:
        before = spaces()
        assert libc.unshare(CLONE_NEWUTS) == 0
        after = spaces()
        said = {f"before.{n}": i for n, i in before.items()} | {f"after.{n}": i for n, i in after.items()}
        spoken(note, lambda: {**who(), **said})()

    act = fork(child)
    record = one(perf, act.pid, "namespace", lambda r: True)
    assert told(note)["before.uts"] != told(note)["after.uts"]
    same(record, {"call": None, "errno": 0, "child_pid": None, **told(note)})
    same(record, ran(perf.log, by_child=True))


def test_a_child_in_a_new_namespace(perf: Live) -> None:
    """unshare(1) asks for it, its child is the first in it."""
    with subprocess.Popen(
        ["unshare", "--pid", "--fork", "sh", "-c", "echo $(readlink /proc/self/ns/pid); read x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as running:
        assert running.stdout
        link = running.stdout.readline().decode()
        child = int(Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text())
        running.communicate(b"\n")
    record = one(perf, running.pid, "namespace", lambda r: True)
    inode = int(link.partition("[")[2].partition("]")[0])
    same(
        record, {"call": 1, "errno": 0, "child_pid": child, "after.pid": inode, "before.pid": spaces()["pid"]}
    )
    assert not perf.log.of(child, "namespace")


def load(name: bytes) -> int:
    """Load a BPF program: its descriptor."""
    code, license = ctypes.create_string_buffer(RETURN_0), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        *("=IIQQIIQII16s", SOCKET_FILTER, 2, ctypes.addressof(code), ctypes.addressof(license)),
        *(0, 0, 0, 0, 0, name),
    )
    descriptor: int = libc.syscall(BPF, BPF_PROG_LOAD, attributes, len(attributes))
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    return descriptor


@pytest.fixture(scope="module")
def program(perf: Live) -> tuple[dict[str, Any], bytes, int]:
    """A program that was loaded and freed again: what bpftool said, its symbol as /proc/kallsyms had it, and
    who did it."""
    descriptor = load(b"witness_of_perf")
    id = int(Path(f"/proc/self/fdinfo/{descriptor}").read_text().partition("prog_id:\t")[2].split()[0])
    shown = subprocess.run(["bpftool", "-j", "prog", "show", "id", str(id)], capture_output=True, check=True)
    said: dict[str, Any] = json.loads(shown.stdout)
    tag = said["tag"].encode()
    symbols = Path("/proc/kallsyms").read_bytes().splitlines()
    symbol = next((line for line in symbols if b"bpf_prog_" + tag + b"_witness" in line), b"")
    os.close(descriptor)
    return said, symbol, os.getpid()


@pytest.mark.parametrize("kind", ["bpf_load", "bpf_unload"])
def test_a_bpf_program(perf: Live, program: tuple[dict[str, Any], bytes, int], kind: str) -> None:
    said, _, pid = program
    records = only(
        lambda: [r for r in perf.log.read() if r["kind"] == kind and r["program_id"] == said["id"]], kind
    )
    same(
        records,
        {
            "tag": said["tag"],
            "program_id": said["id"],
            "program_type": SOCKET_FILTER,
            "attach_type": None,
            "instructions": said["bytes_xlated"] // 8,
            "jited": said.get("bytes_jited", 0),
            "name": said["name"],
            "attach_to": None,
        },
    )
    same(records, {**who(pid), **ran(perf.log)})


def test_a_symbol_of_the_kernel(perf: Live, program: tuple[dict[str, Any], bytes, int]) -> None:
    said, symbol, pid = program
    if not said.get("jited"):
        cannot("ksymbol", "this kernel interprets BPF programs")
    name = symbol.split()[2].decode()
    added, removed = eventually(
        lambda: two([r for r in perf.log.read() if r["kind"] == "ksymbol" and r["name"] == name]),
        "both events of the symbol",
    )
    for record, gone in ((added, False), (removed, True)):
        same(
            record,
            {"address": int(symbol.split()[0], 16), "type": 1, "unregister": gone, "name": name},
        )
        same(record, {"length": said["bytes_jited"]})
    same(added, {**who(pid), **ran(perf.log)})


def two(found: list[Record]) -> list[Record] | None:
    return found if len(found) == 2 else None


def test_a_control_group(perf: Live, ground: Path) -> None:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    roots = [Path(m[1]) for m in mounts if m[2] == "cgroup" and "perf_event" in m[3].split(",")]
    if "perf_event\t0\t" in Path("/proc/cgroups").read_text():  # of no version-1 hierarchy
        roots = [Path(m[1]) for m in mounts if m[2] == "cgroup2"]
    if not roots:
        cannot("cgroup", "no hierarchy of perf_event is mounted")
    folder = roots[0] / f"promissory-test-{os.getpid()}"
    note = ground / "cgroup"

    def child() -> None:
        folder.mkdir()
        spoken(note, who)()

    try:
        act = fork(child)
        assert act.status == 0
        record = one(perf, act.pid, "cgroup", lambda r: r["path"].endswith(folder.name))
        same(record, {"cgroup_id": folder.stat().st_ino, "path": f"/{folder.name}", **common(note)})
        same(record, ran(perf.log, by_child=True))
    finally:
        with suppress(OSError):
            folder.rmdir()


def test_the_kernels_own_code(perf: Live) -> None:
    """A static branch is switched: the code at that place, before and after."""
    if "kernel_text" not in perf.kinds:
        cannot("kernel_text", "this kernel accepts to tell of changed code, and does not")
    switch = Path("/proc/sys/kernel/sched_schedstats")
    before = switch.read_text()
    count = sum(r["kind"] == "kernel_text" for r in perf.log.read())
    try:
        for value in ("1", "0", "1", "0"):
            switch.write_text(value)
    finally:
        switch.write_text(before)
    records = eventually(
        lambda: [r for r in perf.log.read() if r["kind"] == "kernel_text"][count:], "changed code"
    )
    symbols = [line.split() for line in Path("/proc/kallsyms").read_text().splitlines()]
    starts = {int(address, 16): name for address, _, name, *_ in symbols}
    for record in records:
        assert len(record["new"]) == record["length"] == len(record["old"])
        name, _, rest = record["symbol"].partition("+")
        behind = int(rest.partition("/")[0], 16)
        assert starts[record["address"] - behind] is not None
        assert any(
            int(address, 16) == record["address"] - behind for address, _, n, *_ in symbols if n == name
        )
    same(records[0], who())
    same(records[0], {"address": records[0]["address"], "length": len(records[0]["new"])})


def test_the_books_say_what_came(perf: Live) -> None:
    books = perf.ledger()["rings"]["1021"]
    assert books["received"] >= books["chunks_attempted"] > 0
    assert books["lost"] == 0
    assert books["away"] == 1
    assert books["away_ns"] > 0


def storm(stop: Path) -> None:
    """Mappings without end, thousands in a second."""
    file = os.open("/usr/bin/env", os.O_RDONLY)
    while not stop.exists():
        for _ in range(100):
            mmap.mmap(file, PAGE, prot=READ_EXECUTE, flags=mmap.MAP_PRIVATE).close()
        time.sleep(0.01 * SLOWER)


def test_a_killed_pipeline_leaves_books_that_balance(make_live: Callable[..., Live], ground: Path) -> None:
    """What its ring holds is delivered by the next; the time between is an interval of unknown count."""
    live, stop = make_live(surface="perf"), ground / "enough"
    assert live.command("attach", "--state", str(live.state), "--events", "mmap").returncode == 0
    pid = os.fork()
    if pid == 0:
        try:
            storm(stop)
        finally:
            os._exit(0)
    try:
        for _ in range(2):
            enough = len(live.log.of(pid, "mmap")) + 1000
            live.start(events="mmap")
            eventually(lambda: len(live.log.of(pid, "mmap")) > enough, "a thousand mappings")  # noqa: B023
            assert live.stop(signal.SIGKILL) == -signal.SIGKILL
            assert live.ledger()["balanced"], live.ledger()
    finally:
        stop.touch()
        os.waitpid(pid, 0)
    live.start(events="mmap")
    eventually(lambda: live.ledger()["in_flight"] == 0, "what the rings held")
    assert live.stop() == 0, live.said()
    ledger = live.ledger()
    assert ledger["balanced"], ledger
    assert ledger["in_flight"] == 0
    assert ledger["rings"]["1021"]["away"] == 3
    places = [(r["ring"], r["sequence"]) for r in live.log.of(pid, "mmap")]
    assert len(set(places)) == len(places)


def test_what_a_hand_over_does_is_a_self_test(make_live: Callable[..., Live]) -> None:
    """As at surfaces of BPF: the loader's programs, and what it maps once it has said who it is."""
    live = make_live(surface="perf")
    live.start()
    kinds = ("bpf_load", "bpf_unload", "ksymbol", "mmap")
    done = live.command("attach", "--state", str(live.state), "--events", ",".join(kinds))
    assert done.returncode == 0, done.stderr
    assert "generation 2" in done.stdout
    assert live.stop() == 0, live.said()
    execs = [r for r in live.log.read() if r["kind"] == "exec"]
    (command,) = (r["process"]["pid"] for r in execs if str(live.state) in (r["argv"] or ()))
    made = [r for r in execs if r["process"]["parent"]["pid"] == command]
    (loader,) = (r["process"]["pid"] for r in made if "pipeline.kernel.loader" in r["argv"])
    assert not live.log.of(loader, "bpf_load", "bpf_unload", "ksymbol")
    filtered = {(f["kind"], f["reason"]): f["count"] for f in live.ledger()["filters"]}
    assert all(filtered.get((kind, "self-test")) for kind in kinds), filtered
    assert live.ledger()["balanced"]
