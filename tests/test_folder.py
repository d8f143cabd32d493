"""A state folder that is removed under a live run."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest
import trio
import trio.testing

from pipeline import folder
from pipeline.kernel.manifest import FILE


async def test_manifest_and_lock_are_made_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    state, said = tmp_path / "state", list[str]()
    state.mkdir()
    (state / FILE).write_text("first")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(folder.keep, state, said.append)
        await trio.sleep(6)
        (state / FILE).write_text("handed over")
        await trio.sleep(6)
        assert not said
        shutil.rmtree(state)
        await trio.sleep(6)
        assert (state / FILE).read_text() == "handed over"
        with (state / folder.LOCK).open("w") as lock, pytest.raises(OSError, match="unavailable"):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert len(said) == 1
        nursery.cancel_scope.cancel()


async def test_where_it_cannot_be_made_that_is_said_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    state, said = tmp_path / "parent" / "state", list[str]()
    state.mkdir(parents=True)
    (state / FILE).write_text("manifest")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(folder.keep, state, said.append)
        await trio.sleep(1)
        shutil.rmtree(tmp_path / "parent")
        (tmp_path / "parent").touch()
        await trio.sleep(30)
        assert len(said) == 1
        assert "cannot be made again" in said[0]
        (tmp_path / "parent").unlink()
        await trio.sleep(6)
        assert (state / FILE).read_text() == "manifest"
        nursery.cancel_scope.cancel()


async def test_what_never_was_is_not_made(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(folder.keep, tmp_path, print)
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert os.listdir(tmp_path) == []
