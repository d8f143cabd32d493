"""The choice: each kind of event at the first of its surfaces that works on this kernel.

Of its surfaces, in the schema's order: those that the configuration allows → that the kernel does not refuse
→ whose programs read nothing that this kernel lacks → that were attached and proven (attempt.py). The loader
attaches what was chosen (loader.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from pipeline.chunk import MAX_RINGS
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.kernel import btf, compiler, source
from pipeline.kernel.attempt import LOG, Attempt
from pipeline.kernel.layout import OWN_ROWS, Identity, cgroup_known, cpus, wanted
from pipeline.kernel.manifest import Hook
from pipeline.kernel.source import Choice
from pipeline.schema import Schema, Surface, by_name

__all__ = ["Chooser"]


class Chooser:
    """Finds out what this kernel allows."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.kinds = wanted(config)
        self.cpus = cpus("present")
        self.entries = max(cpus("possible")) + 1
        most = MAX_RINGS - 1 - OWN_ROWS
        if self.entries > most:
            raise UserError(f"this host has CPU {self.entries - 1}; promissory knows CPUs up to {most - 1}")
        if config.kernel.cgroups and not cgroup_known():
            raise UserError(
                "kernel.cgroups needs version-2 cgroups, this host has version 1; use kernel.uids, --filter"
            )
        self.held: dict[str, str] = {}
        """Kinds that cannot change their surface any more."""
        self._answers: dict[str, str] = {}
        self._refused: dict[tuple[str, str], Hook] = {}

    def try_all(self, pipeline: Identity | None = None) -> tuple[Attempt, list[Hook]]:
        """Attach each kind at the first of its surfaces that works, and say what came of each that was tried.

        Kinds that keep identities and exec ids true, and those that another needs, are attached also when
        nobody asked for them.
        """
        while True:
            attempt, hooks = self._try(self._choice(), pipeline)
            failed = [hook for hook in hooks if not hook.works]
            self._refused |= {(hook.event, hook.surface): hook for hook in failed}
            if not any(next(self._candidates(by_name()[hook.event]), None) for hook in failed):
                attempt.drop(failed)
                works = [hook for hook in hooks if hook.works]
                return attempt, sorted([*self._refused.values(), *works], key=_rank)
            attempt.close()

    def matrix(self, known: Collection[Hook] = ()) -> list[Hook]:
        """Try every surface of every kind, save those that are `known` to work, as what is attached does."""
        possible = {
            name: [
                surface for surface in map(self._fitted, schema.surfaces) if self._allowed(schema, surface)
            ]
            for name, schema in by_name().items()
        }
        found = self._refused | {(hook.event, hook.surface): hook for hook in known if hook.works}
        for choice in _rounds(possible):
            new = {kind: surface for kind, surface in choice.items() if (kind, surface.name) not in found}
            if new:
                keepers = {kind: surface for kind, surface in choice.items() if by_name()[kind].always}
                attempt, hooks = self._try(self._readable(keepers | new), None)
                attempt.close()
                found |= {(h.event, h.surface): h for h in hooks if h.event in new}
        return sorted((found | self._refused).values(), key=_rank)

    def _try(self, choice: Choice, pipeline: Identity | None) -> tuple[Attempt, list[Hook]]:
        attempt = Attempt(self.config, self.cpus, self.entries, choice)
        return attempt, attempt.tap(self.kinds, pipeline)

    def _choice(self) -> Choice:
        """Each kind's first surface that nothing speaks against yet."""
        while True:
            choice: dict[str, Surface] = {}
            for name, schema in by_name().items():
                surface = self._first(schema) if name in self.kinds or self.is_needed(schema) else None
                if surface:
                    choice[name] = surface
            if len(self._readable(choice)) == len(choice):
                return choice

    def _first(self, schema: Schema) -> Surface | None:
        return next((s for s in self._candidates(schema) if self._allowed(schema, s)), None)

    def is_needed(self, schema: Schema) -> bool:
        return schema.always or any(by_name()[kind].needs == schema.name for kind in self.kinds)

    def is_named(self, kind: str, surface: str) -> bool:
        """Whether `surface` of the configuration allows a surface of a kind."""
        return self.config.surface in ("auto", surface) or surface == "proc" or bool(by_name()[kind].needs)

    def is_dear(self, kind: str, surface: Surface) -> bool:
        """Whether a surface costs others and nobody named the kind."""
        return bool(surface.cost) and not self.config.names(kind)

    def _candidates(self, schema: Schema) -> Iterator[Surface]:
        """Surfaces that the configuration allows and that were not refused."""
        named = [surface for surface in schema.surfaces if self.is_named(schema.name, surface.name)]
        if self.is_needed(schema):
            asked = named if schema.name in self.config.events else ()
            named = [*asked, *(surface for surface in schema.surfaces if surface not in asked)]
        if held := schema.surface(self.held.get(schema.name)):
            named = [held]
        for surface in named:
            if not self.is_dear(schema.name, surface) and (schema.name, surface.name) not in self._refused:
                yield self._fitted(surface)

    def _fitted(self, surface: Surface) -> Surface:
        """A surface without those hooks that this kernel lacks and may lack."""
        lacking = set(filter(self._refusal, surface.optional))
        hooks, before = (
            {hook: program for hook, program in each.items() if hook not in lacking}
            for each in (surface.hooks, surface.before)
        )
        return replace(surface, hooks=hooks, before=before)

    def _allowed(self, schema: Schema, surface: Surface) -> bool:
        """Whether the kernel has nothing against a surface's hooks; if it has, its answer is kept."""
        answer = next(filter(None, map(self._refusal, (*surface.hooks, *surface.before))), "")
        if answer:
            self._refuse(schema.name, surface, answer)
        return not answer

    def _refuse(self, kind: str, surface: Surface, answer: str) -> None:
        hooks = dict.fromkeys(surface.hooks, "")
        self._refused[kind, surface.name] = Hook(kind, surface.name, hooks, False, answer, surface.cost)

    def _readable(self, choice: Choice) -> Choice:
        """A choice without surfaces whose programs read what this kernel's structures lack."""
        lacking = source.lacking(btf.running(), choice)
        for kind, answer in lacking.items():
            self._refuse(kind, choice[kind], answer)
        return {kind: surface for kind, surface in choice.items() if kind not in lacking}

    def _refusal(self, hook: str) -> str:
        if hook not in self._answers:
            answer = compiler.refusal(hook, self.config.state / LOG)
            self._answers[hook] = answer and f"{hook}: {answer}"
        return self._answers[hook]


def _rounds(possible: Mapping[str, list[Surface]]) -> Iterator[Choice]:
    """Choices that have every surface between them: each kind's first, its second, … By what keeps identities
    a process is known as ours: such kinds stay at their first meanwhile, and have rounds of their own.
    """
    first = {name: some[0] for name, some in possible.items() if some}
    keepers = {name: surface for name, surface in first.items() if by_name()[name].always}
    yield first
    others = {name: some for name, some in possible.items() if name not in keepers}
    for number in range(1, max(map(len, others.values()), default=0)):
        yield keepers | {name: some[number] for name, some in others.items() if number < len(some)}
    for name in keepers:
        yield from (keepers | {name: surface} for surface in possible[name][1:])


def _rank(hook: Hook) -> tuple[int, int]:
    """In the schemas' order."""
    schema = by_name()[hook.event]
    return schema.number, [surface.name for surface in schema.surfaces].index(hook.surface)
