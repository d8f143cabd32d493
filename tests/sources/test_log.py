"""Reading the local log."""

from __future__ import annotations

from pathlib import Path

import msgpack
import pytest
import trio

from pipeline.sources.log import LogSource
from pipeline.sources.source import Record, Seen, Window
from pipeline.store import LOG, Store, StoreError
from tests.encoded import TIME, encoded, record, stream

MS = 1_000_000


async def read(folder: Path, window: Window) -> list[int]:
    """The sequences of the records that a window shows."""
    found: list[int] = []
    async with LogSource(folder).batches(window) as batches:
        async for records in batches:
            found += [r.fields["sequence"] for r in records]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = Store(tmp_path / LOG)
    for batch in stream(10, 5, padding=100):
        store.append([batch])
    store.close()
    return tmp_path


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (Window(), range(50)),
        (Window(last=7), range(43, 50)),
        (Window(last=500), range(50)),
        (Window(since=TIME + 12 * MS), range(12, 50)),
        (Window(since=TIME + 12 * MS - 1, until=TIME + 31 * MS), range(12, 31)),
        (Window(until=TIME + 20 * MS, last=3), range(17, 20)),
        (Window(since=TIME + 50 * MS), range(0)),
    ],
)
async def test_windows(folder: Path, window: Window, expected: range) -> None:
    assert await read(folder, window) == list(expected)


async def test_following_goes_on_after_the_end(folder: Path) -> None:
    store = Store(folder / LOG)
    found: list[int] = []
    async with LogSource(folder).batches(Window(last=3, follow=True)) as batches:
        with trio.fail_after(10):
            async for records in batches:
                found += [r.fields["sequence"] for r in records]
                if len(found) == 3:
                    store.append(list(stream(2, 5, first=11)))
                if len(found) >= 13:
                    break
    assert found == [47, 48, 49, *range(50, 60)]
    store.close()


async def test_it_stops_at_the_end_it_saw(folder: Path) -> None:
    store = Store(folder / LOG)
    found: list[int] = []
    async with LogSource(folder).batches(Window()) as batches:
        async for records in batches:
            if not found:
                store.append(list(stream(2, 5, first=11)))
            found += [r.fields["sequence"] for r in records]
    assert found == list(range(50))
    store.close()


async def test_an_event_that_is_stored_twice_is_read_once(folder: Path) -> None:
    store = Store(folder / LOG)
    store.append(list(stream(2, 5, first=9)))
    store.append([encoded(11, [record(49, boot="c" * 32), record(50)])])
    store.close()
    assert await read(folder, Window()) == [*range(50), 49, 50]


async def test_what_is_damaged_is_left_out_and_that_is_said(folder: Path) -> None:
    damage(folder / LOG, record(17, padding=100)["padding"])
    found: list[int] = []

    async def collect() -> None:
        async with LogSource(folder).batches(Window()) as batches:
            async for records in batches:
                found.extend(r.fields["sequence"] for r in records)

    with pytest.raises(StoreError, match="5 damaged records were left out"):
        await collect()
    assert found == [*range(15), *range(20, 50)]


def damage(path: Path, value: bytes) -> None:
    data = path.read_bytes()
    assert data.count(value) == 1
    path.write_bytes(data.replace(value, value[:-1] + bytes([value[-1] ^ 1])))


async def test_a_folder_without_a_log(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no log"):
        await read(tmp_path, Window())


def test_seen_is_bounded_and_never_forgets_too_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.source.GENERATION", 1000)

    def at(index: int) -> Record:
        return Record("process", b"", msgpack.packb(record(index)), 0, "")

    seen = Seen()
    for index in range(3500):
        assert at(index) not in seen
    assert at(2500) in seen
    assert len(seen._new) + len(seen._old) <= 2000


def test_what_is_no_record_does_no_harm() -> None:
    seen = Seen()
    for value in (b"", b"\xc1", b"\x93\x01", b"\x81\x90\x01", b"\xa5hello"):
        strange = Record("process", b"", value, 1_700_000_000_000, "")
        assert strange.fields == {}
        assert strange.time == TIME
        assert strange not in seen
        assert strange not in seen
