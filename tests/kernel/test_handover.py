"""Hand-overs: slots exchanged while their hooks run, and loaders that are killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.configure import load
from pipeline.kernel import attaching, bpf, handover, loader, manifest, pins
from pipeline.kernel.attempt import Attempt
from pipeline.kernel.generation import Generation, name_of
from pipeline.kernel.handover import HandOver, sweep
from pipeline.kernel.layout import BOOKS, OWN_ROWS, books_view, cpus
from pipeline.kernel.loader import Loader
from pipeline.kernel.manifest import Manifest
from pipeline.schema import by_name
from tests.live.host import need_kernel

pytestmark = pytest.mark.kernel

SPINE = ("exec", "fork", "exit")
KILLS = int(os.environ.get("TESTS_KILLS", "14"))
"""Instants at which a loader is killed: all, with a great number."""
SWAPS = 200


def storm(count: int) -> subprocess.Popen[bytes]:
    """Processes one after the other: each forks, executes, exits."""
    return subprocess.Popen(["sh", "-c", f"for n in $(seq {count}); do /bin/true; done"])


def seen(books: Any) -> list[int]:
    """Own events that hooks saw, per kind of SPINE; and events or parts that met an empty slot."""
    kinds = books["kinds"]
    found = [int(kinds["filtered_test"].sum(axis=0)[by_name()[kind].number]) for kind in SPINE]
    return [*found, int(kinds["lost_call"].sum()) + int(books["cut_calls"].sum())]


def test_each_run_of_a_hook_meets_one_generation(tmp_path: Path) -> None:
    need_kernel()
    choice = {name: surface for name in SPINE if (surface := by_name()[name].surface("tracepoint"))}
    config = load({"state": tmp_path, "pins": tmp_path / "pins"}, environ={})
    attempt = Attempt(config, cpus("present"), max(cpus("possible")) + 1, choice)
    attempt.tap(SPINE, None)
    assert attempt.generation
    generations = [attempt.generation, Generation(attempt.compiled, choice)]
    before = seen(attempt._books)
    running = storm(600)
    for number in range(SWAPS):
        for place, program in generations[number % 2].programs.items():
            slot = attempt.pinned[f"slot_{name_of(place)}"]
            bpf.update(slot, bytes(4), program.to_bytes(4, "little"))
    assert running.poll() is None, "the storm went on all the while"
    assert running.wait() == 0
    found = [new - old for old, new in zip(before, seen(attempt._books), strict=True)]
    generations[1].close()
    attempt.close()
    # The shell itself is forked and executed once, and its $(seq) too.
    assert found == [602, 602, 602, 0]


# ---- killed at every step


def test_a_first_loader_that_is_killed_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either all is attached, and the manifest says so, or nothing is; what is left goes with a detach."""
    need_kernel()
    folder = Path(f"/sys/fs/bpf/promissory-first-{os.getpid()}")
    config = load({"state": tmp_path, "pins": folder, "events": "exec,exit"}, environ={})
    found: list[tuple[Attempt, Manifest]] = []
    monkeypatch.setattr(Loader, "_pin", lambda _, *made: found.append(made))
    Loader(config).attach(None)
    monkeypatch.undo()
    ((attempt, made),) = found
    assert attempt.generation

    def work() -> None:
        with pins.alone(folder):
            Loader._pin(first, attempt, made)

    first = Loader(config)
    status, lines = killed(work, sys.maxsize)
    assert status == 0
    assert Manifest.read(tmp_path) == made
    step = max(1, lines // KILLS)
    for line in range(1, lines, step):
        attaching.detach(config)
        assert not folder.exists()
        assert killed(work, line)[0] == -signal.SIGKILL
        assert pins.is_attached(folder) == (Manifest.read(tmp_path) is not None)
    attaching.detach(config)
    assert not folder.exists()
    attempt.close()


class Attached:
    """What a loader attached to stay, and two hand-overs of it, prepared: one adds hooks, one takes them
    away.
    """

    def __init__(self, state: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._state = folder, state
        attaching.attach(self._config("exec,exit"))
        self._prepared = [self._prepare(events, monkeypatch) for events in ("exec,exit,cgroup", "exec,exit")]
        entries = (self.manifest.entries + OWN_ROWS) * BOOKS.itemsize
        self.books = books_view(bpf.map_memory(bpf.get(folder / "map_books"), entries), self.manifest.entries)

    @property
    def manifest(self) -> Manifest:
        found = Manifest.read(self._state)
        assert found
        return found

    def _config(self, events: str) -> Config:
        return load({"state": self._state, "pins": self.folder, "events": events}, environ={})

    def _prepare(self, events: str, monkeypatch: pytest.MonkeyPatch) -> tuple[HandOver, Manifest]:
        """As the loader does it, up to the moment when something changes."""
        found: list[tuple[HandOver, Manifest]] = []

        def stop(handing: HandOver, manifest: Manifest) -> Manifest:
            found.append((handing, manifest))
            return manifest

        with monkeypatch.context() as patch:
            patch.setattr(HandOver, "run", stop)
            Loader(self._config(events)).attach(None)
        return found[0]

    def hand_over(self, way: int, killed_at: int = sys.maxsize) -> tuple[int, int]:
        """Do it in a process of its own that is killed in front of this line; its status, and how many lines
        it ran.
        """
        handing, wanted = self._prepared[way]
        before = self.manifest

        def work() -> None:
            sweep(before)
            handing.run(replace(wanted, generation=before.generation + 1))

        return killed(work, killed_at)


def killed(work: Callable[[], object], at: int) -> tuple[int, int]:
    """Work in a process of its own, killed in front of a line; its status, and how many lines it ran."""
    ran, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        lines = Lines(at)
        sys.settrace(lines)
        work()
        sys.settrace(None)
        os.write(told, str(lines.count).encode())
        os._exit(0)
    os.close(told)
    _, status = os.waitpid(pid, 0)
    with open(ran) as pipe:
        return os.waitstatus_to_exitcode(status), int(pipe.read() or 0)


class Lines:
    """Counts lines of the modules that change what is pinned, and ends the process in front of one."""

    FILES = tuple(map(str, (handover.__file__, loader.__file__, pins.__file__, manifest.__file__)))

    def __init__(self, last: int) -> None:
        self.count, self._last = 0, last

    def __call__(self, frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if frame.f_code.co_filename not in self.FILES:
            return None
        if event == "line":
            self.count += 1
            if self.count == self._last:
                os.kill(os.getpid(), signal.SIGKILL)
        return self


@pytest.fixture
def attached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attached]:
    need_kernel()
    folder = Path(f"/sys/fs/bpf/promissory-handover-{os.getpid()}")
    yield Attached(tmp_path, folder, monkeypatch)
    attaching.detach(load({"state": tmp_path, "pins": folder}, environ={}))
    assert not folder.exists()


def check(attached: Attached) -> None:
    """What is attached sees each event once, and nothing meets an empty slot."""
    before = seen(attached.books)
    assert storm(5).wait() == 0
    found = [new - old for old, new in zip(before, seen(attached.books), strict=True)]
    assert found == [7, 7, 7, 0]


def whole(attached: Attached) -> None:
    """Of each hook an entry, a slot and a link; of generations one."""
    known, names = attached.manifest, {path.name for path in attached.folder.iterdir()}
    kept = {name.partition("_")[2] for name in names if name.startswith("link_")}
    for what in ("entry_", "slot_"):
        assert {name.partition("_")[2] for name in names if name.startswith(what)} == kept
    assert pins.generations(attached.folder) == {known.generation}
    surfaces = [by_name()[hook.event].surface(hook.surface) for hook in known.hooks if hook.works]
    assert len(kept) == sum(len(surface.hooks) for surface in surfaces if surface)


def test_a_loader_that_is_killed_anywhere(attached: Attached) -> None:
    for way in (0, 1):
        status, lines = attached.hand_over(way)
        assert status == 0
        whole(attached)
        attached.hand_over(1 - way)
        step = max(1, 2 * lines // KILLS)
        for line in range(step // 2 + 1, lines, step):
            assert attached.hand_over(way, line)[0] == -signal.SIGKILL
            check(attached)  # between two generations
            status, _ = attached.hand_over(1 - way)
            assert status == 0
            whole(attached)
        check(attached)
