"""How a run ends while its broker has stopped: in time, and the next run finds what was not safe."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from tests.broker import Broker
from tests.live.run import Live, eventually
from tests.live.test_kafka import frames
from tests.live.test_run import executed, marked, numbers, storm

pytestmark = [pytest.mark.kernel, pytest.mark.kafka]


def test_a_run_ends_in_time_and_the_next_one_has_all(make_live: Callable[..., Live], acts: bytes) -> None:
    """By way of the outbox; then with one that is full: by its deadline, and by a second signal."""
    with Broker() as broker:
        to = f"kafka://{broker.address}/ends"
        live = make_live()
        attached = live.command("attach", "--state", str(live.state), "--events", "exec,exit")
        assert attached.returncode == 0, attached.stderr

        live.start("--to", to, events="exec,exit")
        count = executed(storm(acts, b"before", 100, 0))
        broker.pause()
        count_paused = executed(storm(acts, b"paused", 300, 0))
        begun = time.monotonic()
        assert live.stop(signal.SIGTERM) == 0, live.said()
        assert time.monotonic() - begun < 10
        left = live.ledger()
        assert left["balanced"]
        assert left["in_outbox"] >= 2 * count_paused
        assert "wait in the outbox" in live.said()

        live.settings |= {"PROMISSORY_OUTBOX__LIMIT": "1 KiB", "PROMISSORY_SHUTDOWN__DEADLINE": "2 s"}
        live.start("--to", to, events="exec,exit")
        count_full = executed(storm(acts, b"full", 300, 0))
        begun = time.monotonic()
        assert live.stop(signal.SIGTERM) == 1, live.said()
        assert 2 <= time.monotonic() - begun < 10
        assert "ended before everything was safe" in live.said()
        assert live.ledger()["balanced"]

        live.settings["PROMISSORY_SHUTDOWN__DEADLINE"] = "60 s"
        live.start("--to", to, events="exec,exit")
        count_twice = executed(storm(acts, b"twice", 300, 0))
        process = live.process
        assert process
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert process.poll() is None, "it still tries"
        begun = time.monotonic()
        assert live.stop(signal.SIGTERM) == 1, live.said()
        assert time.monotonic() - begun < 5
        assert live.ledger()["balanced"]

        broker.resume()
        live.start("--to", to, events="exec,exit")
        eventually(
            lambda: live.ledger()["in_flight"] == live.ledger()["in_outbox"] == 0, "all to be delivered"
        )
        assert live.stop(signal.SIGTERM) == 0, live.said()
        ledger = live.ledger()
        assert ledger["balanced"]
        assert ledger["lost"] == 0
        records = [frame.record for frame in frames(broker, "ends.process")]
        for mark, n in (
            ("before", count),
            ("paused", count_paused),
            ("full", count_full),
            ("twice", count_twice),
        ):
            assert sorted(numbers(marked(records, mark))) == list(range(n)), mark
