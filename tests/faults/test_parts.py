"""Row 8: what the pipeline says of itself in trouble, how it ends then, and what it may do at all."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.broker import Broker
from tests.faults.conftest import Row
from tests.faults.storms import UID, Storms, mark_of, settled
from tests.live.run import PATIENCE, Live, eventually
from tests.live.test_kafka import frames

pytestmark = [pytest.mark.kernel, pytest.mark.kafka]

KINDS = "exec,exit"
DEADLINE = 2
STALL = 1
MANY = 200
"""Execs in trouble."""


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    """One that is stopped under way."""
    with Broker() as found:
        yield found


@pytest.fixture(scope="module")
def live(make_live: Callable[..., Live]) -> Iterator[Live]:
    live = make_live(
        kernel__uids=str(UID),
        ring__size="256 KiB",
        outbox__limit="64 KiB",
        heartbeat="0.3",
        watch__stall=str(STALL),
        shutdown__deadline=str(DEADLINE),
    )
    attached = live.command("attach", "--state", str(live.state), "--events", KINDS)
    assert attached.returncode == 0, attached.stderr
    yield live
    assert live.command("detach", "--state", str(live.state)).returncode == 0


def test_trouble_is_said_and_the_end_has_a_deadline(
    live: Live, acts: bytes, broker: Broker, row: Row
) -> None:
    row(
        "8 self-watch, shutdown",
        f"broker stopped, outbox of 64 KiB full, rings of 256 KiB filling; SIGTERM, deadline {DEADLINE} s; "
        "next run, broker goes on",
    )
    to = f"kafka://{broker.address}/parts"
    live.start("--to", to, events=KINDS)
    with Storms(acts, each=20, pause=5000) as storms:
        eventually(lambda: storms.executed, "a storm to be over")
        broker.pause()
        began = time.monotonic()
        enough = len(storms.executed) + MANY
        eventually(lambda: len(storms.executed) > enough, "more execs", 3 * PATIENCE)
        texts = ("stalls: it took nothing for", "is over 50% full")
        first = {text: eventually(partial(said, live, text), text) for text in texts}
        waited = time.monotonic() - began
    assert live.process
    began = time.monotonic()
    status = live.stop(signal.SIGTERM)
    took = time.monotonic() - began
    left = live.ledger()
    before = live.said().count(texts[1])
    live.start("--to", to, events=KINDS)
    eventually(lambda: live.said().count(texts[1]) > before, "the next run to say it too")
    broker.resume()
    ledger = settled(live, 3 * PATIENCE)
    eventually(lambda: said(live, "over: "), "the trouble to be over")
    assert live.stop(signal.SIGTERM) == 0, live.said()
    found = {mark_of(frame.record) for frame in frames(broker, "parts.process")}
    row.saw(
        said=" · ".join(f"“{line}”" for line in first.values()),
        all_said_after=f"{waited:.1f} s",
        ended_after=f"{took:.1f} s",
        left_in_rings_and_outbox=left["in_flight"] + left["in_outbox"],
        executed=len(storms.executed),
        missing=len(storms.executed - found),
        lost_in_ledger=ledger["lost"],
    )
    assert status == 1
    assert DEADLINE <= took < DEADLINE + PATIENCE / 2
    assert "ended before everything was safe" in live.said()
    assert left["balanced"]
    assert left["in_flight"] > 0
    assert storms.executed <= found
    assert ledger["balanced"]
    assert ledger["lost"] == 0


def said(live: Live, text: str) -> str:
    """The first line with this text."""
    lines = (line for line in live.said().splitlines() if text in line)
    return next(lines, "").removeprefix("promissory: ")


def test_it_has_no_privileges(live: Live, row: Row) -> None:
    row("8 privilege", "the status of every thread of a live pipeline, as the kernel tells it")
    live.start(events=KINDS)
    assert live.process
    threads = list(Path(f"/proc/{live.process.pid}/task").iterdir())
    found = [status(thread / "status") for thread in threads]
    assert live.stop() == 0, live.said()
    (only,) = {tuple(each.items()) for each in found}
    row.saw(threads=len(threads), **{name.replace("CapEff", "capabilities"): text for name, text in only})
    values = dict(only)
    assert set(values["Uid"].split()).isdisjoint({"0"})
    assert int(values["CapEff"], 16) == int(values["CapBnd"], 16) == 0
    assert values["NoNewPrivs"] == "1"
    assert values["Seccomp"] == "2"


def status(path: Path) -> dict[str, str]:
    """What counts of a thread's status."""
    lines = (line.split(":", 1) for line in path.read_text().splitlines())
    return {name: " ".join(text.split()) for name, text in lines if name in WANTED}


WANTED = ("Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
