"""What a heartbeat says: the ledger, the seam, how full things are. `stages/tell.py` asks for it.

Reads counters, rings and books; nothing of the flow passes through here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np

from pipeline.chunk import OWN_RINGS
from pipeline.event import NO_RING, Loss, Told
from pipeline.kernel.ring import Ring
from pipeline.ledger import SHOWN, Books, Statement, zeros
from pipeline.notices import AWAY, HostBlock, Seam, of_loss
from pipeline.sinks.flight import SINK
from pipeline.stages.tell import Look

__all__ = ["Pulse", "ledger", "told"]

COUNTERS: Final = {"lost": "lost", "away": AWAY}
"""Counter of a ring of our own → the reason of what it counts."""
OUTBOX: Final = "outbox"
"""As the ledger calls it."""


class Pulse:
    """One run's heartbeats."""

    def __init__(
        self,
        host: HostBlock,
        rings: Mapping[int, Ring],
        books: Books,
        attached: int,
        fixed: Mapping[str, Any],
        now: Callable[[], tuple[int, int]],
        statement: Callable[[], Statement],
        rest: Callable[[], Mapping[str, Any]],
        losses: Callable[[int], Iterable[tuple[str, Loss]]],
    ) -> None:
        """`books`: what the last run left; `attached`: boottime, ns, of the attachment; `fixed`, `rest`:
        fields that say the same in each heartbeat, and others; `losses`: what a sink has to tell with the
        heartbeat of that `until`, and of which attachment it is.
        """
        self._host, self._losses = host, losses
        self._rings, self._now, self._statement, self._rest = rings, now, statement, rest
        self._resumed = books.number > 0
        self.since: Final = books.seen or attached
        """Boottime, ns, since which nobody had read the rings when this run began."""
        self._fixed = {**fixed, "run": now()[0]}
        self._joined: set[int] | None = None
        """Rings whose seam was told with their first chunk; None: no heartbeat was."""

    def look(self, until: int) -> Look:
        """See tell.Look."""
        statement = self._statement()
        now, clock = self._now()
        fields = {
            **self._fixed,
            "complete_until": statement.complete_until or None,
            "seam": self._seam(),
            "balanced": statement.balanced,
            **ledger(statement),
            "rings": {
                str(number): {**values, "filled": round(self._rings[number].filled, 4)}
                for number, values in statement.rings.items()
            },
            "clock": clock,
            **self._rest(),
        }
        losses = [each for of, loss in self._losses(until) for each in self._of_loss(of, loss, clock)]
        return Look(now, told(statement), losses, fields)

    def _of_loss(self, attachment: str, loss: Loss, clock: int) -> Iterator[Mapping[str, Any]]:
        boot_id = attachment.partition("-")[0]
        if boot_id == self._host["boot_id"]:
            return of_loss(loss, clock)
        return ({**where, "host": {**self._host, "boot_id": boot_id}} for where in of_loss(loss, None))

    def _seam(self) -> list[Seam]:
        joined = {number for number, ring in self._rings.items() if ring.first is not None}
        new = self._rings if self._joined is None else sorted(joined - self._joined)
        self._joined = joined
        return [self._of(self._rings[number]) for number in new]

    def _of(self, ring: Ring) -> Seam:
        return Seam(
            ring=ring.number,
            how="resumed" if self._resumed else "attached",
            before=ring.begin - 1 if self._resumed else None,
            after=ring.first,
            since=self.since,
            refused=ring.refused or None,
        )


def ledger(statement: Statement) -> dict[str, Any]:
    """The terms of each kind, and why events were lost: as a heartbeat has them, without zeros."""
    plain = statement.to_plain()
    terms = {"all": {name: plain[name] for name in SHOWN}, **plain["events"]}
    losses: dict[tuple[str, str], dict[str, int]] = {}
    for row in plain["losses"]:
        losses.setdefault((row["stage"], row["reason"]), {})[row["kind"]] = row["count"]
    return {
        "ledger": {
            kind: {name: n for name, n in values.items() if n}
            for kind, values in terms.items()
            if any(values.values())
        },
        "losses": [[*key, kinds] for key, kinds in losses.items()],
    }


def told(statement: Statement) -> Told:
    """All losses but those that a sink tells by itself, record by record."""
    found = {
        (NO_RING, stage, reason): counts
        for (term, stage, reason), counts in statement.tally.items()
        if term == "lost" and stage not in (SINK, OUTBOX) and np.any(counts)
    }
    for surface, ring in OWN_RINGS.items():
        for counter, reason in COUNTERS.items():
            if n := statement.rings.get(ring, {}).get(counter):
                found[ring, surface, reason] = zeros()
                found[ring, surface, reason][0] = n
    return found
