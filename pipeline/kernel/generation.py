"""A generation: the programs of one choice of surfaces, loaded against one set of maps.

    hook → link → entry → slot → program of this generation → its parts, by its own tables of tail calls
    └─ stay from attach to detach ─┘

attempt.py makes the first one and its entries; handover.py puts the next one into the same slots.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from pipeline.kernel import bpf
from pipeline.kernel.calls import NUMBERS, TABLE
from pipeline.kernel.compiler import Compiled, attach, signature
from pipeline.kernel.source import DISPATCHER, SHARED, Choice, shared
from pipeline.schema import Schema, Surface, by_name

__all__ = ["CONFIGURED", "Generation", "Place", "enter", "name_of", "place_of"]

CONFIGURED: Final = ("settings", "uids", "cgroups")
"""Maps that say what a generation was asked for."""
FIRST: Final = bytes(4)

Place = tuple[str, str]
"""Kind (or what stands for several: source.SHARED) and hook."""


def place_of(kind: str, hook: str) -> Place:
    """Where the events of a kind's hook come in."""
    hook = DISPATCHER if hook.startswith("sys_exit/") else hook
    return SHARED.get(hook, kind), hook


def name_of(place: Place) -> str:
    """What pins of a place are called, behind the word for what it is."""
    kind, hook = place
    return f"{kind}-{hook.replace('/', '-')}"


class Generation:
    """Loaded programs. `programs`: place → what its slot is to hold; `pins`: what has to be kept, by name;
    `refused`: kind → the kernel's answer.
    """

    def __init__(self, compiled: Compiled, choice: Choice, instead: Mapping[int, int] | None = None) -> None:
        """`instead`: map of the compiled unit → the one to use in its place."""
        self._compiled, self._instead = compiled, dict(instead or {})
        self._handlers: dict[str, dict[str, int]] = {}
        self.programs: dict[Place, int] = {}
        self.refused: dict[str, OSError] = {}
        self.pins = {f"map_{name}": compiled.map(name) for name in CONFIGURED}
        self._shared = shared(choice)
        if DISPATCHER in self._shared:
            self._calls = self.pins["map_calls_sys_exit"] = bpf.create_table(TABLE, "calls_sys_exit")
            self._instead[compiled.map("calls_sys_exit")] = self._calls
        # What ends something must be there before what begins it: exit takes identities away, and a socket's
        # state ends what a system call began.
        for hook in self._shared.keys() - {DISPATCHER}:
            self._load_shared(hook)
        for kind in reversed(list(choice)):
            if kind not in self.refused:
                self._try(by_name()[kind], choice[kind])
        if self._shared.get(DISPATCHER):
            self._load_shared(DISPATCHER)

    def kinds(self, place: Place) -> set[str]:
        """Those whose events come in there."""
        return self._shared.get(place[1], {place[0]})

    def drop(self, kind: str) -> None:
        """Leave a kind's programs out."""
        for hook in self._handlers.pop(kind, ()):
            for number in NUMBERS[hook.removeprefix("sys_exit/")]:
                bpf.delete(self._calls, number.to_bytes(4, "little"))
        for kinds in self._shared.values():
            kinds.discard(kind)
        for place in [place for place in self.programs if self.kinds(place) <= {kind}]:
            del self.programs[place]
            os.close(self.pins.pop(f"program_{name_of(place)}"))
        for pin in [pin for pin in self.pins if pin.startswith((f"program_{kind}-", f"map_calls_{kind}-"))]:
            os.close(self.pins.pop(pin))

    def close(self) -> None:
        """Let go of everything."""
        configured = {f"map_{name}" for name in CONFIGURED}  # the compiled unit's to close
        for pin in self.pins.keys() - configured:
            os.close(self.pins[pin])
        self.pins.clear()

    def _keep(self, place: Place, program: int) -> None:
        self.programs[place] = self.pins[f"program_{name_of(place)}"] = program

    def _load_shared(self, hook: str) -> None:
        name = SHARED[hook]
        try:
            self._keep((name, hook), self._compiled.load(hook, f"on_{name}", self._instead))
        except OSError as error:
            for kind in list(self._shared[hook]):
                self._refuse(kind, error)

    def _refuse(self, kind: str, error: OSError) -> None:
        self.refused[kind] = error
        self.drop(kind)

    def _try(self, schema: Schema, surface: Surface) -> None:
        try:
            self._load(schema, surface)
        except OSError as error:
            self._refuse(schema.name, error)

    def _load(self, schema: Schema, surface: Surface) -> None:
        tables: dict[int, dict[int, int]] = {}  # per signature: the unit's table → the one to use
        for hook, program in _in_order(surface):
            kind = signature(hook)
            if surface.parts and hook in surface.hooks and kind not in tables:
                tables[kind] = self._load_parts(schema.name, surface, hook, len(tables))
            if hook in SHARED:  # loaded once
                continue
            fd = self._compiled.load(hook, program, {**self._instead, **tables.get(kind, {})})
            if hook.startswith("sys_exit/"):
                self.pins[f"program_{name_of((schema.name, hook))}"] = fd
                self._handlers.setdefault(schema.name, {})[hook] = fd
            else:
                self._keep((schema.name, hook), fd)
        for hook, fd in self._handlers.get(schema.name, {}).items():
            for number in NUMBERS[hook.removeprefix("sys_exit/")]:
                bpf.update(self._calls, number.to_bytes(4, "little"), fd.to_bytes(4, "little"))

    def _load_parts(self, kind: str, surface: Surface, hook: str, number: int) -> dict[int, int]:
        """What those at hooks of one signature go on to, and the table that they call it by."""
        name = f"calls_{kind}"
        table = self.pins[f"map_{name}-{number}"] = bpf.create_table(len(surface.parts), name)
        instead = {self._compiled.map(name): table}
        for place, part in enumerate(surface.parts):
            fd = self._compiled.load(hook, part, {**self._instead, **instead})
            bpf.update(table, place.to_bytes(4, "little"), fd.to_bytes(4, "little"))
            self.pins[f"program_{kind}-{part}-{number}"] = fd
        return instead


def enter(
    compiled: Compiled, place: Place, program: int, log: Path, instead: Mapping[int, int] | None = None
) -> dict[str, int]:
    """Attach an entry, its slot filled; what has to be kept, by the names of its pins, the link last. OSError
    is the kernel's answer.
    """
    kind, hook = place
    surfaces = by_name()[kind].surfaces if kind in by_name() else ()
    name = f"entry_{kind}" if any(hook in surface.hooks for surface in surfaces) else "entry_before"
    slot = bpf.create_table(1, "slot")
    try:
        bpf.update(slot, FIRST, program.to_bytes(4, "little"))
        entry = compiled.load(hook, name, {**(instead or {}), compiled.map("entry_slot"): slot})
        link = attach(hook, entry, log)
    except OSError:
        os.close(slot)
        raise
    pin = name_of(place)
    return {f"slot_{pin}": slot, f"entry_{pin}": entry, f"link_{pin}": link}


def _in_order(surface: Surface) -> Iterator[tuple[str, str]]:
    """Hooks and programs; those that make events first: what another remembered for nobody would stay."""
    yield from surface.hooks.items()
    yield from surface.before.items()
