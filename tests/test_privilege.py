"""What is given up, for all threads and for good; whose folders and files are. (A live run: tests/live.)"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from pipeline import privilege
from pipeline.errors import UserError
from pipeline.kernel import bpf
from pipeline.privilege import User
from tests.absent import absent

NOBODY = User("nobody", 65534, 65534)


@pytest.fixture
def ground() -> Iterator[Path]:
    """A folder that every user can reach; pytest's own is for root alone."""
    if os.geteuid() != 0:
        absent("privileges can be given up by root alone")
    folder = Path(mkdtemp(prefix="promissory-privilege-"))
    folder.chmod(0o755)
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.fixture
def confined(ground: Path) -> dict[str, Any]:
    """What tests/confined.py found out."""
    pin = Path(f"/sys/fs/bpf/promissory-test-{os.getpid()}")
    if not os.path.ismount("/sys/fs/bpf"):
        absent("bpffs is not mounted")
    ring = bpf.create_ring(os.sysconf("SC_PAGE_SIZE"), "pinned")
    bpf.pin(ring, pin)
    os.close(ring)
    privilege.own(ground / "own", NOBODY)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.confined", *map(str, NOBODY), str(ground / "own"), str(pin)],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        pin.unlink()
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.kernel
def test_what_is_given_up(confined: dict[str, Any]) -> None:
    assert set(confined["allowed"].values()) == {"done"}, confined["allowed"]
    assert set(confined["denied"].values()) <= {"EPERM", "EACCES"}, confined["denied"]
    assert len(confined["threads"]) == 3, "one that began at once, one that was tried"
    for status in confined["threads"].values():
        assert unprivileged(status) == UNPRIVILEGED
        assert set(status["Uid"].split() + status["Gid"].split()) == {"65534"}
        assert status["Groups"] == ""


UNPRIVILEGED = {
    **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), 0),
    "NoNewPrivs": 1,
    "Seccomp": 2,
}


def unprivileged(status: dict[str, str]) -> dict[str, int]:
    """Of /proc/PID/status, what says what a thread may do."""
    return {name: int(status[name], 16) for name in UNPRIVILEGED}


def test_who_is_no_user_is_told_how_to_be_one() -> None:
    with pytest.raises(UserError, match="useradd --system no-such-user"):
        privilege.find("no-such-user")
    with pytest.raises(UserError, match="root; the pipeline needs a user without rights"):
        privilege.find("root")
    assert privilege.find("nobody") == NOBODY


def owner(path: Path) -> int:
    return path.lstat().st_uid


def test_a_folder_that_is_new_empty_or_was_ours_is_given(ground: Path) -> None:
    (ground / "empty").mkdir()
    (ground / "older").mkdir(mode=0o700)
    (ground / "older" / "log.db").touch()
    (ground / "checked").mkdir(mode=0o700)
    for name in privilege.ROOTS:
        (ground / "checked" / name).touch()
    for name in ("new", "empty", "older", "checked"):
        privilege.own(ground / name, NOBODY)
        privilege.own(ground / name, NOBODY)
        assert owner(ground / name) == NOBODY.uid


def test_a_folder_of_others_is_not_given(ground: Path) -> None:
    (ground / "letters").touch()
    with pytest.raises(UserError, match=r"is not nobody's, and not empty; name a new folder"):
        privilege.own(ground, NOBODY)
    assert owner(ground) == 0


def test_a_folder_that_the_user_cannot_reach_is_refused(ground: Path) -> None:
    ground.chmod(0o700)
    with pytest.raises(UserError, match="cannot be entered by nobody"):
        privilege.own(ground / "state", NOBODY)
    assert (os.geteuid(), os.getegid()) == (0, 0)


def test_files_of_root_are_given_links_are_not(ground: Path) -> None:
    """Whoever owns the folder may put a link there, to what is not theirs."""
    pins, state, other = ground / "pins", ground / "state", ground / "other"
    (pins / "inner").mkdir(parents=True)
    (pins / "inner" / "pin").touch()
    state.mkdir()
    other.touch()
    (state / "lock").touch()
    (state / "symbolic").symlink_to(other)
    (state / "hard").hardlink_to(other)
    os.mkfifo(state / "pipe")
    privilege.give(NOBODY, pins, [state])
    given = {path.name for path in ground.rglob("*") if owner(path) == NOBODY.uid}
    assert given == {"pins", "inner", "pin", "lock"}


def test_what_root_writes_goes_through_no_link(ground: Path) -> None:
    (ground / "other").write_text("theirs")
    (ground / "lock").symlink_to(ground / "other")
    with pytest.raises(OSError, match="symbolic links"):
        privilege.no_link(str(ground / "lock"), os.O_WRONLY)
    with open(ground / "new", "w", opener=privilege.no_link) as file:
        file.write("ours")
    assert [(ground / name).read_text() for name in ("other", "new")] == ["theirs", "ours"]
    assert (ground / "new").stat().st_mode & 0o777 == 0o600


def test_a_folder_is_reached_though_those_above_it_are_closed(ground: Path) -> None:
    privilege.own(ground / "pins", NOBODY)
    reached = privilege.reach(ground / "pins")
    ground.chmod(0o700)
    with privilege._as(NOBODY):
        assert not os.access(ground / "pins", os.X_OK, effective_ids=True)
        (reached / "pin").touch()
    assert owner(ground / "pins" / "pin") == NOBODY.uid
    os.close(int(reached.name))


def test_modules_are_found_where_the_user_cannot_get(ground: Path) -> None:
    """Of a package that is there already, of one that is not, and where the tree itself is closed."""
    for package in ("known", "tree/unknown"):
        (ground / package / "inner").mkdir(parents=True)
        for name in ("__init__", "inner/__init__", "inner/most"):
            (ground / package / f"{name}.py").touch()
    ground.chmod(0o700)
    done = subprocess.run(
        [sys.executable, "-c", LATER.format(NOBODY)],
        env={**os.environ, "PYTHONPATH": f"{ground}:{ground}/tree:{Path(__file__).parents[1]}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


LATER = """
from pipeline import privilege
from pipeline.privilege import User
import known.inner
user = {}
privilege.keep_modules(user)
with privilege._as(user):
    import known.inner.most, unknown.inner.most
"""


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "capng", None)
    with pytest.raises(UserError, match="apt install python3-cap-ng python3-seccomp"):
        privilege.drop(NOBODY)
