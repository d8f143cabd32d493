"""A real pipeline over this kernel into a real broker that hangs, and what became of what was executed."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.broker import Broker
from tests.faults.conftest import Row
from tests.faults.storms import Mark, Storms, event_of, mark_of, settled
from tests.live.run import PATIENCE, Live, eventually
from tests.live.test_kafka import frames
from tests.live.test_overflow import by_reason

__all__ = ["KINDS", "Scene"]

KINDS = "exec,exit"
ITSELF = -1
"""The number of a storm among its programs: it is executed, too."""
WAITING = 300
"""Events that are in the outbox when something happens to it."""


class Scene:
    """A run into topics of its own, execs while the broker hangs, and what became of them."""

    def __init__(self, live: Live, broker: Broker, prefix: str, address: str = "") -> None:
        """`address`: which of the broker's, where it has several."""
        self.live, self.prefix, self._broker = live, prefix, broker
        self._to = f"kafka://{address or broker.address}/{prefix}"
        self.executed: set[Mark] = set()
        self.killed = False
        self.start()
        self._already = len(live.said())
        self.before = settled(live)

    def start(self) -> None:
        self.live.start("--to", self._to, events=KINDS)

    @contextmanager
    def outage(self, acts: bytes) -> Iterator[None]:
        """The block begins when so many events wait in the outbox; after it the broker is well."""
        self._broker.pause()
        try:
            with Storms(acts) as storms:
                self.until(lambda: self.live.ledger()["in_outbox"] >= WAITING, "the outbox to be used")
                yield
            self.executed = storms.executed
        finally:
            self._broker.resume()

    def kill(self) -> None:
        """SIGKILL the run."""
        self.live.stop(signal.SIGKILL)
        self.killed = True

    def until(self, found: Callable[[], Any], what: str) -> None:
        eventually(found, what, 3 * PATIENCE)

    def says(self, what: str) -> list[str]:
        """What this run said since it began: parts that match."""
        return re.findall(what, self.live.said()[self._already :])

    def judge(self, row: Row) -> int:
        """End the run: what was executed is stored or booked, exactly. Returns how many execs are booked."""
        settled(self.live, 3 * PATIENCE)
        assert self.live.stop() == 0, self.live.said()
        ledger = self.live.ledger()
        stored = [frame.record for frame in frames(self._broker, f"{self.prefix}.process")]
        execs = [record for record in stored if record["kind"] == "exec"]
        came = {mark_of(record) or (record["argv"][-2], ITSELF) for record in execs}
        executed = self.executed | {(mark, ITSELF) for mark, _ in self.executed}
        events = {event_of(record) for record in stored}
        lost = Counter(by_reason(ledger, "losses", "exec"))
        lost.subtract(by_reason(self.before, "losses", "exec"))
        row.saw(
            executed=len(executed),
            execs_missing=len(executed - came),
            execs_booked_as_lost=lost.total(),
            doubles=len(stored) - len(events),
            batches_salvaged=sum(map(int, self.says(r"begun with (\d+) batches"))),
            ledger="balanced" if ledger["balanced"] else "NOT BALANCED",
        )
        assert ledger["balanced"], ledger
        assert ledger["in_outbox"] == ledger["in_flight"] == 0
        acknowledged = ledger["acknowledged"] - self.before["acknowledged"]
        booked_too = len(events) - acknowledged, lost.total() - len(executed - came)
        if self.killed:  # what it had given to a broker that hangs can come nevertheless
            assert min(booked_too) >= 0, booked_too
        else:
            assert booked_too == (0, 0), (booked_too, self.says(".*"))
        assert lost.total() == lost["corrupt"], lost
        return lost.total()
