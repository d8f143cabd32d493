"""One run for all acts that need nothing special; each test does its act and waits for its events."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from pipeline.kernel.proc import Process, processes
from tests.live.host import need_kernel
from tests.live.memory import SURFACES, Memory
from tests.live.run import SLOWER, Live, eventually
from tests.live.sockets import SOCKETS, Sockets

NUMBERS = count()
WAYS = [("first", False), ("all", True)][: 1 if SLOWER > 1 else None]
"""To look at memory; to attach once more takes a minute in an emulated machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What was compared can be said when all else is done."""
    items.sort(key=lambda item: item.path.name == "test_compared.py")


@pytest.fixture(scope="session")
def ground() -> Iterator[Path]:
    """A folder that every user may enter."""
    need_kernel()
    folder = Path(tempfile.mkdtemp(prefix="promissory-live-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def acts(ground: Path) -> bytes:
    """Path of the program that does what Python cannot (acts.c)."""
    program = ground / "acts"
    source = Path(__file__).with_name("acts.c")
    flags = ["-O1", "-Wall", "-Werror", "-static", "-pthread"]
    subprocess.run(["gcc", *flags, source, "-o", program], check=True)
    return os.fsencode(program)


@pytest.fixture(scope="session")
def make_live(ground: Path) -> Iterator[Callable[..., Live]]:
    """Makes a state folder with pins of its own; in the end nothing of any is left."""
    made: list[Live] = []

    def make(**settings: str) -> Live:
        number = next(NUMBERS)
        live = Live(
            ground / f"state-{number}",
            Path(f"/sys/fs/bpf/promissory-test-{os.getpid()}-{number}"),
            {f"PROMISSORY_{key.upper()}": value for key, value in settings.items()},
        )
        made.append(live)
        return live

    yield make
    for live in made:
        live.clean()


@pytest.fixture(scope="session")
def headless(acts: bytes) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose leader ended before anything was attached, while another thread lives."""
    with subprocess.Popen([acts, b"headless", b"argument"], stdin=subprocess.PIPE) as process:
        eventually(lambda: ") Z" in Path(f"/proc/{process.pid}/stat").read_text(), "the leader to end")
        yield process


@pytest.fixture(scope="session")
def ended(acts: bytes) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ended before anything was attached; nobody has waited for it."""
    process = subprocess.Popen([acts])
    eventually(lambda: ") Z" in Path(f"/proc/{process.pid}/stat").read_text(), "the process to end")
    yield process
    process.wait()


@pytest.fixture(scope="session")
def before(headless: object, ended: object) -> frozenset[Process]:
    """The test's own look at /proc, before anything is attached."""
    return frozenset(processes())


@pytest.fixture(scope="session")
def live(before: frozenset[Process], make_live: Callable[..., Live]) -> Iterator[Live]:
    """The run that most tests share: every kind of event, default settings. Its books balance at its end."""
    live = make_live()
    live.start()
    yield live
    status = live.stop()
    assert status == 0, live.said()
    assert live.ledger()["balanced"], live.ledger()
    assert live.ledger()["in_flight"] == 0


@pytest.fixture(scope="module", params=["auto"] if SLOWER > 1 else ["auto", "sys_exit"])
def sockets(request: pytest.FixtureRequest, make_live: Callable[..., Live]) -> Iterator[Sockets]:
    """The shared run; and on the bare host one that looks at system calls' ends alone."""
    if request.param == "auto":
        yield Sockets(request.getfixturevalue("live"))
        return
    live = make_live(surface=request.param)
    live.start(events=",".join(("process", *SOCKETS)))
    yield Sockets(live)
    assert live.stop() == 0, live.said()
    assert live.ledger()["balanced"], live.ledger()


@pytest.fixture(scope="session", params=[way for _, way in WAYS], ids=[name for name, _ in WAYS])
def memory(request: pytest.FixtureRequest, make_live: Callable[..., Live], ground: Path) -> Iterator[Memory]:
    """The shared run, and one from another surface with `memory.all`; see tests/live/memory.py."""
    surface = SURFACES[request.param]
    if surface == "lsm":
        live = request.getfixturevalue("live")
        assert live.kinds["mmap"] == live.kinds["mprotect"] == surface
        yield Memory(live, surface, False, ground)
        return
    live = make_live(surface=surface, memory__all=str(request.param).lower())
    live.start(events="process,mmap,mprotect")
    yield Memory(live, surface, request.param, ground)
    assert live.stop() == 0, live.said()
    assert live.ledger()["balanced"], live.ledger()


@pytest.fixture
def folder(ground: Path) -> bytes:
    """A new folder with a short name."""
    path = ground / f"f{next(NUMBERS)}"
    path.mkdir()
    return os.fsencode(path)
