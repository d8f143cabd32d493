"""The live answers: local files only, read again when they change; cgroups by inode; an id that hides the
machine's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline import live_answers
from pipeline.live_answers import LiveAnswers, app_specific_id

MACHINE = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:100::/:\ntwin:x:1000:1::/:\n"
    )
    (tmp_path / "group").write_text("root:x:0:\nusers:x:100:alice\n# a comment\nbroken\n+nis::x:\n")
    (tmp_path / "machine-id").write_text(MACHINE + "\n")
    return tmp_path


def test_names_are_those_of_the_files(etc: Path) -> None:
    answers = LiveAnswers(etc=etc)
    assert [answers.user(uid) for uid in (0, 1000, 1)] == ["root", "alice", None]
    assert [answers.group(gid) for gid in (0, 100, 1)] == ["root", "users", None]


def test_a_changed_file_is_read_again_and_a_lost_one_is_unknown(etc: Path) -> None:
    answers = LiveAnswers(etc=etc)
    assert answers.user(1000) == "alice"
    (etc / "passwd").write_text("bob:x:1000:100::/:\n")
    assert answers.user(1000) == "bob"
    (etc / "passwd").unlink()
    assert answers.user(1000) is None


def test_cgroups_are_found_by_inode(etc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "cgroup"
    (root / "system.slice" / "sshd.service").mkdir(parents=True)
    answers = LiveAnswers(etc=etc, cgroups=root)
    assert answers.cgroup(root.stat().st_ino) == "/"
    assert answers.cgroup((root / "system.slice/sshd.service").stat().st_ino) == "/system.slice/sshd.service"
    later = root / "later.scope"
    later.mkdir()
    inode = later.stat().st_ino
    # It was looked a moment ago; an unknown group is no reason to walk all the time.
    assert answers.cgroup(inode) is None
    monkeypatch.setattr(live_answers, "RESCAN", 0.0)
    assert answers.cgroup(inode) == "/later.scope"
    later.rmdir()
    assert answers.cgroup(inode) == "/later.scope"


def test_the_host_is_known_by_an_id_that_hides_the_machine_id(etc: Path) -> None:
    host = LiveAnswers(etc=etc).host
    assert host.id == app_specific_id(MACHINE) != MACHINE
    assert len(bytes.fromhex(host.id)) == 16
    # A version-4 UUID, as sd_id128_get_machine_app_specific(3) says.
    assert (host.id[12], host.id[16] in "89ab") == ("4", True)
    assert host.name == os.uname().nodename
    assert bytes.fromhex(host.boot_id).hex() == host.boot_id


def test_what_is_configured_wins(etc: Path) -> None:
    host = LiveAnswers("box-7", "box", {"site": "north"}, etc=etc).host
    assert (host.id, host.name, host.labels) == ("box-7", "box", {"site": "north"})


def test_the_id_is_a_keyed_hash_that_never_changes() -> None:
    # By openssl: dgst -sha256 -mac HMAC -macopt hexkey:MACHINE over the application's 16 bytes.
    assert app_specific_id(MACHINE) == "066a8a565c024ea4bc2ca2a015b0c841"
