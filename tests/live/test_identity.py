"""Whose program an event's process runs: exec ids kept in the kernel, entries that go when processes go."""

from __future__ import annotations

import json
import os

import pytest

from pipeline.kernel import bpf
from pipeline.kernel.layout import IDENTITY_KEY
from pipeline.kernel.proc import PROC
from tests.live.run import Live, eventually
from tests.live.witness import execute, fork

pytestmark = pytest.mark.kernel


def test_later_events_name_the_exec(live: Live, acts: bytes) -> None:
    act = execute(acts, [b"acts", b"vfork", acts, b"x"])
    record = live.exec_of(act)
    (forked,) = live.log.of(act.pid, "fork")
    child = live.ended(forked["child"]["pid"])
    (started,) = live.log.of(child["process"]["pid"], "exec")
    assert record["id"] == record["process"]["exec_id"]
    assert forked["process"]["exec_id"] == live.ended(act.pid)["process"]["exec_id"] == record["id"]
    assert child["process"]["exec_id"] == started["id"]
    assert started["process"]["parent"]["exec_id"] == record["id"]


def test_a_child_runs_its_parents_program(live: Live) -> None:
    act = fork(lambda: None)
    record = live.ended(act.pid)
    (own,) = live.log.of(os.getpid(), "process")
    assert record["process"]["exec_id"] == own["id"]
    assert record["process"]["parent"]["exec_id"] == own["id"]


def test_two_execs_of_one_process(live: Live, acts: bytes) -> None:
    act = execute(acts, [b"acts", b"hop", b"2", b"1"])
    records = live.execs_of(act)
    assert len(records) == 3
    assert len({r["id"] for r in records}) == 3
    forks = live.log.of(act.pid, "fork")
    assert [r["process"]["exec_id"] for r in forks] == [r["id"] for r in records]
    assert live.ended(act.pid)["process"]["exec_id"] == records[-1]["id"]


@pytest.mark.vm
def test_exec_by_a_thread_that_is_not_the_leader(live: Live, acts: bytes) -> None:
    act = execute(acts, [b"acts", b"thread-exec", acts, b"x"])
    first, second = live.execs_of(act)
    assert first["id"] != second["id"]
    assert live.ended(act.pid)["process"]["exec_id"] == second["id"]


def test_a_leader_that_ends_first(live: Live, acts: bytes) -> None:
    act = execute(acts, [b"acts", b"leader-first"])
    record = live.ended(act.pid)
    (started,) = live.log.of(act.pid, "exec")
    assert record["process"]["exec_id"] == started["id"]
    assert record["process"]["id"] == started["process"]["id"]


def test_a_failed_exec_names_the_program_that_tried(live: Live, acts: bytes) -> None:
    act = execute(acts, [b"acts", b"at", b"/", b"nonexistent"])
    live.ended(act.pid)
    (started,) = live.log.of(act.pid, "exec")
    (record,) = live.log.of(act.pid, "exec_failed")
    assert record["process"]["exec_id"] == started["id"]


def test_every_id_can_be_resolved(live: Live, acts: bytes) -> None:
    for _ in range(20):
        live.exec_of(execute(acts, [b"acts", b"vfork", acts]))
    records = list(live.log.read())
    known = {r["id"] for r in records if r["kind"] in ("exec", "process")}
    attached = json.loads((live.state / "attached.json").read_text())["attached"]
    # Perf and audit records may name processes that ended before anybody could be asked.
    ours = [r for r in records if r["time"] > attached and r["surface"] not in ("perf", "audit")]
    assert [r for r in ours if r["process"]["exec_id"] is None] == []
    named = {r["process"]["exec_id"] for r in ours}
    parents = {r["process"]["parent"]["exec_id"] for r in records if r["process"]["parent"]}
    assert named <= known
    assert parents - {None} <= known


@pytest.mark.vm
def test_ids_are_unique(live: Live) -> None:
    records = live.log.read()
    assert len({r["id"] for r in records}) == len(records)
    assert all(r["id"] == r["ring"] << 52 | r["sequence"] for r in records)


def alive() -> set[bytes]:
    """Every process that has not ended, as the kernel's map keys it."""
    found = set()
    for name in filter(str.isdigit, os.listdir(PROC)):
        try:
            fields = (PROC / name / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] not in "ZX" or int(fields[17]) > 1:  # threads outlive their leader
            found.add(IDENTITY_KEY.pack(int(fields[19]), int(name)))
    return found


def odd(map: int) -> set[bytes]:
    """Keys of processes that are not there, and of processes that have no entry."""
    return alive() ^ set(bpf.keys(map, IDENTITY_KEY.size))


@pytest.mark.vm
def test_no_entry_is_left_and_none_is_missing(live: Live, acts: bytes) -> None:
    execute(acts, [b"acts", b"hop", b"20", b"2"])
    execute(acts, [b"acts", b"threads"])
    map = bpf.get(live.pins / "map_identities")
    try:
        eventually(lambda: not odd(map), "identities and processes to agree")
    finally:
        os.close(map)


def test_the_pipeline_does_not_report_itself(live: Live) -> None:
    live.command("ledger", "--state", str(live.state))  # not the pipeline's child: reported
    fork(lambda: None)
    records = live.log.read()
    assert live.process is not None
    own = live.process.pid
    assert not [r for r in records if own in (r["process"]["pid"], (r["process"]["parent"] or {}).get("pid"))]
    reasons = {(f["reason"], f["kind"]) for f in live.ledger()["filters"]}
    assert {("self-test", "exec"), ("self-test", "fork"), ("self-test", "exit")} <= reasons
