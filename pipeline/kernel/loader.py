"""The loader: a process of its own, as root, that attaches and goes (LLVM never lives in the pipeline).

    compile for this kernel → check against BTF → load → rings and counters → attach each event at its best
    surface → prove each by an act of our own → look at /proc → pin → manifest

What it pins outlives it. If anything fails on the way, everything that was pinned is taken away again. Run as
`python -m pipeline.kernel.loader attach|probe` with the request as JSON on standard input;
kernel/attachment.py does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from pipeline.chunk import MAX_RINGS
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.kernel import bpf, proc
from pipeline.kernel.compiler import Compiled
from pipeline.kernel.layout import (
    AREA_SIZE,
    BOOKS,
    IDENTITY,
    OURS,
    TEST,
    Identity,
    books_view,
    cgroup_known,
    cpus,
    settings,
    start_ticks,
    wanted,
)
from pipeline.kernel.manifest import PROC_FILE, Hook, Manifest, boot_id
from pipeline.redact import Redaction
from pipeline.schema import Schema, Surface, by_name

__all__ = ["Loader", "main"]

LOG: Final = "loader.log"
MAPS: Final = ("books", "settings", "identities", "uids", "cgroups", "calls")
PIPELINE_ONLY: Final = 0o700


class Loader:
    """One attachment in the making."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.kinds = wanted(config)
        self.cpus = cpus("present")
        self.entries = max(cpus("possible")) + 1
        if self.entries >= MAX_RINGS:
            raise UserError(
                f"this host has CPU {self.entries - 1}; promissory knows CPUs up to {MAX_RINGS - 2}"
            )
        if config.kernel.cgroups and not cgroup_known():
            raise UserError(
                "kernel.cgroups needs version-2 cgroups, this host has version 1; use kernel.uids, --filter"
            )
        processes = min(int(Path("/proc/sys/kernel/pid_max").read_text()), 1 << 20)
        self.compiled = Compiled(
            rings=self.entries,
            processes=processes,
            arguments=config.caps.argv + config.caps.environment,
            log=config.state / LOG,
            optional={"exec_failed"} & set(self.kinds),
        )
        self.pinned: dict[str, int] = {}
        self.rings: dict[int, int] = {}

    def attach(self, pipeline: Identity | None) -> Manifest:
        """Attach everything and pin it; `pipeline` is the process whose own events are not reported (I8)."""
        self.prepare()
        self._know_ourselves(pipeline)
        hooks = self.hooks()
        missing = [kind for kind in self.kinds if not any(h.event == kind and h.works for h in hooks)]
        if missing:
            answers = "; ".join(_answer(kind, hooks, self.config.surface) for kind in missing)
            raise UserError(
                f"{answers}; leave it out of --events, or name another --surface; see `promissory check`"
            )
        count = self._processes()
        manifest = Manifest(
            boot_id=boot_id(),
            attached=time.time_ns(),
            pins=str(self.config.pins),
            state=str(self.config.state.absolute()),
            rings=self.rings,
            entries=self.entries,
            kinds=self.kinds,
            hooks=hooks,
            processes=count,
        )
        self._pin()
        manifest.write()
        return manifest

    def prepare(self) -> None:
        """Rings, counters and settings, before anything is attached."""
        memory = bpf.map_memory(self.compiled.map("books"), self.entries * BOOKS.itemsize)
        books = books_view(memory, self.entries)
        first = (
            time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
        )  # ids never repeat within a boot (chunk.py)
        for name in ("sequence", "start", "hidden"):
            books[name] = first
        for cpu in self.cpus:
            ring = bpf.create_ring(self.config.ring.size, f"ring_{cpu}")
            bpf.update(self.compiled.map("rings"), cpu.to_bytes(4, "little"), ring.to_bytes(4, "little"))
            self.pinned[f"ring_{cpu}"] = ring
            self.rings[cpu] = self.config.ring.size
        self.books = books
        self.pinned["map_checkpoint"] = bpf.create_array(AREA_SIZE, 1, "checkpoint")
        for name in MAPS:
            self.pinned[f"map_{name}"] = self.compiled.map(name)
        bpf.update(self.compiled.map("settings"), bytes(4), settings(self.config, self.kinds))
        for uid in self.config.kernel.uids:
            bpf.update(self.compiled.map("uids"), uid.to_bytes(4, "little"), b"\1")
        for cgroup in self.config.kernel.cgroups:
            bpf.update(self.compiled.map("cgroups"), cgroup.to_bytes(8, "little"), b"\1")

    def hooks(self) -> list[Hook]:
        """Attach each kind at the first of its surfaces that works, and say what came of each that was tried.

        Kinds that nobody asked for are attached too, where that costs nothing: they keep identities and exec
        ids true.
        """
        tried: list[Hook] = []
        # Exit first: what takes identities away must be there before what gives them. And loading takes far
        # longer than attaching: done before, little happens between the first hook and the last.
        schemas = list(reversed(by_name().values()))
        for schema in schemas:
            for surface in schema.surfaces:
                if surface.program and not self._skipped(schema.name, surface):
                    with contextlib.suppress(OSError):  # the walk below meets it again
                        self.compiled.load(surface.program)
        for schema in schemas:
            for surface in schema.surfaces:
                if self._skipped(schema.name, surface):
                    continue
                hook = self._try(schema, surface)
                tried.append(hook)
                if hook.works:
                    break
        return self._proven(tried[::-1])

    def _skipped(self, kind: str, surface: Surface) -> bool:
        only = self.config.surface
        return (only not in ("auto", surface.name) and surface.name != "proc") or bool(
            surface.cost and kind not in self.kinds
        )

    def _try(self, schema: Schema, surface: Surface) -> Hook:
        works, answer = True, "attached"
        if surface.name == "proc":
            answer = "read once, when attached"
        else:
            try:
                for name, fd in self.compiled.load(surface.program).items():
                    self.pinned[f"program_{name}"] = fd
                link = self.compiled.attach(surface.program, surface.hook)
                self.pinned[f"link_{surface.program}"] = link
            except OSError as error:
                works, answer = False, f"refused: {error.strerror}"
        return Hook(schema.name, surface.name, surface.hook, surface.program, works, answer, surface.cost)

    def _proven(self, tried: list[Hook]) -> list[Hook]:
        """Do something harmless and see which hooks noticed: that a program is attached does not mean that it
        runs.
        """
        before = self._seen()
        subprocess.run(["true"], check=False, env={"PATH": "/usr/bin:/bin"})
        with_nothing = "/nonexistent/promissory-self-test"
        pid = os.fork()
        if pid == 0:
            try:
                os.execv(with_nothing, [with_nothing])
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        after = self._seen()
        hooks = []
        for hook in tried:
            number = by_name()[hook.event].number
            if hook.works and hook.surface != "proc":
                proven = after[number] > before[number]
                answer = "proven: our own act came through" if proven else "attached, and never runs"
                hook = Hook(**{**asdict(hook), "works": bool(proven), "answer": answer})
            hooks.append(hook)
        return hooks

    def _seen(self) -> Any:
        return self.books["kinds"]["filtered_test"].sum(axis=0)

    def _know_ourselves(self, pipeline: Identity | None) -> None:
        """What this process causes is a self-test, what the pipeline causes its own: neither is reported."""
        identities = self.compiled.map("identities")
        ours = Identity(os.getpid(), start_ticks(os.getpid()))
        bpf.update(identities, ours.key, IDENTITY.pack(0, TEST, 0))
        if pipeline:
            bpf.update(identities, pipeline.key, IDENTITY.pack(0, OURS, 0))

    def _processes(self) -> int:
        """The first look at /proc, into a file of chunks; returns how many events."""
        path = self.config.state / PROC_FILE
        if "process" not in self.kinds:
            path.write_bytes(b"")
            return 0
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        redaction = Redaction(
            self.config.environment.allow,
            self.config.redact.argv,
            environment=self.config.environment.enabled,
        )
        count, chunks = proc.look(
            self.compiled.map("identities"), now, now // 1000, self.config.caps.model_dump(), redaction
        )
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(chunks)
        return count

    def _pin(self) -> None:
        folder = self.config.pins
        folder.mkdir(parents=True)
        folder.chmod(PIPELINE_ONLY)
        try:
            for name, fd in self.pinned.items():
                bpf.pin(fd, folder / name)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _answer(kind: str, hooks: list[Hook], surface: str) -> str:
    """Why this host cannot give a kind of event."""
    tried = [f"{hook.surface} {hook.answer}" for hook in hooks if hook.event == kind]
    return f"this host cannot give {kind} ({', '.join(tried) or f'it has no surface {surface}'})"


def main() -> int:
    """Do what standard input asks for; the answer is JSON on standard output, an error one line on standard
    error.
    """
    request: dict[str, Any] = json.load(sys.stdin)
    try:
        config = Config.model_validate(request["config"])
        pipeline = Identity(**request["pipeline"]) if request.get("pipeline") else None
        loader = Loader(config)
        if sys.argv[1] == "probe":
            loader.prepare()
            loader._know_ourselves(None)
            print(json.dumps([asdict(hook) for hook in loader.hooks()]))
        else:
            print(json.dumps({"id": loader.attach(pipeline).id}))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"the kernel refused {error.filename or 'it'}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
