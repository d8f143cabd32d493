"""What LLVM made, kept in a file: the same programs again, with other maps; and whose files are taken."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from pipeline.kernel import bpf, compiler, programs
from pipeline.kernel.bpf import Shape
from pipeline.kernel.compiler import Compiled
from pipeline.kernel.programs import MOST, Programs, kept, make_maps, renamed, store
from pipeline.schema import by_name
from tests.absent import absent
from tests.live.host import need_kernel

MAP, VALUE, NUMBER, OTHER = 0x1118, 0x2118, 0x0118, 0xB7
SOME = Programs({"a": Shape(2, 4, 8, 1)}, {"a": "digest"}, {"program": bpf.NOTHING})


def code(*instructions: tuple[int, int]) -> bytes:
    """Instructions of (opcode and registers, constant)."""
    return b"".join(struct.pack("=Hhi", head, 0, constant) for head, constant in instructions)


def test_only_what_names_a_map_is_renamed() -> None:
    half = (0, 0)
    before = code((MAP, 3), half, (VALUE, 3), half, (NUMBER, 3), (MAP, 3), (OTHER, 3), (MAP, 4), half)
    after = code((MAP, 7), half, (VALUE, 3), half, (NUMBER, 3), (MAP, 3), (OTHER, 3), (MAP, 4), half)
    assert renamed(before, {3: 7}) == after


def test_what_was_kept_is_there_again(tmp_path: Path) -> None:
    folder = tmp_path / "of" / "its" / "own"
    assert kept("name", folder) is None
    store("name", SOME, folder)
    assert kept("name", folder) == SOME
    assert kept("another", folder) is None
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["", "name"])
def test_what_another_may_have_written_is_not_taken(tmp_path: Path, name: str) -> None:
    if os.geteuid() != 0:
        absent("only root's files are taken")
    folder = tmp_path / "folder"
    store("name", SOME, folder)
    (folder / name).chmod(0o720)
    assert kept("name", folder) is None
    (folder / name).chmod(0o700)
    assert kept("name", folder) == SOME
    os.chown(folder / name, 54321, 0)
    assert kept("name", folder) is None


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x90", b"\x92\x80\x80"])
def test_a_file_that_is_none_is_made_anew(tmp_path: Path, content: bytes) -> None:
    store("name", SOME, tmp_path)
    (tmp_path / "name").write_bytes(content)
    assert kept("name", tmp_path) is None


def test_the_oldest_go(tmp_path: Path) -> None:
    for number in range(MOST + 2):
        store(f"{number}", SOME, tmp_path)
        os.utime(tmp_path / f"{number}", (number, number))
    assert len([*tmp_path.iterdir()]) == MOST
    assert kept("0", tmp_path) is None
    assert kept(f"{MOST}", tmp_path)


@pytest.mark.kernel
def test_maps_are_as_they_were(tmp_path: Path) -> None:
    """Those of every type that the programs have."""
    need_kernel()
    shapes = {
        "rings": Shape(12, 4, 4, 3),
        "ring_model": Shape(27, 0, 0, 4096),
        "values": Shape(2, 4, 70_000, 2, 1 << 10),
        "hash": Shape(1, 16, 24, 100, 1),
        "storage": Shape(29, 4, 48, 0, 1),
    }
    made = make_maps(shapes)
    assert {name: bpf.shape_of(fd) for name, fd in made.items()} == shapes
    ring = bpf.create_ring(1 << 16, "ring")
    bpf.update(made["rings"], bytes(4), ring.to_bytes(4, "little"))
    for fd in (*made.values(), ring):
        os.close(fd)


@pytest.mark.kernel
def test_llvm_runs_once_for_the_same_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_kernel()
    monkeypatch.setattr(programs, "FOLDER", tmp_path / "kept")
    found = {name: by_name()[name].surface("tracepoint") for name in ("exec", "fork", "exit")}
    choice = {name: surface for name, surface in found.items() if surface}
    made = []
    for _ in range(2):
        made.append(Compiled(rings=2, processes=1024, arguments=4096, log=tmp_path / "log", choice=choice))
        monkeypatch.setattr(compiler, "_compiled", lambda *_: pytest.fail("LLVM ran again"))
    first, second = made
    assert first._programs == second._programs
    assert first.map("books") != second.map("books")
    loaded = second.load("raw_tp/task_newtask", "on_fork", {})
    said = subprocess.run(["bpftool", "prog"], capture_output=True, text=True, check=True).stdout
    assert "name task_newtask" in said
    os.close(loaded)
