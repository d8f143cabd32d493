"""The live view: what it shows, what it counts as skipped, and that it waits for nobody."""

import io
import threading
from typing import Any

import msgpack
import numpy as np
import pytest
import trio
import trio.testing
from rich.console import Console

from pipeline.console import SHOWN, View
from pipeline.event import Encoded, Passage, Records
from pipeline.ledger import zeros


def batch(first: int, number: int, step: int = 1) -> Encoded:
    """Exits of pids, each at a time that is its pid in ms."""
    values = []
    pids = range(first, first + step * number, step)
    for pid in pids:
        process = {"pid": pid, "uid": 0, "user": "root", "comm": "sh"}
        own = {"code": 0, "signal": 0, "core": False}
        values.append(msgpack.packb({"kind": "exit", "time": pid * 1_000_000, "process": process, **own}))
    records = Records([b"key"] * number, values, list(pids))
    return Encoded({"process": records}, zeros() + np.int64(0), Passage(1, {}))


def pids(shown: str) -> list[int]:
    return [int(line.split()[2]) for line in shown.splitlines() if " exit " in line]


async def painted(*batches: Encoded, console: Console | None = None) -> str:
    file = io.StringIO()
    view = View(console or Console(file=file, width=100))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(view.run)
        for one in batches:
            view.offer(one)
        await trio.testing.wait_all_tasks_blocked()
        view.close()
    return file.getvalue()


async def test_shows_what_it_can() -> None:
    shown = await painted(batch(100, 3))
    assert pids(shown) == [100, 101, 102]
    assert "not shown" not in shown


async def test_shows_the_newest_in_order_of_time_whatever_their_families() -> None:
    odd, even = batch(1001, 50, step=2), batch(1000, 50, step=2)
    both = Encoded(
        {"process": odd.records["process"], "memory": even.records["process"]}, odd.counts, odd.passage
    )
    assert pids(await painted(both)) == list(range(1100 - SHOWN, 1100))


async def test_counts_the_rest() -> None:
    shown = await painted(batch(0, 1000), batch(1000, 500))
    assert pids(shown) == list(range(1500 - SHOWN, 1500))
    assert f"… {1500 - SHOWN:,} events not shown" in shown.splitlines()[0]


async def test_nothing_is_said_when_nothing_comes() -> None:
    assert await painted() == ""
    assert await painted(batch(0, 0)) == ""


async def test_every_event_is_shown_or_counted() -> None:
    file = io.StringIO()
    view = View(Console(file=file, width=100))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(view.run)
        for number in range(30):
            view.offer(batch(number * 7, 7))
            await trio.sleep(0.01)
        view.close()
    shown = file.getvalue()
    skipped = sum(int(line.split()[1].replace(",", "")) for line in shown.splitlines() if "not shown" in line)
    assert len(pids(shown)) + skipped == 210
    assert pids(shown) == sorted(pids(shown))


class Stuck(io.StringIO):
    """A terminal on which somebody pressed Ctrl-S."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def write(self, text: str) -> int:
        self.go_on.wait(30)
        return super().write(text)


async def test_a_terminal_that_stands_still_holds_nobody_back() -> None:
    file = Stuck()
    view = View(Console(file=file, width=100))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(view.run)
            for number in range(200):
                view.offer(batch(number, 1))
                await trio.lowlevel.checkpoint()
            view.close()
    file.go_on.set()


async def test_the_last_painting_is_not_cancelled_with_the_rest() -> None:
    file = io.StringIO()
    view = View(Console(file=file, width=100))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(view.run)
        await trio.testing.wait_all_tasks_blocked()
        view.offer(batch(0, 5))
        view.close()
        nursery.cancel_scope.cancel()
    assert pids(file.getvalue()) == [0, 1, 2, 3, 4]


class Closed(io.StringIO):
    """A pipe whose reader went away."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


async def test_a_closed_pipe_ends_the_view_alone() -> None:
    view = View(Console(file=Closed(), width=100))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(view.run)
            for number in range(3):
                view.offer(batch(number, 1))
                await trio.sleep(0.15)
            view.close()


async def test_colours_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(**how: Any) -> io.StringIO:
        files.append(io.StringIO())
        consoles.append(Console(file=files[-1], width=100, **how))
        return files[-1]

    files: list[io.StringIO] = []
    consoles: list[Console] = []
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown(force_terminal=True)
    shown(force_terminal=False)
    monkeypatch.setenv("NO_COLOR", "1")
    shown(force_terminal=True)
    for console in consoles:
        await painted(batch(1, 1), console=console)
    coloured, piped, asked_not_to = (file.getvalue() for file in files)
    assert "\x1b[34m" in coloured
    assert "\x1b" not in piped
    assert "\x1b[34m" not in asked_not_to
