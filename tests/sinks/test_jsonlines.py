"""JSON lines as a sink."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import TextIO

import pytest
import trio

from pipeline.event import Encoded
from pipeline.sinks.checkpoint import BookKeeper, restore
from pipeline.sinks.jsonlines import JsonLines
from pipeline.stages.stage import Link
from tests.encoded import Rings, encoded, record, stream


def make() -> tuple[JsonLines, BookKeeper, Rings]:
    rings, area = Rings(), bytearray(8192)
    keeper = BookKeeper(restore(area), area, move=rings.move, pressure=rings.pressure)
    return JsonLines(keeper), keeper, rings


async def test_a_line_per_record(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    sink, keeper, rings = make()
    link: Link[Encoded] = Link("encoded")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.run, link)
        await link.send(stream(3, 10))
        link.close()
    lines = capfdbinary.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [record(i) for i in range(30)]
    assert keeper.books.acknowledged.sum() == 30
    assert rings.positions == {0: 30 * 256}
    assert sink.held().sum() == 0


async def test_events_of_all_families_stand_in_order_of_time(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    sink, _, _ = make()
    link: Link[Encoded] = Link("encoded")
    odd, even = (encoded(1, (record(i) for i in range(first, 20, 2))) for first in (1, 0))
    both = {"process": odd.records["process"], "memory": even.records["process"]}
    await link.send([replace(odd, records=both)])
    link.close()
    await sink.run(link)
    lines = capfdbinary.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [record(i) for i in range(20)]


@pytest.fixture
def a_pipe_that_nobody_reads() -> Iterator[TextIO]:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        yield pipe
        # What was not written would be, once more, at close.
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, write)
        os.close(devnull)


async def test_a_reader_that_has_gone_acknowledges_nothing(
    a_pipe_that_nobody_reads: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, keeper, rings = make()
    link: Link[Encoded] = Link("encoded")
    await link.send(stream(1, 10))
    monkeypatch.setattr("sys.stdout", a_pipe_that_nobody_reads)
    with pytest.raises(BrokenPipeError):
        await sink.run(link)
    assert sink.held().sum() == 10
    assert keeper.books.acknowledged.sum() == 0
    assert rings.positions == {}
