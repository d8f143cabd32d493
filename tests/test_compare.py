"""The account of comparisons that live tests keep (tests/live/compare.py)."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import Any

import pytest

from pipeline.schema import Schema, Surface, by_name
from tests.batches import event
from tests.live import compare
from tests.live.compare import Within, cannot, missing, same, who
from tests.stages.test_encode import decoded


@pytest.fixture(autouse=True)
def _account(monkeypatch: pytest.MonkeyPatch) -> None:
    """An account of its own: nothing of it counts for the run."""
    monkeypatch.setattr(compare, "COMPARED", set())
    monkeypatch.setattr(compare, "IMPOSSIBLE", {})


@pytest.fixture
def record() -> dict[str, Any]:
    (made,) = decoded(event("exit", 1, code=3, pid=77, start=5_012_345_678))
    return made


def own(schema: Schema) -> list[str]:
    names = [field.name for field in schema.fields] + [promise.name for promise in schema.promises]
    return [f"{schema.name}.{name}" for name in names]


def test_what_nobody_compared_is_missing(record: dict[str, Any]) -> None:
    schema = by_name()["exit"]
    assert missing({"exit": "tracepoint"}) == own(schema)
    same(record, {"code": 3, "process.pid": 77})
    assert missing({"exit": "tracepoint"}) == [n for n in own(schema) if n not in ("exit.code", "exit.pid")]
    assert missing({"fork": "tracepoint"}) == own(by_name()["fork"])
    assert missing({}) == []


def test_all_that_differ_are_told_at_once(record: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match=r"exit/1 .*: code: 3, wanted 4; process.pid: 77, wanted 1$"):
        same(record, {"code": 4, "process.pid": 1, "signal": 0})
    with pytest.raises(AssertionError, match="exit/1 has no errno"):
        same(record, {"errno": 0})


def test_an_unsettled_value_is_not_the_same() -> None:
    (cut,) = decoded(event("exec", 1, path=(9, b"/bin")))
    with pytest.raises(AssertionError, match=r"path: .*capped"):
        same(cut, {"path": "/bin"})


def test_what_a_surface_does_not_show_must_be_nil_and_is_not_missing(
    record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = replace(by_name()["exit"], surfaces=(Surface("anywhere", without=("code", "uid")),))
    monkeypatch.setattr(compare, "by_name", lambda: {"exit": schema})
    assert not {"exit.code", "exit.uid"} & set(missing({"exit": "anywhere"}))
    with pytest.raises(AssertionError, match="code: 3, wanted None"):
        same(record, {"code": 3})
    same(record | {"code": None}, {"code": 3})


def test_a_kind_that_a_host_cannot_be_made_to_give() -> None:
    with pytest.raises(pytest.skip.Exception, match="module_load: no modules"):
        cannot("module_load", "no modules")
    assert missing({"module_load": "tracepoint"}) == []


def test_starts_are_compared_as_proc_knows_them(record: dict[str, Any]) -> None:
    same(record, {"process.start": 5_010_000_000})
    with pytest.raises(AssertionError):
        same(record, {"process.start": 5_020_000_000})


def test_within() -> None:
    assert Within(1, 2) == 1.5
    assert Within(1, 2) != 3
    assert Within(1, 2) != "1"
    assert repr(Within(1, 2)) == "1 … 2"


def test_who_is_proc_s_own_account() -> None:
    found = who()
    assert (found["process.pid"], found["process.uid"]) == (os.getpid(), os.getuid())
    assert (found["process.tid"], found["process.parent.pid"]) == (os.getpid(), os.getppid())
    assert who(os.getpid()) == found
    assert who(os.getppid())["process.start"] == found["process.parent.start"] <= found["process.start"]
    assert "process.parent.pid" not in who(1)
    threads: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: threads.append(who(tid=threading.get_native_id())))
    thread.start()
    thread.join()
    assert threads[0]["process.tid"] != threads[0]["process.pid"] == os.getpid()
