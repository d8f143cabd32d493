"""Forced ring overflow: nobody reads while storms run. Lost chunks are gaps, and lost events are booked."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.chunk import HIDDEN, PERF_RING
from tests.kernel_ring import boottime
from tests.live.run import PATIENCE, Live, eventually
from tests.told import complete_until, kinds_lost, numbers_lost

pytestmark = pytest.mark.kernel

UID = 61_234
"""Nobody else's: with the kernel's filter by uid, all that is not filtered was made here."""
EACH = 400


def storms(acts: bytes) -> int:
    """Run a storm on each CPU at once; how many programs they say were executed, themselves included."""
    commands = [
        subprocess.Popen(
            [acts, b"storm", b"%d" % cpu, b"%d" % EACH, b"mark-%d" % cpu], user=UID, stdout=subprocess.PIPE
        )
        for cpu in range(os.cpu_count() or 1)
    ]
    outputs = [command.communicate(timeout=60)[0] for command in commands]
    assert all(command.returncode == 0 for command in commands)
    return sum(map(int, outputs)) + len(commands)


def quiet(live: Live) -> dict[str, Any]:
    """The ledger once nothing is in flight."""

    def settled() -> dict[str, Any] | None:
        ledger = live.ledger()
        return ledger if ledger["in_flight"] == 0 else None

    found: dict[str, Any] = eventually(settled, "nothing to be in flight")
    return found


def by_reason(ledger: dict[str, Any], table: str, kind: str) -> dict[str, int]:
    return {entry["reason"]: entry["count"] for entry in ledger[table] if entry["kind"] == kind}


@pytest.fixture(scope="module")
def flooded(make_live: Callable[..., Live], acts: bytes) -> tuple[Live, dict[str, Any], int]:
    """(the run, its ledger after it caught up, how many programs were executed)"""
    live = make_live(
        ring__size="64 KiB",
        budget__reserve="0",
        kernel__uids=str(UID),
        environment__enabled="false",
        heartbeat="500 ms",
    )
    live.start(events="exec,fork,exit")
    assert live.process
    live.process.send_signal(signal.SIGSTOP)
    try:
        executed = storms(acts)
    finally:
        live.process.send_signal(signal.SIGCONT)
    return live, quiet(live), executed


Flooded = tuple[Live, dict[str, Any], int]


def test_gaps_are_drops_exactly(flooded: Flooded) -> None:
    _, ledger, _ = flooded
    rings = [ring for number, ring in ledger["rings"].items() if int(number) < (os.cpu_count() or 1)]
    assert len(rings) == os.cpu_count()
    for ring in rings:
        assert ring["gaps"] == ring["drops"] > 100
        assert ring["chunks_read"] + ring["gaps"] == ring["chunks_attempted"]
        assert ring["unread"] == 0


def test_every_marked_exec_is_delivered_or_booked(flooded: Flooded) -> None:
    live, ledger, executed = flooded
    assert ledger["balanced"]
    terms = ledger["events"]["exec"]
    assert executed == EACH * (os.cpu_count() or 1) + (os.cpu_count() or 1)
    assert terms["acknowledged"] + terms["lost"] == executed
    assert terms["attempted"] - terms["filtered"] == executed
    assert terms["lost"] == by_reason(ledger, "losses", "exec")["full"] > 100
    execs = [r for r in live.log.read() if r["kind"] == "exec"]
    assert len(execs) == terms["acknowledged"]
    assert {r["process"]["uid"] for r in execs} == {UID}


def test_loss_records_cover_exactly_what_is_missing(flooded: Flooded) -> None:
    live, ledger, _ = flooded
    rings = {int(ring): row for ring, row in ledger["rings"].items() if int(ring) < PERF_RING}
    drops = {ring: row["drops"] for ring, row in rings.items() if row["drops"]}

    def told() -> dict[int, set[int]]:
        live.log.read()
        return numbers_lost(live.log.notices)

    eventually(lambda: {ring: len(numbers) for ring, numbers in told().items()} == drops, f"{drops} told")
    missing = told()
    heads = {(r["ring"], r["sequence"]) for r in live.log.read()}
    assert not [head for head in heads if head[1] in missing.get(head[0], ())]
    lost = {(row["stage"], row["reason"], row["kind"]): row["count"] for row in ledger["losses"]}
    assert kinds_lost(live.log.notices) == lost


def test_every_exec_is_stored_or_within_a_loss(flooded: Flooded) -> None:
    """For those who ask when a program ran: unknown, where they find nothing."""
    live, _, executed = flooded
    execs = [r for r in live.log.read() if r["kind"] == "exec"]
    full = [n for n in live.log.notices if n["kind"] == "loss" and n["reason"] == "full" and n["kinds"]]
    assert executed == len(execs) + sum(n["kinds"].get("exec", 0) for n in full)
    begin, end = min(n["since"] for n in full), max(n["until"] for n in full)
    assert begin < end < boottime()


def test_the_stream_becomes_whole_while_nothing_happens(flooded: Flooded) -> None:
    live, _, _ = flooded
    now = boottime()

    def complete() -> bool:
        live.log.read()
        return complete_until(live.log.notices) > now

    eventually(complete, "a heartbeat that speaks of what was before")
    assert (live.ledger()["complete_until"] or 0) > now
    beats = [n for n in live.log.notices if n["kind"] == "heartbeat"]
    assert [n["beat"] for n in beats] == list(range(1, len(beats) + 1))
    assert all((n["complete_until"] or 0) < n["boottime"] for n in beats)
    assert [n["how"] for n in beats[0]["seam"]] == ["attached"] * len(beats[0]["rings"])


def test_forks_and_exits_are_booked_too(flooded: Flooded) -> None:
    live, ledger, executed = flooded
    for kind in ("fork", "exit"):
        terms = ledger["events"][kind]
        assert terms["lost"] > 0
        assert terms["acknowledged"] == len([r for r in live.log.read() if r["kind"] == kind])
        assert terms["attempted"] == terms["acknowledged"] + terms["filtered"] + terms["lost"]
    forks = ledger["events"]["fork"]
    assert forks["acknowledged"] + forks["lost"] == EACH * (os.cpu_count() or 1)
    exits = ledger["events"]["exit"]
    assert exits["acknowledged"] + exits["lost"] == executed


def test_what_the_filter_hid_is_counted(flooded: Flooded) -> None:
    live, before, _ = flooded
    for _ in range(10):
        subprocess.run(["/bin/true"], check=True)
    after = quiet(live)
    for kind in ("fork", "exec", "exit"):
        assert (
            by_reason(after, "filters", kind)["uid"] >= by_reason(before, "filters", kind).get("uid", 0) + 10
        )
    assert after["balanced"]


def test_hidden_execs_keep_ids_true(flooded: Flooded, acts: bytes) -> None:
    """The hidden program's child changes its user, and is seen: its exec and its parent's are told apart."""
    live, _, _ = flooded
    parent = subprocess.Popen([acts, b"as", b"%d" % UID, acts, b"seen"])
    assert parent.wait(PATIENCE) == 0
    quiet(live)
    (seen,) = [r for r in live.log.read() if r["kind"] == "exec" and r["argv"][1:2] == ["seen"]]
    assert seen["process"]["parent"]["pid"] == parent.pid
    hidden = seen["process"]["parent"]["exec_id"]
    assert hidden & HIDDEN
    assert hidden not in {r["id"] for r in live.log.records}
    (ended,) = live.log.of(seen["process"]["pid"], "exit")
    assert ended["process"]["exec_id"] == seen["id"]
    assert ended["process"]["parent"]["exec_id"] == hidden


def test_no_environment_was_taken(flooded: Flooded) -> None:
    live, _, _ = flooded
    execs = [r for r in live.log.read() if r["kind"] == "exec"]
    assert all(r["environment"] is None for r in execs)
    assert not [r for r in execs if "environment" in r.get("unsettled", {})]


def test_the_ledger_lives_on_after_the_end(flooded: Flooded) -> None:
    live, before, _ = flooded
    assert live.stop() == 0, live.said()
    after = live.ledger()
    assert after["balanced"]
    assert after["in_flight"] == 0
    for ring in before["rings"]:
        assert after["rings"][ring]["gaps"] == after["rings"][ring]["drops"]
    assert after["lost"] == before["lost"]
