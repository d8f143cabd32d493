"""What is opened while there are privileges: the sources that are no BPF programs (feeds.py)."""

from __future__ import annotations

import time

from pipeline.chunk import AUDIT_RING, PERF_RING
from pipeline.config import Config
from pipeline.kernel.attachment import Attachment
from pipeline.kernel.deputy import Deputy
from pipeline.privilege import User
from pipeline.sources.audit import Audit
from pipeline.sources.feeds import Feed
from pipeline.sources.perf import Perf, Wanted
from pipeline.sources.wires import Kept, Multicast

__all__ = ["Feeds"]


class Feeds:
    """The feeds of an attachment, and the deputy (kernel/deputy.py) of those that need one."""

    def __init__(self, config: Config, attachment: Attachment, user: User) -> None:
        """Open all. OSError carries the kernel's answer."""
        self._attachment, self._user = attachment, user
        self._now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._caps = config.caps.model_dump()
        self._deputy: Deputy | None = None
        self._uids, self._cgroups = config.kernel.uids, config.kernel.cgroups
        manifest = attachment.manifest
        surfaces = {kind: manifest.surfaces[kind] for kind in manifest.kinds}
        self.all: list[Feed] = []
        if kinds := [kind for kind, surface in surfaces.items() if surface == "perf"]:
            self.all.append(self._perf(Wanted(kinds, config.memory.all, self._uids, self._cgroups)))
        if "audit" in surfaces and AUDIT_RING in manifest.rings:
            self.all.append(self._audit())

    def _perf(self, wanted: Wanted) -> Perf:
        asks = any(kind.startswith("bpf_") for kind in wanted.kinds)
        return Perf(
            self._attachment.own_ring(PERF_RING, self._caps),
            self._attachment.who(),
            wanted,
            self._now,
            self._asked().program if asks else None,
        )

    def _audit(self) -> Audit:
        attachment = self._attachment
        ring, kept = attachment.own_ring(AUDIT_RING, self._caps), attachment.records()
        booked = attachment.source_books(AUDIT_RING)["lost"]
        wire = Kept(*kept, booked) if kept else Multicast(self._asked().lost)
        return Audit(ring, wire, attachment.who(), self._now, self._uids, self._cgroups)

    def _asked(self) -> Deputy:
        if self._deputy is None:
            self._deputy = Deputy(self._user)
        return self._deputy

    def close(self) -> None:
        """Close all."""
        for feed in self.all:
            feed.close()
        if self._deputy:
            self._deputy.close()
