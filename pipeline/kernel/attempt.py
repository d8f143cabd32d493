"""One choice of surfaces, tried: compiled, loaded, attached, and proven by acts of our own.

The loader (loader.py) makes one or more of these: what turns out not to run here is left out of the next.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

from pipeline.chunk import OWN_RINGS
from pipeline.config import Config
from pipeline.kernel import bpf, netlink, own_ring, perf_event
from pipeline.kernel.acts import ACTS, act
from pipeline.kernel.compiler import Compiled
from pipeline.kernel.generation import Generation, enter, name_of, place_of
from pipeline.kernel.layout import (
    AREA_SIZE,
    BOOKS,
    IDENTITY,
    OURS,
    OWN_ROWS,
    OWN_SIZE,
    RECORDS,
    TEST,
    Identity,
    books_view,
    settings,
    start_ticks,
)
from pipeline.kernel.manifest import Hook
from pipeline.kernel.source import Choice, fed
from pipeline.schema import Schema, by_name

__all__ = ["LOG", "SOURCES", "Attempt", "Witness"]

LOG: Final = "loader.log"
SYMBOL_FORMAT: Final = b"%pS".ljust(8, b"\0")
"""How bpf/texts.h has the kernel write a symbol."""


class Witness(Protocol):
    """Looks, while acts are done, whether a source that is not a BPF program delivers."""

    def seen(self) -> Collection[str]:
        """Kinds that came since it was made."""
        ...

    def close(self) -> None:
        """Look no more."""
        ...


SOURCES: Final[dict[str, Callable[[], Witness]]] = {"audit": netlink.Witness, "perf": perf_event.Witness}
"""Surface without BPF programs → how to look whether it delivers. OSError carries the kernel's answer."""


class Attempt:
    """Attached surfaces. `pinned` is what has to be kept, by the names of its pins, besides the pins of its
    generation; `rings`: CPU → bytes.
    """

    def __init__(self, config: Config, cpus: Collection[int], entries: int, choice: Choice) -> None:
        """Compile. `cpus` get rings, `entries` is one more than the highest that there could be."""
        self._config, self.choice, self._entries = config, choice, entries
        self._log = config.state / LOG
        processes = min(int(Path("/proc/sys/kernel/pid_max").read_text()), 1 << 20)
        self.compiled = Compiled(
            rings=entries,
            processes=processes,
            arguments=config.caps.argv + config.caps.environment,
            log=self._log,
            choice=choice,
        )
        self.pinned: dict[str, int] = {}
        self.rings: dict[int, int] = {}
        self._books = self._make_books()
        for cpu in cpus:
            ring = bpf.create_ring(config.ring.size, f"ring_{cpu}")
            bpf.update(self.compiled.map("rings"), cpu.to_bytes(4, "little"), ring.to_bytes(4, "little"))
            self.pinned[f"ring_{cpu}"] = ring
            self.rings[cpu] = config.ring.size
        for name in fed(choice):
            ring, size = OWN_RINGS[name], min(config.ring.size, OWN_SIZE)
            self.pinned[f"ring_{ring}"] = own_ring.create(size, f"ring_{name}")
            self.rings[ring] = size
        if "audit" in choice and choice["audit"].hooks:
            self.pinned[RECORDS] = bpf.create_ring(min(config.ring.size, OWN_SIZE), RECORDS)
            place, fd = (each.to_bytes(4, "little") for each in (entries, self.pinned[RECORDS]))
            bpf.update(self.compiled.map("rings"), place, fd)
        self.pinned["map_checkpoint"] = bpf.create_array(AREA_SIZE, 1, "checkpoint")
        self._maps = {f"map_{name}": fd for name, (fd, _) in self.compiled.memories().items()}
        self.pinned |= self._maps
        self.generation: Generation | None = None

    def tap(self, kinds: Collection[str], pipeline: Identity | None) -> list[Hook]:
        """Attach everything and prove it. `kinds` are reported, save those of `pipeline`'s own doing (I8)."""
        self._set(kinds)
        self._know(pipeline)
        # Loading takes far longer than attaching: done before, little happens between the first hook and the
        # last, in the order in which they were loaded.
        self.generation = Generation(self.compiled, self.choice)
        refused = self._enter(self.generation)
        hooks = [self._hook(by_name()[kind], refused.get(kind)) for kind in reversed(list(self.choice))]
        return self._proven(hooks)[::-1]

    def drop(self, failed: Collection[Hook]) -> None:
        """Detach what does not work."""
        if not self.generation:
            return
        kinds = {hook.event for hook in failed}
        places = [place for place in self.generation.programs if self.generation.kinds(place) <= kinds]
        # Links first: what still runs would find its tables of tail calls empty.
        for pin in [f"{what}_{name_of(place)}" for what in ("link", "entry", "slot") for place in places]:
            if pin in self.pinned:
                os.close(self.pinned.pop(pin))
        for kind in kinds:
            self.generation.drop(kind)

    def close(self) -> None:
        """Detach everything."""
        # A link before its slot. The compiled unit's maps are its own to close.
        for name in sorted(self.pinned.keys() - self._maps.keys()):
            os.close(self.pinned[name])
        self.pinned.clear()
        if self.generation:
            self.generation.close()
            self.generation = None

    def _make_books(self) -> Any:
        size = (self._entries + OWN_ROWS) * BOOKS.itemsize
        books = books_view(bpf.map_memory(self.compiled.map("books"), size), self._entries)
        # Ids never repeat within a boot (chunk.py).
        first = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
        for name in ("sequence", "start"):
            books[name] = first
        books["hidden"][: self._entries] = first
        return books

    def _set(self, kinds: Collection[str]) -> None:
        config = self._config
        bpf.update(self.compiled.map("settings"), bytes(4), settings(config, kinds))
        for uid in config.kernel.uids:
            bpf.update(self.compiled.map("uids"), uid.to_bytes(4, "little"), b"\1")
        for cgroup in config.kernel.cgroups:
            bpf.update(self.compiled.map("cgroups"), cgroup.to_bytes(8, "little"), b"\1")

        formats = self.compiled.map("formats")
        bpf.update(formats, bytes(4), SYMBOL_FORMAT)
        bpf.freeze(formats)

    def _know(self, pipeline: Identity | None) -> None:
        """What this process causes is a self-test, what the pipeline causes its own: neither is reported."""
        identities = self.compiled.map("identities")
        ours = Identity(os.getpid(), start_ticks(os.getpid()))
        bpf.update(identities, ours.key, IDENTITY.pack(0, TEST, 0))
        if pipeline:
            bpf.update(identities, pipeline.key, IDENTITY.pack(0, OURS, 0))

    def _enter(self, generation: Generation) -> dict[str, OSError]:
        """Attach its programs; kind → why that, or loading one, was refused."""
        refused = dict(generation.refused)
        for place, program in generation.programs.items():
            kinds = generation.kinds(place)
            if kinds <= refused.keys():
                continue
            try:
                self.pinned |= enter(self.compiled, place, program, self._log)
            except OSError as error:
                refused |= dict.fromkeys(kinds, error)
        return refused

    def _hook(self, schema: Schema, refused: OSError | None) -> Hook:
        surface = self.choice[schema.name]
        hooks = (*surface.hooks, *surface.before)
        pins = {hook: f"entry_{name_of(place_of(schema.name, hook))}" for hook in hooks}
        answer = "read once, when attached" if surface.name == "proc" else "attached, unproven"
        if refused:
            answer = f"refused: {refused.strerror}"
        return Hook(schema.name, surface.name, pins, not refused, answer, surface.cost)

    def _proven(self, hooks: list[Hook]) -> list[Hook]:
        """Do something harmless and see which hooks noticed: that a program is attached does not mean that it
        runs.
        """
        before = self._seen()
        with self._witnesses() as (witnesses, answers), bpf.statistics():
            ran = self._runs()
            act(hook.event for hook in hooks if hook.works)
            seen = {name: witness.seen() for name, witness in witnesses.items()}
            idle = {pin for pin, runs in self._runs().items() if runs == ran[pin]}
        after = self._seen()
        judged = (self._judged(hook, before, after, seen, answers) for hook in hooks)
        return [self._run(hook, idle) for hook in judged]

    def _judged(
        self,
        hook: Hook,
        before: Any,
        after: Any,
        seen: Mapping[str, Collection[str]],
        answers: Mapping[str, str],
    ) -> Hook:
        number = by_name()[hook.event].number
        if not hook.works or hook.surface == "proc":
            return hook
        if hook.surface in answers:
            return replace(hook, works=False, answer=answers[hook.surface])
        if hook.event not in ACTS:
            return hook
        proven = hook.event in seen.get(hook.surface, ()) or bool(after[number] > before[number])
        answer = "proven: our own act came through" if proven else "attached, and never runs"
        return replace(hook, works=proven, answer=answer)

    def _run(self, hook: Hook, idle: Collection[str]) -> Hook:
        """A hook that is proven, and whether each of its programs ran."""
        surface = self.choice[hook.event]
        if not hook.works or hook.event not in ACTS:
            return hook
        never = tuple(name for name, pin in hook.hooks.items() if pin in idle)
        # Without what comes before, events would say less than their surface promises.
        dead = next((name for name in never if name in surface.before and name not in surface.optional), None)
        if dead:
            return replace(hook, works=False, answer=f"{dead}: attached, and never runs")
        return replace(hook, idle=never)

    def _runs(self) -> dict[str, int]:
        """Entry → how often it ran."""
        return {pin: bpf.program_runs(fd) for pin, fd in self.pinned.items() if pin.startswith("entry_")}

    @contextlib.contextmanager
    def _witnesses(self) -> Iterator[tuple[dict[str, Witness], dict[str, str]]]:
        """For each surface that is a source of the pipeline's: who looks, or why nobody can."""
        found: dict[str, Witness] = {}
        answers: dict[str, str] = {}
        for name in {s.name for s in self.choice.values() if not s.hooks and s.name != "proc"}:
            try:
                found[name] = SOURCES[name]()
            except KeyError:
                answers[name] = "this version has no such source"
            except OSError as error:
                answers[name] = f"refused: {error.strerror}"
        try:
            yield found, answers
        finally:
            for witness in found.values():
                witness.close()

    def _seen(self) -> Any:
        return self._books["kinds"]["filtered_test"].sum(axis=0)
