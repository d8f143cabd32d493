"""The pipeline's side of what the loader pinned (attaching.py): rings, the kernel's counters, the
checkpoint's memory, opened. A hand-over may change programs and hooks under it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.chunk import HEADER, PERF_RING, PROC_RING
from pipeline.errors import UserError
from pipeline.event import Array, Ints
from pipeline.kernel import bpf
from pipeline.kernel.layout import (
    AREA_SIZE,
    BOOKS,
    FILTERED,
    IDENTITY,
    LOST,
    OURS,
    OWN,
    OWN_COUNTERS,
    OWN_ROWS,
    RECORDS,
    Identity,
    books_view,
    row_of,
)
from pipeline.kernel.manifest import PROC_FILE, Manifest, charged
from pipeline.kernel.own_ring import OwnMemory, OwnRing
from pipeline.kernel.ring import Ring, RingMemory, resume
from pipeline.kernel.surfaces import Surfaces
from pipeline.kernel.who import Who
from pipeline.ledger import Books, KernelBooks, RingBooks, Tally, zeros
from pipeline.schema import by_name

__all__ = ["Attachment"]


class Attachment:
    """What is pinned, opened."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._entries: dict[str, tuple[int, int]] = {}
        pins = Path(manifest.pins)
        try:
            memory = bpf.map_memory(
                bpf.get(pins / "map_books"), (manifest.entries + OWN_ROWS) * BOOKS.itemsize
            )
            self._books = books_view(memory, manifest.entries)
            self.area: mmap.mmap = bpf.map_memory(bpf.get(pins / "map_checkpoint"), AREA_SIZE)
            found = {ring: bpf.get(pins / f"ring_{ring}") for ring in manifest.rings}
            self.descriptors = {ring: fd for ring, fd in found.items() if ring < PERF_RING}
            self._memories = {
                ring: RingMemory.of_map(fd, manifest.rings[ring]) for ring, fd in self.descriptors.items()
            }
            self._own = {
                ring: OwnMemory(fd, manifest.rings[ring]) for ring, fd in found.items() if ring >= PERF_RING
            }
            self._identities = bpf.get(pins / "map_identities")
            self.renew()
            self.surfaces = Surfaces(self.manifest, self.renew)
        except PermissionError:
            raise UserError(f"{pins} can be entered by root and the pipeline's user only; try sudo") from None
        except OSError as error:
            raise UserError(
                f"{error.filename}: {error.strerror}; probes are half gone: promissory detach, then try again"
            ) from None
        for ring, own in self._own.items():
            own.finish(self._own_row(ring))
        file = Path(manifest.state) / PROC_FILE
        self._processes: Array = np.frombuffer(file.read_bytes() if file.exists() else b"", HEADER)

    def renew(self) -> Manifest:
        """Take up what a hand-over changed."""
        self.manifest = self.manifest.renewed()
        before, self._entries = self._entries, {}
        for hook in self.manifest.hooks:
            for pin in hook.hooks.values() if hook.works else ():
                known = self._entries.get(pin) or before.pop(pin, None)
                with contextlib.suppress(FileNotFoundError):  # a hand-over is under way, or was killed
                    fd = known[1] if known else bpf.get(Path(self.manifest.pins) / pin)
                    self._entries[pin] = by_name()[charged(pin) or hook.event].number, fd
        for _, fd in before.values():
            os.close(fd)
        return self.manifest

    def rings(self, books: Books) -> dict[int, Ring]:
        """A reader for each ring, and for the first look at /proc, from where the books end.

        What is impossible in the books is put right in them (kernel/ring.py).
        """
        memories = {**self._memories, **self._own, PROC_RING: RingMemory.of_chunks(self._processes)}
        found = {}
        for number, memory in memories.items():
            known = books.rings.get(number) or RingBooks(sequence=self.start(number))
            numbers = range(self.start(number), self.next_sequence(number) + 1)
            known, refused = resume(memory, known, numbers)
            if refused:
                books.rings[number] = known
            found[number] = Ring(number, memory, known, refused)
        return found

    def own_ring(self, number: int, caps: Mapping[str, int]) -> OwnRing:
        """The writer of a ring that the pipeline fills itself; `caps`: the most bytes of promises."""
        return OwnRing(number, self._own[number], self._own_row(number), caps)

    def records(self) -> tuple[int, RingMemory, Array] | None:
        """Where BPF puts audit records: the ring's descriptor and memory, and its row (1,) of BOOKS. None: it
        does not.
        """
        pins = Path(self.manifest.pins)
        if not (pins / RECORDS).exists():
            return None
        fd, rows = bpf.get(pins / RECORDS), self.manifest.entries + OWN_ROWS + 1
        books = bpf.map_memory(bpf.get(pins / "map_books"), rows * BOOKS.itemsize, False)
        return fd, RingMemory.of_map(fd, bpf.map_info(fd)[1]), np.frombuffer(books, BOOKS, rows)[-1:]

    def who(self) -> Who:
        """Tells who a pid was, where sources of the pipeline's own were chosen."""
        return Who(bpf.get(Path(self.manifest.pins) / "map_pids"), self._identities, os.getpid())

    def source_books(self, ring: int) -> dict[str, int]:
        """What the row of such a ring counts besides (layout.OWN_COUNTERS); nothing for others."""
        if ring not in self._own:
            return {}
        row = self._own_row(ring)
        return {name: int(row[name][0]) for name in OWN_COUNTERS}

    def start(self, ring: int) -> int:
        """The number of a ring's first chunk."""
        if ring == PROC_RING:
            return int(self._processes["sequence"][0]) if len(self._processes) else 0
        return int(self._row(ring)["start"])

    def know(self, process: Identity) -> None:
        """From now on this process's own events are not reported (I8)."""
        bpf.update(self._identities, process.key, IDENTITY.pack(0, OURS, 0))

    def remove_links(self) -> None:
        """Let no event come in any more; what is in the rings stays there."""
        for path in Path(self.manifest.pins).glob("link_*"):
            path.unlink()

    def attempted(self) -> Ints:
        """Events per kind that hooks saw: the kernel's counters, runs it skipped, and the look at /proc."""
        kinds: Ints = self._books["kinds"]["attempted"].sum(axis=0) + self.misses()
        kinds[by_name()["process"].number] += self.manifest.processes
        return kinds

    def misses(self) -> Ints:
        """Events per kind that the kernel skipped because the program was running already on that CPU."""
        found = zeros()
        for name, count in self.manifest.skipped.items():
            found[by_name()[name].number] += count
        for kind, fd in self._entries.values():
            found[kind] += bpf.program_misses(fd)
        return found

    def chunks_attempted(self) -> dict[int, int]:
        """Ring → numbers given out."""
        found = {ring: self.next_sequence(ring) - self.start(ring) for ring in self.manifest.rings}
        return {**found, PROC_RING: len(self._processes)}

    def counters(self) -> dict[int, tuple[int, int]]:
        """Ring → (the number that its next attempt will take, numbers that it dropped)."""
        rows = {ring: self._row(ring) for ring in self.manifest.rings}
        return {ring: (int(row["sequence"]), int(row["drops"])) for ring, row in rows.items()}

    def next_sequence(self, ring: int) -> int:
        """The number that a ring's next attempt will take."""
        if ring == PROC_RING:
            return self.start(ring) + len(self._processes)
        return int(self._row(ring)["sequence"])

    def look(self, rings: Mapping[int, Ring]) -> KernelBooks:
        """All of the kernel's terms, and what stands in the rings behind their cursors."""
        attempted = self.attempted()
        chunks = self.chunks_attempted()
        behind = {number: ring.behind(self.start(number) + chunks[number]) for number, ring in rings.items()}
        kinds = self._books["kinds"]
        tally: Tally = {("lost", "kernel", "skipped"): self.misses()}
        for counter, (stage, reason) in LOST.items():
            tally["lost", stage, reason] = kinds[counter].sum(axis=0)
        for counter, reason in FILTERED.items():
            tally["filtered", "kernel", reason] = kinds[counter].sum(axis=0)
        drops = {ring: int(self._row(ring)["drops"]) for ring in self.manifest.rings} | {PROC_RING: 0}
        return KernelBooks(
            attempted=attempted,
            tally=tally,
            unread=sum((ring.events for ring in behind.values()), zeros()),
            rings={
                ring: (chunks[ring], drops[ring], found.chunks, found.gaps) for ring, found in behind.items()
            },
        )

    def troubles(self) -> dict[str, int]:
        """Counters that should stay 0: missing rings, full maps, events cut short by a tail call."""
        books = self._books[: self.manifest.entries]
        return {name: int(books[name].sum()) for name in ("no_ring", "identity_full", "cut_calls")}

    def _row(self, ring: int) -> Any:
        return self._books[row_of(ring, self.manifest.entries)]

    def _own_row(self, ring: int) -> Array:
        row = row_of(ring, self.manifest.entries)
        return self._books[row : row + 1].view(OWN)
