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
from pipeline.kernel.calls import NUMBERS
from pipeline.kernel.compiler import Compiled, attach, signature
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
from pipeline.schema import Schema, Surface, by_name

__all__ = ["DISPATCHER", "LOG", "SOURCES", "Attempt", "Witness"]

LOG: Final = "loader.log"
MAPS: Final = ("books", "settings", "identities", "uids", "cgroups")
SYMBOL_FORMAT: Final = b"%pS".ljust(8, b"\0")
"""How bpf/texts.h has the kernel write a symbol."""
DISPATCHER: Final = "raw_tp/sys_exit"
"""The hook of bpf/sys_exit.c, which calls the handlers of hooks of type sys_exit."""


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
    """Attached surfaces. `pinned` is what has to be kept, by the names of its pins; `rings`: CPU → bytes."""

    def __init__(self, config: Config, cpus: Collection[int], entries: int, choice: Choice) -> None:
        """Compile. `cpus` get rings, `entries` is one more than the highest that there could be."""
        self._config, self._choice, self._entries = config, choice, entries
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
        self._maps = {f"map_{name}": self.compiled.map(name) for name in self._names()}
        self.pinned |= self._maps

    def tap(self, kinds: Collection[str], pipeline: Identity | None) -> list[Hook]:
        """Attach everything and prove it. `kinds` are reported, save those of `pipeline`'s own doing (I8)."""
        self._set(kinds)
        self._know(pipeline)
        # Exit first: what takes identities away must be there before what gives them. And loading takes far
        # longer than attaching: done before, little happens between the first hook and the last.
        order = [by_name()[kind] for kind in reversed(list(self._choice))]
        loaded = {schema.name: self._load(schema, self._choice[schema.name]) for schema in order}
        dispatcher = self._load_dispatcher()
        hooks = [self._attach(schema, self._choice[schema.name], loaded[schema.name]) for schema in order]
        if dispatcher is not None:
            self.pinned["link_sys_exit"] = attach(DISPATCHER, dispatcher, self._log)
        return self._proven(hooks)[::-1]

    def drop(self, failed: Collection[Hook]) -> None:
        """Detach what does not work."""
        for hook in failed:
            for name in [name for name in self.pinned if _belongs(name, hook.event)]:
                os.close(self.pinned.pop(name))

    def close(self) -> None:
        """Detach everything."""
        for name in sorted(self.pinned.keys() - self._maps.keys()):  # links first; maps are bcc's to close
            os.close(self.pinned[name])
        self.pinned.clear()

    def _names(self) -> Iterator[str]:
        """Maps of the compiled unit that outlive this process."""
        yield from MAPS
        yield from (f"calls_{kind}" for kind, surface in self._choice.items() if surface.parts)
        if self._has_sys_exit:
            yield "calls_sys_exit"
        if fed(self._choice):
            yield "pids"

    @property
    def _has_sys_exit(self) -> bool:
        return any(surface.name == "sys_exit" for surface in self._choice.values())

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

    def _load(self, schema: Schema, surface: Surface) -> dict[str, int] | OSError:
        """Hook → descriptor of its program; or the kernel's answer."""
        found: dict[str, int] = {}
        tables: dict[int, dict[int, int]] = {}  # per signature: bcc's table → the one to use
        try:
            for hook, program in _in_order(surface):
                kind = signature(hook)
                if surface.parts and hook in surface.hooks and kind not in tables:
                    tables[kind] = self._load_parts(schema.name, surface, hook, len(tables))
                found[hook] = self.compiled.load(hook, program, tables.get(kind, {}))
                self.pinned[_pin("program", schema.name, hook)] = found[hook]
        except OSError as error:
            return error
        return found

    def _load_parts(self, kind: str, surface: Surface, hook: str, number: int) -> dict[int, int]:
        """The programs that those at hooks of one signature go on to, and the table that these call them by:
        the first has bcc's, any other its own.
        """
        name, suffix = f"calls_{kind}", f"-{number}" if number else ""
        table = self.compiled.map(name)
        instead = {}
        if number:
            instead[table] = table = bpf.create_table(len(surface.parts), name)
            self.pinned[f"map_{name}{suffix}"] = table
        for place, part in enumerate(surface.parts):
            fd = self.compiled.load(hook, part, instead)
            bpf.update(table, place.to_bytes(4, "little"), fd.to_bytes(4, "little"))
            self.pinned[f"program_{kind}-{part}{suffix}"] = fd
        return instead

    def _load_dispatcher(self) -> int | None:
        if not self._has_sys_exit:
            return None
        self.pinned["program_sys_exit"] = fd = self.compiled.load(DISPATCHER, "on_sys_exit", {})
        return fd

    def _attach(self, schema: Schema, surface: Surface, loaded: Mapping[str, int] | OSError) -> Hook:
        pins = {
            hook: "program_sys_exit" if hook.startswith("sys_exit/") else _pin("program", schema.name, hook)
            for hook in surface.hooks
        }
        tap = Hook(schema.name, surface.name, pins, True, "attached, unproven", surface.cost)
        if isinstance(loaded, OSError):
            return replace(tap, works=False, answer=f"refused: {loaded.strerror}")
        try:
            for hook, fd in loaded.items():
                if hook.startswith("sys_exit/"):
                    for number in NUMBERS[hook.removeprefix("sys_exit/")]:
                        self.compiled.put("calls_sys_exit", number, fd)
                else:
                    self.pinned[_pin("link", schema.name, hook)] = attach(hook, fd, self._log)
        except OSError as error:
            return replace(tap, works=False, answer=f"refused: {error.strerror}")
        return tap if surface.name != "proc" else replace(tap, answer="read once, when attached")

    def _proven(self, hooks: list[Hook]) -> list[Hook]:
        """Do something harmless and see which hooks noticed: that a program is attached does not mean that it
        runs.
        """
        before = self._seen()
        with self._witnesses() as (witnesses, answers):
            act(hook.event for hook in hooks if hook.works)
            seen = {name: witness.seen() for name, witness in witnesses.items()}
        after = self._seen()
        return [self._judged(hook, before, after, seen, answers) for hook in hooks]

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

    @contextlib.contextmanager
    def _witnesses(self) -> Iterator[tuple[dict[str, Witness], dict[str, str]]]:
        """For each surface that is a source of the pipeline's: who looks, or why nobody can."""
        found: dict[str, Witness] = {}
        answers: dict[str, str] = {}
        for name in {s.name for s in self._choice.values() if not s.hooks and s.name != "proc"}:
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


def _in_order(surface: Surface) -> Iterator[tuple[str, str]]:
    """Hooks and programs; those that make events first: what another remembered for nobody would stay."""
    yield from surface.hooks.items()
    yield from surface.before.items()


def _pin(what: str, kind: str, hook: str) -> str:
    return f"{what}_{kind}-{hook.replace('/', '-')}"


def _belongs(pin: str, kind: str) -> bool:
    return pin.startswith((f"link_{kind}-", f"program_{kind}-"))
