"""exec: which file runs, by which path, and where."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live.compare import same
from tests.live.run import Live
from tests.live.witness import as_record, execute, libc, spoken

CLONE_NEWNS, CLONE_VFORK = 0x20000, 0x4000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
ENVIRONMENT = [b"LANG=C", b"MARK=hunter2"]
REDACTED = ["LANG=C", "MARK=***"]

pytestmark = pytest.mark.kernel


@pytest.mark.vm
def test_a_script_says_its_interpreter(live: Live, acts: bytes, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_bytes(b"#!" + acts + b" one two\n")
    script.chmod(0o755)
    name = os.fsencode(script)
    record = live.exec_of(execute(name, [b"ignored", b"a", b""]))
    assert record["path"] == str(script)
    assert record["interpreter"] == acts.decode()
    assert record["executable"] == acts.decode()
    assert record["argv"] == [acts.decode(), "one two", str(script), "a", ""]
    assert record["process"]["comm"] == "script"


@pytest.mark.vm
def test_a_program_has_no_interpreter(live: Live, acts: bytes) -> None:
    same(live.exec_of(execute(acts, [b"acts"])), {"interpreter": None, "script_inode": None})


@pytest.mark.vm
def test_a_script_without_a_name(live: Live, acts: bytes) -> None:
    script = os.memfd_create("script", 0)
    os.write(script, b"#!" + acts + b"\n")
    record = live.exec_of(execute(b"/proc/self/fd/%d" % script, [b"x"]))
    inode = os.fstat(script).st_ino
    os.close(script)
    assert not record["memfd"], "the interpreter is a file"
    same(record, {"script_inode": inode, "interpreter": acts.decode(), "executable": acts.decode()})


@pytest.mark.vm
def test_a_script_after_one_that_did_not_run(live: Live, acts: bytes, tmp_path: Path) -> None:
    """What a failed exec opened is not taken for what the next one does."""
    script = tmp_path / "script"
    script.write_bytes(b"#!/nonexistent\n")
    script.chmod(0o755)

    def fail() -> None:
        with pytest.raises(FileNotFoundError):
            os.execv(script, ["x"])

    same(live.exec_of(execute(acts, [b"x"], before=fail)), {"script_inode": None, "path": acts.decode()})


def test_executable_is_resolved_and_path_is_as_passed(live: Live, acts: bytes, tmp_path: Path) -> None:
    link = tmp_path / "link-to-a-program-with-a-long-name"
    link.symlink_to(os.fsdecode(acts))
    name = b"../" + os.fsencode(tmp_path.name) + b"/" + os.fsencode(link.name)
    record = live.exec_of(execute(name, [b"x"], before=lambda: os.chdir(tmp_path)))
    found = os.stat(acts)
    assert record["path"] == f"../{tmp_path.name}/{link.name}"
    assert record["executable"] == acts.decode()
    assert (record["inode"], record["device"]) == (found.st_ino, found.st_dev)
    assert record["cwd"] == str(tmp_path)
    assert record["process"]["comm"] == link.name[:15]
    assert {record["memfd"], record["deleted"], record["chrooted"]} == {False}


@pytest.mark.parametrize("name", [b"new\nline", b"\xff\xfe", b" ", "ž".encode(), b"n" * 255])
def test_a_folder_of_any_name(live: Live, acts: bytes, tmp_path: Path, name: bytes) -> None:
    folder = os.fsencode(tmp_path) + b"/" + name
    os.mkdir(folder)
    shutil.copy(acts, folder + b"/" + name[:20])
    record = live.exec_of(execute(b"./" + name[:20], [name], before=lambda: os.chdir(folder)))
    assert record["cwd"] == as_record(folder)
    assert record["executable"] == as_record(folder + b"/" + name[:20])


def test_the_root_as_working_directory(live: Live, acts: bytes) -> None:
    assert live.exec_of(execute(acts, [b"x"], before=lambda: os.chdir("/")))["cwd"] == "/"


def test_a_path_over_mounts(live: Live, acts: bytes) -> None:
    record = live.exec_of(execute(acts, [b"x"], before=lambda: os.chdir("/sys/fs/bpf")))
    assert record["cwd"] == "/sys/fs/bpf"
    record = live.exec_of(execute(acts, [b"x"], before=lambda: os.chdir("/proc/self/fd")))
    assert record["cwd"].startswith("/proc/")
    assert record["cwd"].endswith("/fd")


@pytest.fixture
def deep(acts: bytes, ground: Path) -> Iterator[Callable[[int, int], tuple[int, bytes]]]:
    """Makes a folder too deep to be named, with the program in it; (descriptor, path)."""
    top = ground / "deep"
    top.mkdir()
    descriptors: list[int] = []

    def make(levels: int, length: int) -> tuple[int, bytes]:
        here = os.open(top, os.O_RDONLY)
        path = os.fsencode(top)
        for level in range(levels):
            name = b"%03d" % level + b"d" * (length - 3)
            os.mkdir(name, dir_fd=here)
            below = os.open(name, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here, path = below, path + b"/" + name
        descriptors.append(here)
        target = os.open("acts", os.O_WRONLY | os.O_CREAT, 0o755, dir_fd=here)
        os.write(target, Path(os.fsdecode(acts)).read_bytes())
        os.close(target)
        return here, path

    yield make
    for descriptor in descriptors:
        os.close(descriptor)
    shutil.rmtree(top)


@pytest.mark.parametrize(("levels", "length"), [(300, 60), (600, 4), (90, 50)])
def test_a_deep_folder(
    live: Live, deep: Callable[[int, int], tuple[int, bytes]], levels: int, length: int
) -> None:
    folder, path = deep(levels, length)
    record = live.exec_of(execute(b"./acts", [b"x", b"y"], ENVIRONMENT, before=lambda: os.fchdir(folder)))
    assert len(path) > levels * length
    assert record["cwd"] == path.decode()
    assert record["executable"] == path.decode() + "/acts"
    assert record["argv"] == ["x", "y"]
    assert record["environment"] == REDACTED
    assert "unsettled" not in record


def test_a_path_beyond_its_cap(live: Live, deep: Callable[[int, int], tuple[int, bytes]]) -> None:
    folder, path = deep(300, 250)
    record = live.exec_of(execute(b"./acts", [b"x", b"y"], ENVIRONMENT, before=lambda: os.fchdir(folder)))
    unsettled = record["unsettled"]
    assert unsettled["cwd"]["state"] == unsettled["executable"]["state"] == "capped"
    assert unsettled["cwd"]["of"] == len(path)
    assert unsettled["executable"]["of"] == len(path) + len("/acts")
    assert 64_000 < unsettled["cwd"]["have"] <= 65_536
    # A path is read from its end; what is there is its end.
    assert record["cwd"] == path.decode()[-unsettled["cwd"]["have"] :]
    assert record["argv"] == ["x", "y"]
    assert record["environment"] == REDACTED


def mount(kind: bytes, place: Path, options: bytes = b"") -> None:
    """In a mount namespace of the caller's own."""
    assert libc.unshare(CLONE_NEWNS) == 0
    assert libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0
    assert libc.mount(b"none", os.fsencode(place), kind, 0, options) == 0


@pytest.mark.vm
def test_another_mount_namespace(live: Live, acts: bytes, tmp_path: Path) -> None:
    place, told = tmp_path / "place", tmp_path / "told"
    place.mkdir()

    def leave() -> dict[str, int]:
        mount(b"tmpfs", place)
        shutil.copy(os.fsdecode(acts), place / "other")
        found = os.stat(place / "other")
        return {
            "inode": found.st_ino,
            "device": found.st_dev,
            "namespaces.mnt": os.stat("/proc/self/ns/mnt").st_ino,
        }

    record = live.exec_of(execute(os.fsencode(place / "other"), [b"x"], before=spoken(told, leave)))
    assert not (place / "other").exists()
    same(record, {"executable": str(place / "other"), **json.loads(told.read_text())})


@pytest.mark.vm
def test_a_file_of_an_overlay(live: Live, acts: bytes, tmp_path: Path) -> None:
    """Seen where it was executed, not where it is stored."""
    store, told = tmp_path / "store", tmp_path / "told"
    store.mkdir()

    def layers() -> dict[str, int]:
        mount(b"tmpfs", store)
        inner = {name: store / name for name in ("lower", "upper", "work", "merged")}
        for path in inner.values():
            path.mkdir()
        shutil.copy(os.fsdecode(acts), inner["lower"] / "other")
        options = "lowerdir={lower},upperdir={upper},workdir={work}".format(**inner)
        mount(b"overlay", inner["merged"], options.encode())
        found = os.stat(inner["merged"] / "other")
        return {"inode": found.st_ino, "device": found.st_dev}

    path = store / "merged" / "other"
    record = live.exec_of(execute(os.fsencode(path), [b"x"], before=spoken(told, layers)))
    same(record, {"executable": str(path), "memfd": False, "deleted": False, **json.loads(told.read_text())})


@pytest.mark.vm
def test_vfork(live: Live, acts: bytes) -> None:
    """The parent waits in its child's memory until the exec."""
    pid = os.posix_spawn(acts, [b"spawned"], {"LANG": "C"})
    assert os.waitpid(pid, 0)[1] == 0
    live.ended(pid)
    (record,) = live.log.of(pid, "exec")
    (fork,) = [r for r in live.log.of(os.getpid(), "fork") if r["child"]["pid"] == pid]
    assert fork["flags"] & CLONE_VFORK
    same(record, {"argv": ["spawned"], "path": acts.decode(), "process.parent.pid": os.getpid()})


@pytest.mark.vm
def test_a_memfd(live: Live, acts: bytes) -> None:
    record = live.execs_of(execute(acts, [b"acts", b"memfd", acts, b"in memory", b"ran", b"arg"]))[-1]
    assert record["executable"] == "memfd:in memory"
    assert record["memfd"]
    assert not record["deleted"]
    assert not record["chrooted"]
    assert record["path"].startswith("/dev/fd/")
    assert record["argv"] == ["ran", "arg"]


@pytest.mark.vm
def test_a_deleted_executable(live: Live, acts: bytes, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    shutil.copy(os.fsdecode(acts), gone)
    inode = gone.stat().st_ino
    fd = os.open(gone, os.O_PATH)
    os.set_inheritable(fd, True)
    gone.unlink()
    record = live.exec_of(execute(b"/proc/self/fd/%d" % fd, [b"x"]))
    os.close(fd)
    assert record["deleted"]
    assert not record["memfd"]
    assert record["executable"] == str(gone)
    assert record["inode"] == inode
    assert record["path"] == f"/proc/self/fd/{fd}"


def test_a_chrooted_process(live: Live, acts: bytes, tmp_path: Path) -> None:
    shutil.copy(os.fsdecode(acts), tmp_path / "inside")

    def enter() -> None:
        os.chdir(tmp_path)
        os.chroot(tmp_path)

    record = live.exec_of(execute(b"/inside", [b"x"], before=enter))
    assert record["chrooted"]
    assert record["path"] == "/inside"
    assert record["executable"] == str(tmp_path / "inside")
    assert record["cwd"] == str(tmp_path)


def test_execveat(live: Live, acts: bytes, tmp_path: Path) -> None:
    shutil.copy(os.fsdecode(acts), tmp_path / "other")
    record = live.execs_of(execute(acts, [b"acts", b"at", os.fsencode(tmp_path), b"other", b"x", b"y"]))[-1]
    assert record["executable"] == str(tmp_path / "other")
    assert record["argv"] == ["x", "y"]
    assert record["path"].endswith("/other")
