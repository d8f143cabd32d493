"""The hand-over: another generation of programs takes the place of the one that is attached.

    the loader proves the new choice beside what is attached, in maps of its own (attempt.py), and detaches it
    → loads it once more, against the rings, books and memories that stay
    → new hooks get an entry whose slot does nothing yet
    → the manifest names the new generation
    → slot by slot, one program is exchanged for the other: each run of a hook meets one of them
    → when no run of the old one can be under way: hooks that nobody wants go, then the old generation

Killed before the manifest, it has changed nothing; killed after it, slots of both generations work on, and
the next hand-over ends what this one began (pins.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from pipeline.chunk import PERF_RING
from pipeline.errors import UserError
from pipeline.kernel import bpf, compiler, pins
from pipeline.kernel.attempt import LOG, Attempt
from pipeline.kernel.generation import Generation, Place, enter, name_of
from pipeline.kernel.layout import RECORDS
from pipeline.kernel.manifest import Manifest, charged
from pipeline.kernel.source import Choice

__all__ = ["HandOver", "sweep"]

FIRST: Final = bytes(4)
LINK_GOES: Final = 5.0
"""Seconds that the kernel may take to end a link that has no name any more."""


def sweep(manifest: Manifest) -> None:
    """Remove what a hand-over that was killed had made and not put to use."""
    folder = Path(manifest.pins)
    for number in pins.generations(folder):
        if number > manifest.generation:
            pins.remove(pins.generation(folder, number))
    known = {"map_checkpoint", *(f"map_{name}" for name in manifest.maps)}
    for path in folder.glob("map_*"):
        if path.name not in known:
            path.unlink()
    for slot in folder.glob("slot_*"):
        name = slot.name.removeprefix("slot_")
        if not (folder / f"link_{name}").exists():
            (folder / f"entry_{name}").unlink(missing_ok=True)
            slot.unlink()


class HandOver:
    """One hand-over, prepared: nothing that is attached has changed yet. UserError: it cannot be."""

    def __init__(self, before: Manifest, attempt: Attempt, choice: Choice) -> None:
        """`attempt` was proven, and is detached now; `choice` is what of it works."""
        self._before, self._folder = before, Path(before.pins)
        self._log = Path(before.state) / LOG
        self._compiled = attempt.compiled
        self.made: dict[str, int] = {}
        """Rings and memories that were not there before, by the names of their pins."""
        self.maps = dict(before.maps)
        self._instead = self._memories()
        self._rings(attempt)
        attempt.close()
        self._generation = Generation(self._compiled, choice, self._instead)
        if self._generation.refused:
            kind, error = next(iter(self._generation.refused.items()))
            raise UserError(f"the kernel refused {kind} the second time: {error.strerror}; see {self._log}")

    def _memories(self) -> dict[int, int]:
        """Each map that outlives generations → the one that is pinned, or a new one: what the attempt's own
        remembers are halves that nobody would end.
        """
        instead = {}
        for name, (fd, digest) in self._compiled.memories().items():
            pin = self._folder / f"map_{name}"
            if pin.exists():
                instead[fd] = bpf.get(pin)
            else:
                instead[fd] = self.made[pin.name] = bpf.create_like(fd)
            self.maps[name] = digest
        return instead

    def _rings(self, attempt: Attempt) -> None:
        """Rings of CPUs stay as they are. Those of other sources are made when they are wanted first."""
        rings = self._instead[self._compiled.map("rings")]
        for name in {RECORDS, *(f"ring_{number}" for number in attempt.rings if number >= PERF_RING)}:
            if name in attempt.pinned and not (self._folder / name).exists():
                self.made[name] = fd = os.dup(attempt.pinned[name])
                if name == RECORDS:
                    bpf.update(rings, self._before.entries.to_bytes(4, "little"), fd.to_bytes(4, "little"))

    def run(self, manifest: Manifest) -> Manifest:
        """Do it; `manifest` says what is attached afterwards. Returns it as it was written in the end."""
        folder, programs = self._folder, self._generation.programs
        linked = {path.name.removeprefix("link_") for path in folder.glob("link_*")}
        entered = {place: self._enter(place) for place in programs if name_of(place) not in linked}
        pins.put(pins.generation(folder, manifest.generation), self._generation.pins)
        pins.put(folder, self.made)
        manifest.write()
        for made in entered.values():
            pins.put(folder, made)
        for place, program in programs.items():
            self._fill(name_of(place), program)
        unwanted = linked - set(map(name_of, programs))
        for name in unwanted:
            self._fill(name, self._nothing(name))
        self._wait()
        manifest = self._remove(unwanted, manifest)
        for number in pins.generations(folder) - {manifest.generation}:
            pins.remove(pins.generation(folder, number))
        return manifest

    def _enter(self, place: Place) -> dict[str, int]:
        """A new entry, which does nothing yet."""
        nothing = compiler.nothing(place[1], self._log)
        return enter(self._compiled, place, nothing, self._log, self._instead)

    def _fill(self, name: str, program: int) -> None:
        slot = bpf.get(self._folder / f"slot_{name}")
        bpf.update(slot, FIRST, program.to_bytes(4, "little"))
        os.close(slot)

    def _nothing(self, name: str) -> int:
        """A program that does nothing, for the hook that a pin's name says."""
        kind, hook = name.split("-", 2)[1:]
        return compiler.nothing(f"{kind}/{hook}", self._log)

    def _wait(self) -> None:
        """Until every run that began before is over: the kernel waits for them whenever a map in a map is
        changed (since Linux 4.19, 1ae80cf31938). Without it, parts of the old generation would be missed.
        """
        cpu = next(iter(self._before.rings)).to_bytes(4, "little")
        ring = bpf.get(self._folder / f"ring_{next(iter(self._before.rings))}")
        bpf.update(self._instead[self._compiled.map("rings")], cpu, ring.to_bytes(4, "little"))
        os.close(ring)

    def _remove(self, unwanted: Iterable[str], manifest: Manifest) -> Manifest:
        """Take hooks away that nobody wants any more; runs that the kernel skipped there stay counted."""
        links, skipped = [], dict(manifest.skipped)
        for name in unwanted:
            link = bpf.get(self._folder / f"link_{name}")
            links.append(bpf.object_id(link))
            os.close(link)
            (self._folder / f"link_{name}").unlink()
        end = time.monotonic() + LINK_GOES
        while any(map(bpf.link_lives, links)) and time.monotonic() < end:
            time.sleep(0.01)
        for name in unwanted:
            pin = self._folder / f"entry_{name}"
            entry, kind = bpf.get(pin), charged(pin.name)
            if kind and (missed := bpf.program_misses(entry)):
                skipped[kind] = skipped.get(kind, 0) + missed
            os.close(entry)
        manifest = replace(manifest, skipped=skipped)
        manifest.write()
        for name in unwanted:
            (self._folder / f"entry_{name}").unlink()
            (self._folder / f"slot_{name}").unlink()
        return manifest
