"""The perf source: the kernel's side-band into ring 1021.

    a buffer per CPU (kernel/perf_event.py) → Events → who it was (kernel/who.py) → OwnRing.put → rings.py

It delivers the kinds whose surface is `perf`. What a buffer had no space for is lost, of unknown kind: the
kernel counts it, and the ring's books say so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.kernel.bpf import ProgramInfo
from pipeline.kernel.own_ring import OwnRing
from pipeline.kernel.perf_event import Sideband
from pipeline.kernel.perf_record import Comm, Content, content
from pipeline.kernel.who import NAMELESS, Who
from pipeline.remember import Remembered
from pipeline.schema import by_name
from pipeline.sources.feeds import unwanted
from pipeline.sources.perf_events import Event, Events

__all__ = ["Perf", "Wanted"]

EVER: Final = 2**63 - 1
_COMMS: Final = 1 << 15


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for."""

    kinds: Collection[str]
    data: bool = False
    """Mappings that cannot be executed too."""
    uids: Collection[int] = ()
    cgroups: Collection[int] = ()
    """Empty: all. Whose is unknown is reported all the same."""


class Perf:
    """The feed (feeds.py) of perf events."""

    def __init__(
        self,
        ring: OwnRing,
        who: Who,
        wanted: Wanted,
        now: int,
        program: Callable[[int], ProgramInfo] | None = None,
    ) -> None:
        """Open everything, and read from `now` on (ns since boot). `program`: see Events. OSError carries the
        kernel's answer.
        """
        self._ring, self._who, self._wanted = ring, who, wanted
        self._sideband = Sideband(wanted.kinds, data=wanted.data)
        self._events = Events(wanted.kinds, program)
        self._comms: Remembered[int, tuple[int, bytes]] = Remembered(_COMMS)
        """pid → since when its first thread has which name."""
        ring.opened(now)
        ring.publish(now)

    @property
    def descriptors(self) -> Sequence[int]:
        """One per CPU."""
        return self._sideband.descriptors

    @property
    def waits(self) -> bool:
        """Something is in a buffer."""
        return self._sideband.waits

    @property
    def oldest(self) -> int | None:
        """What is not put is later than the last look."""
        return None

    def listen(self, on: bool) -> None:
        """Ring the bell for what comes, or do not."""
        self._sideband.listen(on)

    def pump(self, now: int, *, beat: bool = False, last: bool = False) -> None:
        """Records later than `now` stay where they are: another CPU may yet have earlier ones."""
        records, lost = self._sideband.read(EVER if last else now)
        for record in records:
            said = content(record)
            if said is not None:
                self._learn(said, record.time)
                event = self._events(record, said)
                if event is not None:
                    self._put(event, record.time)
        self._ring.book("received", len(records))
        self._ring.book("lost", lost)
        self._ring.publish(now)

    def close(self) -> None:
        """Give the descriptors back."""
        self._sideband.close()
        self._events.close()

    def _learn(self, said: Content, time: int) -> None:
        if isinstance(said, Comm) and said.pid == said.tid:
            self._comms[said.pid] = time, said.name

    def _put(self, event: Event, time: int) -> None:
        schema, wanted = by_name()[event.kind], self._wanted
        known = self._who(event.pid, time, event.tid)
        if known is None:
            self._ring.filter(schema, self._who.whose(event.pid, time))
            return
        if reason := unwanted(known, wanted.uids, wanted.cgroups):
            self._ring.filter(schema, reason)
            return
        since, comm = self._comms.get(event.pid) or (0, NAMELESS)
        if event.pid == event.tid and int(known.get("start", EVER)) <= since:
            known["comm"] = comm
        values = {**known, **event.values}
        if event.kind == "fork":
            child = self._who(int(event.values["child_pid"]), time) or {}
            values |= {f"child_{name}": child[name] for name in ("start", "ns_pid") if name in child}
        self._ring.put(schema, values, event.data, time)
