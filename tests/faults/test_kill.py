"""Row 1: the pipeline is killed at random instants while execs go on, and every one of them is stored."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

import pytest
import trio

from pipeline.consume import consume
from tests.faults.conftest import Row
from tests.faults.results import times
from tests.faults.storms import UID, Mark, Storms, event_of, mark_of, settled
from tests.live.run import PATIENCE, Live, Record
from tests.live.test_kafka import frames

pytestmark = pytest.mark.kernel

KINDS = "exec,exit"


@pytest.mark.kafka
def test_sigkill_while_kafka_takes_records(
    make_live: Callable[..., Live], acts: bytes, request: pytest.FixtureRequest, row: Row
) -> None:
    kafka = request.getfixturevalue("kafka")
    to = f"kafka://{kafka.address}/sigkill"
    live = make_live(kernel__uids=str(UID))
    executed = kill(live, acts, row, times(12, 200), "Kafka", "--to", to)
    found = [frame.record for frame in frames(kafka, "sigkill.process")]
    judge(live, executed, found, to, row)


def test_sigkill_while_the_local_log_is_written(
    make_live: Callable[..., Live], acts: bytes, row: Row
) -> None:
    live = make_live(kernel__uids=str(UID))
    executed = kill(live, acts, row, times(6, 200), "the local log")
    judge(live, executed, live.log.read(), str(live.state), row)


def kill(live: Live, acts: bytes, row: Row, often: int, where: str, *flags: str) -> set[Mark]:
    """Kill it so often, let the last run come to its end, and say what was executed meanwhile."""
    row(
        "1 SIGKILL",
        f"{often} × SIGKILL of the pipeline at random instants, its start included, in a storm of execs "
        f"that are numbered in argv; into {where}",
    )
    seed = int(os.environ.get("FAULTS_SEED", random.randrange(1 << 32)))
    row.say(f"FAULTS_SEED={seed}")
    chance, starting = random.Random(seed), 0
    attached = live.command("attach", "--state", str(live.state), "--events", KINDS)
    assert attached.returncode == 0, attached.stderr
    with Storms(acts) as storms:
        begin = time.monotonic()
        live.start(*flags, events=KINDS)
        takes = time.monotonic() - begin  # to start
        for number in range(1, often + 1):
            time.sleep(chance.uniform(0, 1.6 * takes))
            starting += not live.answers()
            live.stop(signal.SIGKILL)
            if number % (often // 3) == 0:
                assert live.ledger()["balanced"], "while nobody runs"
                row.say(f"{number} of {often} killed, {len(storms.executed):,} executed")
            live.spawn(*flags, events=KINDS)
    live.await_answer()
    ledger = settled(live, 3 * PATIENCE)
    assert live.stop() == 0, live.said()
    row.saw(killed=often, killed_while_starting=starting, executed=len(storms.executed), seed=str(seed))
    assert starting < often, "some were killed while they worked"
    assert ledger["balanced"], ledger
    return storms.executed


def judge(live: Live, executed: set[Mark], found: Iterable[Record], place: str, row: Row) -> None:
    """Compare what is stored with what was executed, and the books with both."""
    stored = [record for record in found if mark_of(record)]
    marks = Counter(mark_of(record) for record in stored)
    events = {event_of(record) for record in stored}
    read = trio.run(partial(read_all, place))
    once = Counter(mark_of(record) for record in read if mark_of(record))
    ledger = live.ledger()
    row.saw(
        missing=len(executed - marks.keys()),
        doubles_stored=len(stored) - len(events),
        missing_after_consume=len(executed - once.keys()),
        doubles_after_consume=once.total() - len(once),
        lost_in_ledger=ledger["lost"],
        ledger="balanced" if ledger["balanced"] else "NOT BALANCED",
    )
    assert marks.keys() == executed
    assert len(events) == len(marks), "what came twice has the same key"
    assert once == Counter(executed)
    assert ledger["balanced"], ledger
    assert ledger["lost"] == ledger["in_flight"] == ledger["in_outbox"] == 0
    for ring in ledger["rings"].values():
        assert ring["gaps"] == ring["drops"] == 0
    assert live.command("detach", "--state", str(live.state)).returncode == 0


async def read_all(place: str) -> list[Record]:
    """As a consumer reads it."""
    async with consume(place) as events:
        return [record async for record in events]
