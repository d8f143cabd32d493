"""comm: a thread takes another short name; every field, on every kernel."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.live.compare import same, who
from tests.live.run import Live, Record, eventually
from tests.live.test_fields import program
from tests.live.witness import as_record, fork, libc, spoken

pytestmark = [pytest.mark.kernel, pytest.mark.vm]

PR_SET_NAME = 15


def renamed(live: Live, path: Path, child: Callable[[], object]) -> tuple[Record, dict[str, Any]]:
    """The one new name of a child that ends at once, and what it wrote down of itself."""
    act = fork(child)
    assert act.status == 0
    live.ended(act.pid)
    (record,) = eventually(lambda: live.log.of(act.pid, "comm"), "the new name")
    said: dict[str, Any] = json.loads(path.read_text())
    return record, said


@pytest.mark.parametrize("name", [b"new\nname", b"fifteen letters", "äöü".encode(), b""])
def test_a_thread_takes_a_name(live: Live, tmp_path: Path, name: bytes) -> None:
    path = tmp_path / "told"

    def child() -> None:
        libc.prctl(PR_SET_NAME, name)
        spoken(path, lambda: {**who(), "process.comm": ""})()

    record, said = renamed(live, path, child)
    shown = as_record(name)
    expected = {"name": shown, "process.exec_id": program(live), "process.parent.exec_id": program(live)}
    same(record, {**said, **expected, "process.comm": shown})


def test_a_thread_of_several(live: Live, tmp_path: Path) -> None:
    """Which one it was; its process is the same."""
    path = tmp_path / "told"

    def thread() -> None:
        libc.prctl(PR_SET_NAME, b"of a thread")
        spoken(path, lambda: who(tid=threading.get_native_id()))()

    def child() -> None:
        running = threading.Thread(target=thread)
        running.start()
        running.join()

    record, said = renamed(live, path, child)
    assert said["process.tid"] != said["process.pid"]
    same(record, {"name": "of a thread", **{k: v for k, v in said.items() if k != "process.comm"}})


def test_an_owner_that_nobody_saw_change_is_unknown(live: Live, tmp_path: Path) -> None:
    """Whether it was before or after the name: the records of the kernel do not say. Never the wrong one."""
    path = tmp_path / "told"

    def child() -> None:
        libc.prctl(PR_SET_NAME, b"of root")
        os.setresgid(54322, 54323, 54323)
        os.setresuid(54321, 0, 0)
        spoken(path, who)()

    record, said = renamed(live, path, child)
    assert record["process"]["uid"] in (None, os.getuid())
    assert record["process"]["gid"] in (None, os.getgid())
    assert record["process"]["start"] // 10**7 == said["process.start"] // 10**7


def test_a_name_by_exec_is_none(live: Live, acts: bytes) -> None:
    def child() -> None:
        libc.prctl(PR_SET_NAME, b"before")
        os.execv(acts, [acts])

    act = fork(child)
    live.ended(act.pid)
    assert [record["name"] for record in live.log.of(act.pid, "comm")] == ["before"]
