"""The loader: what the kernel answers to a hook, one choice of surfaces tried, and the choice itself."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.configure import load
from pipeline.errors import UserError
from pipeline.kernel import acts, attempt, bpf, btf, chooser, compiler, generation, source
from pipeline.kernel.attempt import Attempt
from pipeline.kernel.layout import OWN_ROWS, Identity, cpus, start_ticks
from pipeline.kernel.loader import Loader
from pipeline.kernel.manifest import Hook
from pipeline.kernel.source import Choice
from pipeline.schema import Schema, Surface, by_name
from tests.live.host import need_kernel

kernel = pytest.mark.kernel
SPINE = {name: by_name()[name].surface("tracepoint") for name in ("exec", "fork", "exit")}


def config(folder: Path, **flags: object) -> Config:
    return load({"state": folder, "pins": folder / "pins", **flags}, environ={})


# ---- the kernel's answer to one hook


@kernel
@pytest.mark.parametrize(
    ("hook", "answer"),
    [
        ("raw_tp/sched_process_exec", ""),
        ("raw_tp/no_such_thing", "this kernel has no such tracepoint"),
        ("fexit/no_such_thing", "this kernel has no such function"),
        ("fentry/no_such_thing", "this kernel has no such function"),
        ("lsm/no_such_thing", "this kernel has no such hook"),
        ("sys_exit/execve", ""),
    ],
)
def test_what_this_kernel_says_to_a_hook(tmp_path: Path, hook: str, answer: str) -> None:
    need_kernel()
    assert compiler.refusal(hook, tmp_path / "log") == answer


@kernel
@pytest.mark.parametrize("hook", ["lsm/bprm_creds_for_exec", "fexit/vm_mmap_pgoff"])
def test_a_hook_of_this_kernel_is_allowed_or_refused_in_its_words(tmp_path: Path, hook: str) -> None:
    need_kernel()
    answer = compiler.refusal(hook, tmp_path / "log")
    assert not answer or answer.startswith("refused: ")


@kernel
def test_signatures_of_hooks() -> None:
    need_kernel()
    calls = {compiler.signature(f"fexit/__x64_sys_{name}") for name in ("setns", "unshare")}
    assert len(calls) == 1
    assert not {0, compiler.signature("fexit/kernel_clone")} & calls
    assert compiler.signature("raw_tp/sched_process_exec") == compiler.signature("sys_exit/execve") == 0
    assert compiler.signature("fexit/no_such_thing") == 0


# ---- one choice, tried


@pytest.fixture
def tried(tmp_path: Path) -> Iterator[Attempt]:
    need_kernel()
    made = attempt_at(tmp_path, {name: surface for name, surface in SPINE.items() if surface})
    yield made
    made.close()


def attempt_at(folder: Path, choice: Choice) -> Attempt:
    return Attempt(config(folder), cpus("present"), max(cpus("possible")) + 1, choice)


@kernel
def test_everything_of_a_choice_is_proven_and_to_be_pinned(tried: Attempt) -> None:
    hooks = tried.tap(["exec", "fork", "exit"], None)
    assert [(h.event, h.surface, h.works) for h in hooks] == [(name, "tracepoint", True) for name in SPINE]
    assert {h.answer for h in hooks} == {"proven: our own act came through"}
    assert tried.generation
    programs = tried.generation.pins.keys()
    for hook in hooks:
        for pin in hook.hooks.values():
            assert {
                pin.replace("entry", what, 1) for what in ("slot", "entry", "link")
            } <= tried.pinned.keys()
            assert pin.replace("entry", "program", 1) in programs
    assert {f"program_exec-{part}-0" for part in by_name()["exec"].surfaces[-1].parts} <= programs
    assert {f"ring_{cpu}" for cpu in cpus("present")} == {p for p in tried.pinned if p.startswith("ring_")}
    assert {"map_books", "map_rings", "map_identities", "map_checkpoint"} <= tried.pinned.keys()
    assert "map_settings" in programs


@kernel
def test_what_is_dropped_and_closed_is_detached(tried: Attempt) -> None:
    hooks = tried.tap([], None)
    tried.drop([hook for hook in hooks if hook.event == "exec"])
    assert tried.generation
    kept = [*tried.pinned, *tried.generation.pins]
    assert not [pin for pin in kept if "_exec-" in pin]
    links = [fd for pin, fd in tried.pinned.items() if pin.startswith("link_")]
    assert len(links) == 2
    tried.close()
    assert not tried.pinned
    for fd in links:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[Attempt]:
    """Kinds that share the program at a socket's change of state."""
    need_kernel()
    found = {name: by_name()[name].surface("tracepoint") for name in ("listen", "connect", "connect_done")}
    made = attempt_at(tmp_path, {name: surface for name, surface in {**SPINE, **found}.items() if surface})
    yield made
    made.close()


def links(attempt: Attempt) -> list[str]:
    return sorted(pin for pin in attempt.pinned if pin.startswith("link_"))


@kernel
def test_a_shared_program_stays_until_its_last_kind_goes(sockets: Attempt) -> None:
    hooks = {hook.event: hook for hook in sockets.tap([], None)}
    assert all(hook.works for hook in hooks.values())
    link = "link_sock_state-raw_tp-inet_sock_set_state"
    assert [pin for pin in links(sockets) if "sock" in pin] == [link]
    sockets.drop([hooks["connect"], hooks["connect_done"]])
    assert link in links(sockets)
    sockets.drop([hooks["listen"]])
    assert len(links(sockets)) == len(SPINE)
    assert not [pin for pin in sockets.pinned if "sock" in pin]
    assert sockets.generation
    assert not [pin for pin in sockets.generation.pins if "sock" in pin]


@kernel
def test_a_shared_program_that_is_refused_is_refused_for_all(
    sockets: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sockets.compiled._checked, "on_sock_state", b"\x95" + bytes(7))
    found = {hook.event: hook.answer for hook in sockets.tap([], None) if not hook.works}
    assert found == dict.fromkeys(("listen", "connect", "connect_done"), "refused: Permission denied")
    assert len(links(sockets)) == len(SPINE)


@kernel
def test_a_hook_whose_act_does_not_come_through(tried: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(acts.ACTS, "exec", lambda: None)
    monkeypatch.delitem(acts.ACTS, "fork")
    answers = {hook.event: (hook.works, hook.answer) for hook in tried.tap([], None)}
    assert answers == {
        "exec": (False, "attached, and never runs"),
        "fork": (True, "attached, unproven"),
        "exit": (True, "proven: our own act came through"),
    }


@kernel
def test_whose_events_are_not_reported(tried: Attempt) -> None:
    other = Identity(4_000_000, 17)
    tried.tap([], other)
    identities = tried.pinned["map_identities"]
    assert bpf.lookup(identities, other.key, 24) == bytes([0] * 8 + [1] + [0] * 15)


@kernel
def test_a_program_that_the_verifier_refuses(tried: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tried.compiled._checked, "on_exit", b"\x95" + bytes(7))  # no value to return
    (refused,) = [hook for hook in tried.tap([], None) if not hook.works]
    assert (refused.event, refused.answer) == ("exit", "refused: Permission denied")


@kernel
def test_hooks_of_another_signature_have_a_table_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same programs behind both; an event comes through the second one."""
    need_kernel()
    failed = by_name()["exec_failed"].surface("sys_exit")
    assert failed
    monkeypatch.setattr(generation, "signature", len)
    choice = {name: surface for name, surface in SPINE.items() if surface}
    made = attempt_at(tmp_path, {**choice, "exec_failed": failed})
    try:
        assert {hook.answer for hook in made.tap(["exec_failed"], None)} == {
            "proven: our own act came through"
        }
        assert made.generation
        assert {f"program_exec_failed-{part}-1" for part in failed.parts} <= made.generation.pins.keys()
        before = copy.deepcopy(made._books)
        fail_by_execveat(made.pinned["map_identities"])
        attempted = [books["kinds"]["attempted"].sum(axis=0) for books in (before, made._books)]
        assert (attempted[1] - attempted[0])[by_name()["exec_failed"].number] == 1
        assert made._books["sequence"].sum() - before["sequence"].sum() >= 2, "head and data"
        assert made._books["cut_calls"].sum() == before["cut_calls"].sum()
    finally:
        made.close()


def fail_by_execveat(identities: int) -> None:
    """In a child that nobody takes for the loader's."""
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(ready, 1)
        fd = os.open("/etc/passwd", os.O_RDONLY)
        with contextlib.suppress(OSError):
            os.execve(fd, ["x" * 1000], {})
        os._exit(0)
    assert bpf.delete(identities, Identity(pid, start_ticks(pid)).key)
    os.write(go, b"x")
    os.waitpid(pid, 0)
    os.close(ready)
    os.close(go)


class Seen:
    """A source that saw what it is told."""

    def __init__(self, *kinds: str) -> None:
        self.kinds, self.open = kinds, True

    def seen(self) -> Collection[str]:
        return self.kinds

    def close(self) -> None:
        self.open = False


@kernel
def test_sources_of_our_own_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_kernel()

    def refuse() -> Seen:
        raise PermissionError(13, "no audit here")

    reader = Seen("comm")
    monkeypatch.setattr(attempt, "SOURCES", {"perf": lambda: reader, "audit": refuse})
    for kind in ("comm", "cgroup"):
        monkeypatch.setitem(acts.ACTS, kind, lambda: None)
    made = attempt_at(
        tmp_path,
        {
            **{name: surface for name, surface in SPINE.items() if surface},
            "comm": Surface("perf"),
            "cgroup": Surface("perf"),
            "audit": Surface("audit"),
            "ksymbol": Surface("another"),
        },
    )
    answers = {hook.event: (hook.works, hook.answer) for hook in made.tap([], None)}
    made.close()
    assert not reader.open
    assert (
        answers.items()
        >= {
            "comm": (True, "proven: our own act came through"),
            "cgroup": (False, "attached, and never runs"),
            "audit": (False, "refused: no audit here"),
            "ksymbol": (False, "this version has no such source"),
        }.items()
    )


# ---- the choice


class Stub:
    """An attempt where only what is named fails; takes note of what was tried."""

    tried: list[dict[str, str]]
    fails: frozenset[tuple[str, str]]

    def __init__(self, config: Config, cpus: Collection[int], entries: int, choice: Choice) -> None:
        assert entries + OWN_ROWS < 1024
        self.choice = choice
        self.tried.append({name: surface.name for name, surface in choice.items()})

    def tap(self, kinds: Collection[str], pipeline: Identity | None) -> list[Hook]:
        return [
            Hook(name, s.name, s.hooks, (name, s.name) not in self.fails, "an answer", s.cost)
            for name, s in self.choice.items()
        ]

    def drop(self, failed: Collection[Hook]) -> None:
        self.dropped = [hook.event for hook in failed]

    def close(self) -> None:
        self.closed = True


def surface(name: str, cost: str = "") -> Surface:
    return Surface(name, {f"raw_tp/{name}": "program"}, cost=cost)


KINDS = {
    schema.name: schema
    for schema in (
        Schema("one", "", (), number=1, always=True, surfaces=(surface("lsm"), surface("tracepoint"))),
        Schema("two", "", (), number=2, surfaces=(surface("fexit"), surface("sys_exit", "dear"))),
        Schema("three", "", (), number=3, surfaces=(surface("sys_exit", "dear"),)),
    )
}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Stub]:
    """Three kinds of our own, on a kernel of our own."""
    stub = type("Host", (Stub,), {"tried": [], "fails": frozenset()})
    monkeypatch.setattr(chooser, "Attempt", stub)
    monkeypatch.setattr(chooser, "by_name", lambda: KINDS)
    monkeypatch.setattr(source, "lacking", lambda *_: dict(missing))
    monkeypatch.setattr(btf, "running", lambda: None)
    monkeypatch.setattr(compiler, "refusal", lambda hook, log: refused.get(hook, ""))
    refused.clear()
    missing.clear()
    return stub


refused: dict[str, str] = {}
"""Hook → what the kernel of the test says to it."""
missing: dict[str, str] = {}
"""Kind → the field that its chosen surface reads and that kernel lacks."""


def looking(folder: Path, *kinds: str, surface: str = "auto") -> Loader:
    """A loader that is asked for these kinds by name; or for whatever costs nothing."""
    found = Loader(config(folder, surface=surface))
    object.__setattr__(found.config, "events", kinds)
    found.kinds = list(kinds) or ["one", "two"]
    return found


def answers(hooks: list[Hook]) -> list[tuple[str, str, bool, str]]:
    return [(hook.event, hook.surface, hook.works, hook.answer) for hook in hooks]


def test_each_kind_comes_from_its_first_surface(host: type[Stub], tmp_path: Path) -> None:
    _, hooks = looking(tmp_path).try_all()
    assert host.tried == [{"one": "lsm", "two": "fexit"}]
    assert all(hook.works for hook in hooks)


def test_what_the_kernel_refuses_is_not_compiled(host: type[Stub], tmp_path: Path) -> None:
    refused["raw_tp/lsm"] = "no"
    _, hooks = looking(tmp_path).try_all()
    assert host.tried == [{"one": "tracepoint", "two": "fexit"}]
    assert answers(hooks) == [
        ("one", "lsm", False, "raw_tp/lsm: no"),
        ("one", "tracepoint", True, "an answer"),
        ("two", "fexit", True, "an answer"),
    ]


def test_a_hook_that_a_kernel_may_lack_is_left_out(
    host: type[Stub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = {"raw_tp/lsm": "program", "fexit/compat": "program"}
    either = Surface("lsm", hooks, {"fentry/compat": "other"}, optional=("fexit/compat", "fentry/compat"))
    kinds = {"one": replace(KINDS["one"], surfaces=(either,))}
    monkeypatch.setattr(chooser, "by_name", lambda: kinds)
    config = looking(tmp_path, "one")
    refused["fexit/compat"] = refused["fentry/compat"] = "no such function"
    _, (hook,) = config.try_all()
    assert (hook.works, list(hook.hooks)) == (True, ["raw_tp/lsm"])
    refused["raw_tp/lsm"] = "no"
    assert not looking(tmp_path, "one").try_all()[1][0].works


def test_what_does_not_run_makes_room_for_the_next(host: type[Stub], tmp_path: Path) -> None:
    host.fails = frozenset({("one", "lsm"), ("two", "fexit")})
    last, hooks = looking(tmp_path).try_all()
    assert host.tried == [{"one": "lsm", "two": "fexit"}, {"one": "tracepoint"}]
    assert [hook.works for hook in hooks] == [False, True, False]
    assert not hasattr(last, "closed")


def test_a_price_is_paid_only_by_who_asks(host: type[Stub], tmp_path: Path) -> None:
    refused["raw_tp/fexit"] = "no"
    looking(tmp_path).try_all()
    looking(tmp_path, "two", "three").try_all()
    looking(tmp_path, "three").try_all()
    assert host.tried == [
        {"one": "lsm"},
        {"one": "lsm", "two": "sys_exit", "three": "sys_exit"},
        {"one": "lsm", "three": "sys_exit"},
    ]


def test_one_surface_for_all(host: type[Stub], tmp_path: Path) -> None:
    looking(tmp_path, "one", surface="tracepoint").try_all()
    looking(tmp_path, "two", surface="tracepoint").try_all()
    assert host.tried == [{"one": "tracepoint"}, {"one": "lsm"}]


def test_a_kind_brings_what_it_needs_from_whichever_surface(
    host: type[Stub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    four = Schema("four", "", (), number=4, needs="two", surfaces=(surface("tracepoint"),))
    monkeypatch.setattr(chooser, "by_name", lambda: {**KINDS, "four": four})
    looking(tmp_path, "four").try_all()
    looking(tmp_path, "two", "four", surface="sys_exit").try_all()
    assert host.tried == [
        {"one": "lsm", "two": "fexit", "four": "tracepoint"},
        {"one": "lsm", "two": "sys_exit", "four": "tracepoint"},
    ]


def test_who_asks_for_what_cannot_be_had_is_told(host: type[Stub], tmp_path: Path) -> None:
    refused.update({"raw_tp/fexit": "no", "raw_tp/sys_exit": "never"})
    said = r"cannot give two \(fexit raw_tp/fexit: no, sys_exit raw_tp/sys_exit: never\); leave it out"
    with pytest.raises(UserError, match=said):
        looking(tmp_path, "two").attach(None)


def test_what_keeps_identities_is_there_and_yet_not_given(host: type[Stub], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot give one \(it has no surface audit\)"):
        looking(tmp_path, "one", surface="audit").attach(None)
    assert host.tried == [{"one": "lsm"}]
    refused["raw_tp/tracepoint"] = "no"
    with pytest.raises(UserError, match=r"cannot give one \(tracepoint raw_tp/tracepoint: no\)"):
        looking(tmp_path, "one", surface="tracepoint").attach(None)
    assert host.tried[1:] == [{"one": "lsm"}]


def test_the_matrix_tries_every_surface(host: type[Stub], tmp_path: Path) -> None:
    refused["raw_tp/fexit"] = "no"
    found = looking(tmp_path, "all").matrix()
    assert answers(found) == [
        ("one", "lsm", True, "an answer"),
        ("one", "tracepoint", True, "an answer"),
        ("two", "fexit", False, "raw_tp/fexit: no"),
        ("two", "sys_exit", True, "an answer"),
        ("three", "sys_exit", True, "an answer"),
    ]
    # By what keeps identities a process is known as ours: it moves when nothing else is tried.
    assert host.tried == [{"one": "lsm", "two": "sys_exit", "three": "sys_exit"}, {"one": "tracepoint"}]


def test_what_is_attached_is_not_tried_again(host: type[Stub], tmp_path: Path) -> None:
    attached = [Hook("one", "lsm", {}, True, "attached"), Hook("two", "fexit", {}, True, "attached")]
    found = looking(tmp_path, "all").matrix([*attached, Hook("three", "sys_exit", {}, False, "not then")])
    assert [answer for *_, answer in answers(found)] == [
        *("attached", "an answer", "attached", "an answer", "an answer")
    ]
    assert host.tried == [
        {"one": "lsm", "three": "sys_exit"},
        {"one": "lsm", "two": "sys_exit"},
        {"one": "tracepoint"},
    ]


@kernel
def test_the_matrix_of_this_kernel(tmp_path: Path) -> None:
    need_kernel()
    found = {(hook.event, hook.surface): hook for hook in Loader(config(tmp_path, events="all")).matrix()}
    assert found.keys() == {(name, s.name) for name, kind in by_name().items() for s in kind.surfaces}
    assert found["exec", "tracepoint"].answer == "proven: our own act came through"
    assert all(hook.answer for hook in found.values())


def test_a_surface_that_reads_what_the_kernel_lacks_gives_way(
    host: type[Stub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(_: object, choice: Choice) -> dict[str, str]:
        return {"one": "no such field"} if choice["one"].name == "lsm" else {}

    monkeypatch.setattr(source, "lacking", lacking)
    _, hooks = looking(tmp_path).try_all()
    assert answers(hooks)[:2] == [
        ("one", "lsm", False, "no such field"),
        ("one", "tracepoint", True, "an answer"),
    ]
