"""What is opened while there are privileges: the sources that are no BPF programs (feeds.py)."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Final

from pipeline.chunk import AUDIT_RING, PERF_RING
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.kernel.attachment import Attachment
from pipeline.kernel.deputy import Deputy
from pipeline.kernel.own_ring import OwnRing
from pipeline.privilege import User
from pipeline.sources.audit import Audit
from pipeline.sources.feeds import Feed
from pipeline.sources.perf import Perf, Wanted
from pipeline.sources.wires import Kept, Multicast

__all__ = ["Feeds", "GivenUp"]

DENIED: Final = (errno.EPERM, errno.EACCES)
CROWDED: Final = (errno.EMFILE, errno.ENFILE)


def _boottime() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Feeds:
    """The feeds of an attachment, and the deputy (kernel/deputy.py) of those that need one."""

    def __init__(
        self, config: Config, attachment: Attachment, user: User, say: Callable[[str], None]
    ) -> None:
        """Open all. UserError: what could not be opened, the kernel's answer, and what to do."""
        self._attachment, self._user, self._say = attachment, user, say
        self._caps = config.caps.model_dump()
        self._deputy: Deputy | None = None
        self._uids, self._cgroups = config.kernel.uids, config.kernel.cgroups
        manifest = attachment.manifest
        surfaces = {kind: manifest.surfaces[kind] for kind in manifest.kinds}
        self.all: list[Feed] = []
        kinds = [kind for kind, surface in surfaces.items() if surface == "perf"]
        try:
            # Audit first: perf's buffers are full long before a deputy has begun.
            if "audit" in surfaces and AUDIT_RING in manifest.rings:
                with _opening("audit's socket cannot be opened", "CAP_AUDIT_READ", ["audit"]):
                    self.all.append(self._audit())
            if kinds:
                with _opening(
                    "perf's buffers (two for each processor) cannot be opened",
                    "CAP_PERFMON and CAP_IPC_LOCK",
                    kinds,
                ):
                    self.all.append(self._perf(Wanted(kinds, config.memory.all, self._uids, self._cgroups)))
        except BaseException:
            self.close()
            raise

    def _perf(self, wanted: Wanted) -> Perf:
        asks = any(kind.startswith("bpf_") for kind in wanted.kinds)
        program = self._asked().program if asks else None
        ring = self._attachment.own_ring(PERF_RING, self._caps)
        return Perf(ring, self._attachment.who(), wanted, _boottime(), program)

    def _audit(self) -> Audit:
        attachment = self._attachment
        ring, kept = attachment.own_ring(AUDIT_RING, self._caps), attachment.records()
        booked = attachment.source_books(AUDIT_RING)["lost"]
        wire = Kept(*kept, booked) if kept else Multicast(GivenUp(self._asked().lost, ring))
        return Audit(ring, wire, attachment.who(), _boottime(), self._uids, self._cgroups)

    def _asked(self) -> Deputy:
        if self._deputy is None:
            with _opening(
                "the deputy cannot be started", "the right to start it", ["audit", "bpf_load", "bpf_unload"]
            ):
                self._deputy = Deputy(self._user, self._say)
        return self._deputy

    def close(self) -> None:
        """Close all."""
        for feed in self.all:
            feed.close()
        if self._deputy:
            self._deputy.close()


@contextmanager
def _opening(what: str, capability: str, kinds: Collection[str]) -> Iterator[None]:
    """UserError instead of OSError. `kinds`: those that come by it."""
    try:
        yield
    except OSError as error:
        advice = f"name --events without {', '.join(kinds)}"
        if error.errno in DENIED:
            advice = f"it takes {capability} (CapabilityBoundingSet= of a service); or {advice}"
        elif error.errno in CROWDED:
            advice = f"allow more open files (LimitNOFILE= of a service, `ulimit -Hn`); or {advice}"
        answer = ": ".join(str(each) for each in (error.filename, error.strerror or error) if each)
        raise UserError(f"{what}: {answer}; {advice}") from None


class GivenUp:
    """Audit records that the kernel gave up, counted from the first answer on. Asked for a heartbeat, which
    must not vouch for what nobody told: that is booked as a time without a reader.
    """

    def __init__(self, ask: Callable[[], int | None], ring: OwnRing) -> None:
        """`ask`: how many since the boot; None: nobody says."""
        self._ask, self._ring = ask, ring
        self._last: int | None = None
        self._sum = 0
        self._begun = False

    def __call__(self) -> int:
        found = self._ask()
        if found is not None:
            self._sum += 0 if self._last is None else max(found - self._last, 0)
            self._last = found
        elif self._begun:  # the first time, the reader begins: the time before is booked anyway
            self._ring.opened(_boottime())
        self._begun = True
        return self._sum
