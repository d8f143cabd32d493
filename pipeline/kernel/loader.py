"""The loader: a process of its own, as root, that attaches and goes (LLVM never lives in the pipeline).

    choose each event's first surface that this kernel does not refuse (chooser.py) → compile for this kernel
    → check against BTF → load → attach → prove each by an act of our own → look at /proc → pin → manifest

What turns out not to run is left out, and its kind's next surface is tried. What is pinned outlives this
process. If anything fails on the way, everything that was pinned is taken away again; and if this process is
killed, the next one does that (pins.py). Where something is attached, it is handed over (handover.py). Run as
`python -m pipeline.kernel.loader attach|probe|matrix` with the request as JSON on standard input;
kernel/attaching.py does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Collection
from dataclasses import asdict, replace
from typing import Any

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.expression import Expression
from pipeline.kernel import bpf, likeness, pins, proc
from pipeline.kernel.attempt import Attempt
from pipeline.kernel.chooser import Chooser
from pipeline.kernel.handover import HandOver, sweep
from pipeline.kernel.layout import IDENTITY, OURS, TEST, Identity, start_ticks
from pipeline.kernel.manifest import PROC_FILE, Hook, Manifest, boot_id
from pipeline.privilege import no_link
from pipeline.redact import Redaction
from pipeline.schema import by_name
from pipeline.values import EVERY

__all__ = ["Loader", "main"]


class Loader(Chooser):
    """Attaches what this kernel allows."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._made = likeness.made_from(config)

    def attach(self, pipeline: Identity | None) -> Manifest:
        """Attach everything and pin it, or hand over what is attached; `pipeline` is the process whose own
        events are not reported (I8).
        """
        folder = self.config.pins
        with pins.alone(folder):
            before = Manifest.read(self.config.state)
            if before is None and pins.is_attached(folder):
                raise UserError(
                    f"probes are attached for another state folder (pins in {folder}): "
                    "name it with --state, or remove them with `promissory detach`"
                )
            return self._hand_over(before, pipeline) if before else self._begin(pipeline)

    def _begin(self, pipeline: Identity | None) -> Manifest:
        pins.clear(self.config.pins)  # what a loader left that was killed
        attempt, hooks = self.try_all(pipeline)
        kinds = self._working(hooks)
        processes = self._processes(attempt, kinds)
        manifest = Manifest(
            boot_id=boot_id(),
            attached=time.time_ns(),
            pins=str(self.config.pins),
            state=str(self.config.state.absolute()),
            rings=attempt.rings,
            entries=self.entries,
            kinds=kinds,
            hooks=hooks,
            processes=processes,
            generation=1,
            made=self._made,
            layout=likeness.laid_out(kinds),
            maps={name: digest for name, (_, digest) in attempt.compiled.memories().items()},
        )
        self._pin(attempt, manifest)
        return manifest

    def _hand_over(self, before: Manifest, pipeline: Identity | None) -> Manifest:
        """Put other programs into the place of those that are attached."""
        likeness.need_same(likeness.differing(before))
        sweep(before)
        self._keep(before)
        self._know(before, pipeline)
        attempt, hooks = self.try_all(pipeline)
        kinds, works = self._working(hooks), {hook.event for hook in hooks if hook.works}
        lost = [kind for kind in before.surfaces if kind in self.kinds and kind not in works]
        if gone := [kind for kind in lost if not self._goes(kind)]:
            answers = "; ".join(_answer(kind, hooks, self.config.surface) for kind in gone)
            raise UserError(f"{answers}; what is attached stays as it is")
        maps = {name: digest for name, (_, digest) in attempt.compiled.memories().items()}
        likeness.need_same(f"map {name}" for name in maps if before.maps.get(name, maps[name]) != maps[name])
        handing = HandOver(before, attempt, {kind: s for kind, s in attempt.choice.items() if kind in works})
        return handing.run(
            replace(
                before,
                rings={**attempt.rings, **before.rings},
                kinds=kinds,
                hooks=hooks,
                generation=before.generation + 1,
                made=self._made,
                layout={**before.layout, **likeness.laid_out(kinds)},
                maps={**before.maps, **maps},
                former={**before.former, **before.surfaces},
            )
        )

    def _keep(self, before: Manifest) -> None:
        """What a hand-over cannot change: each kind's surface, of which nobody could say when it changed for
        an event; the CPUs' rings.
        """
        self.held = {**before.former, **before.surfaces}
        for kind, surface in self.held.items():
            is_asked = kind in self.config.events or not self.is_needed(by_name()[kind])
            if kind in self.kinds and is_asked and not self.is_named(kind, surface):
                raise UserError(
                    f"{kind} comes from {surface}; for another surface: promissory detach, then attach"
                )
        self.cpus = [cpu for cpu in self.cpus if cpu in before.rings]
        ring = self.config.ring.model_copy(update={"size": before.rings[self.cpus[0]]})
        self.config = self.config.model_copy(update={"ring": ring})

    def _goes(self, kind: str) -> bool:
        """Whether nobody asks any more for a kind that is held at a surface which costs others."""
        held = by_name()[kind].surface(self.held.get(kind))
        return held is not None and self.is_dear(kind, held)

    def _know(self, before: Manifest, pipeline: Identity | None) -> None:
        """What this process causes is a self-test for what is attached, too."""
        identities = bpf.get(self.config.pins / "map_identities")
        ours = Identity(os.getpid(), start_ticks(os.getpid()))
        for process, flag in ((ours, TEST), (pipeline, OURS)):
            if process:
                known = bpf.lookup(identities, process.key, IDENTITY.size) or bytes(IDENTITY.size)
                exec_id, _, ended = IDENTITY.unpack(known)
                bpf.update(identities, process.key, IDENTITY.pack(exec_id, flag, ended))
        os.close(identities)

    def _working(self, hooks: Collection[Hook]) -> list[str]:
        """Kinds that are given. UserError: one that was asked for by its name is not among them."""
        # What keeps identities comes from anywhere, but is not given as what was asked for.
        working = {
            hook.event
            for hook in hooks
            if hook.works
            and (hook.event not in self.config.events or self.is_named(hook.event, hook.surface))
        }
        missing = [kind for kind in self.config.events if kind not in (EVERY, *working)]
        if missing:
            answers = "; ".join(_answer(kind, hooks, self.config.surface) for kind in missing)
            raise UserError(
                f"{answers}; leave it out of --events, or name another --surface; see `promissory check`"
            )
        return [kind for kind in self.kinds if kind in working]

    def _processes(self, attempt: Attempt, kinds: Collection[str]) -> int:
        """The first look at /proc, into a file of chunks; returns how many events."""
        path = self.config.state / PROC_FILE
        if "process" not in kinds:
            path.unlink(missing_ok=True)
            return 0
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        redaction = Redaction(
            self.config.environment.allow,
            self.config.redact.argv,
            environment=self.config.environment.enabled,
        )
        count, chunks = proc.look(
            attempt.compiled.map("identities"), now, now // 1000, self.config.caps.model_dump(), redaction
        )
        with open(path, "wb", opener=no_link) as file:
            file.write(chunks)
        return count

    def _pin(self, attempt: Attempt, manifest: Manifest) -> None:
        folder = self.config.pins
        assert attempt.generation
        mark = {pins.MARK: attempt.pinned[pins.MARK]}
        try:
            pins.put(pins.generation(folder, manifest.generation), attempt.generation.pins)
            pins.put(folder, {name: fd for name, fd in attempt.pinned.items() if name not in mark})
            manifest.write()
            pins.put(folder, mark)
        except BaseException:
            pins.clear(folder)
            raise


def _answer(kind: str, hooks: Collection[Hook], surface: str) -> str:
    """Why this host cannot give a kind of event."""
    tried = [
        f"{hook.surface} {hook.answer}"
        for hook in hooks
        if hook.event == kind and not hook.works and surface in ("auto", hook.surface)
    ]
    return f"this host cannot give {kind} ({', '.join(tried) or f'it has no surface {surface}'})"


def main() -> int:
    """Do what standard input asks for; the answer is JSON on standard output, an error one line on standard
    error.
    """
    request: dict[str, Any] = json.load(sys.stdin)
    try:
        config = Config.model_validate(request["config"])
        pipeline = Identity(**request["pipeline"]) if request.get("pipeline") else None
        if config.filter:  # the pipeline can look at it only later: Polars starts threads (privilege.py)
            Expression(config.filter)
        loader = Loader(config)
        if sys.argv[1] == "attach":
            print(json.dumps({"id": loader.attach(pipeline).id}))
        else:
            known = [Hook(**hook) for hook in request["known"]]
            hooks = loader.matrix(known) if sys.argv[1] == "matrix" else loader.try_all()[1]
            print(json.dumps([asdict(hook) for hook in hooks]))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.status
    except OSError as error:
        print(f"the kernel refused {error.filename or 'it'}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
