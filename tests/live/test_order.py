"""I10: a process's events stay in their order, whatever CPU it was on."""

from __future__ import annotations

import os

import pytest

from tests.live.run import Live
from tests.live.witness import execute

pytestmark = pytest.mark.kernel

HOPS = 120


def test_a_process_that_hops(live: Live, acts: bytes) -> None:
    cpus = os.cpu_count() or 1
    act = execute(acts, [b"acts", b"hop", b"%d" % HOPS, b"%d" % cpus])
    live.ended(act.pid)
    records = live.log.of(act.pid, "exec", "fork", "exit")
    kinds = [r["kind"] for r in records]
    assert kinds == ["exec", "fork"] * (HOPS + 1) + ["exit"]
    assert [int(r["argv"][2]) for r in records if r["kind"] == "exec"] == list(range(HOPS, -1, -1))
    assert len({r["cpu"] for r in records}) == cpus
    times = [r["boottime"] for r in records]
    assert times == sorted(times)


def test_children_come_after_the_fork_that_made_them(live: Live, acts: bytes) -> None:
    act = execute(acts, [b"acts", b"hop", b"%d" % HOPS, b"2"])
    live.ended(act.pid)
    place = {id(record): i for i, record in enumerate(live.log.records)}
    children = {r["child"]["pid"]: place[id(r)] for r in live.log.of(act.pid, "fork")}
    assert len(children) == HOPS + 1
    for child, forked in children.items():
        (ended,) = live.log.of(child, "exit")
        assert place[id(ended)] > forked


def test_storms_on_all_cpus_keep_every_process_in_order(live: Live, acts: bytes) -> None:
    pids = []
    for cpu in range(os.cpu_count() or 1):
        pids.append(os.posix_spawn(acts, [b"acts", b"hop", b"40", b"%d" % (os.cpu_count() or 1)], {}))
        assert cpu < 1024
    for pid in pids:
        os.waitpid(pid, 0)
    for pid in pids:
        live.ended(pid)
        found = [int(r["argv"][2]) for r in live.log.of(pid, "exec")]
        assert found == list(range(40, -1, -1))
