"""The bpf system call without a library: maps, pins, what the kernel answers."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.kernel import bpf
from tests.live.host import need_kernel

pytestmark = pytest.mark.kernel

HASH, NO_PREALLOC = 1, 1


@pytest.fixture(autouse=True)
def kernel() -> None:
    need_kernel()


@pytest.fixture
def array() -> Iterator[int]:
    fd = bpf.create_array(16, 4, "test_array")
    yield fd
    os.close(fd)


@pytest.fixture
def table() -> Iterator[int]:
    """A hash map of 8 bytes to 4."""
    attributes = struct.pack("=IIIIIII16s", HASH, 8, 4, 3, 0, 0, 0, b"test_hash")
    fd = bpf._bpf(bpf._CREATE, attributes.ljust(72, b"\0"), "test_hash")
    yield fd
    os.close(fd)


def key(number: int) -> bytes:
    return struct.pack("=Q", number)


def test_values_and_their_memory(array: int) -> None:
    assert bpf.map_info(array) == (16, 4)
    memory = bpf.map_memory(array, 64)
    bpf.update(array, struct.pack("=I", 2), b"0123456789abcdef")
    assert memory[32:48] == b"0123456789abcdef"
    memory[0:4] = b"seen"
    assert bpf.lookup(array, struct.pack("=I", 0), 16) == b"seen".ljust(16, b"\0")
    assert bpf.lookup(array, struct.pack("=I", 4), 16) is None
    memory.close()


def test_memory_that_may_only_be_read(array: int) -> None:
    memory = bpf.map_memory(array, 64, writable=False)
    with pytest.raises(TypeError):
        memory[0:1] = b"x"
    memory.close()


def test_keys_come_and_go(table: int) -> None:
    assert bpf.keys(table, 8) == []
    assert bpf.update(table, key(1), b"one.")
    assert bpf.update(table, key(2), b"two.", bpf.NOEXIST)
    assert not bpf.update(table, key(1), b"late", bpf.NOEXIST)
    assert sorted(bpf.keys(table, 8)) == [key(1), key(2)]
    assert bpf.lookup(table, key(1), 4) == b"one."
    assert bpf.lookup(table, key(3), 4) is None
    assert bpf.delete(table, key(1))
    assert not bpf.delete(table, key(1))
    assert bpf.keys(table, 8) == [key(2)]


def test_a_full_map_says_so(table: int) -> None:
    for number in range(3):
        bpf.update(table, key(number), b"full")
    with pytest.raises(OSError, match="Argument list too long"):
        bpf.update(table, key(9), b"more")


def test_pins(table: int) -> None:
    folder = Path(f"/sys/fs/bpf/promissory-test-pins-{os.getpid()}")
    folder.mkdir()
    try:
        bpf.pin(table, folder / "table")
        bpf.update(table, key(1), b"kept")
        again = bpf.get(folder / "table")
        assert bpf.lookup(again, key(1), 4) == b"kept"
        os.close(again)
        (folder / "table").unlink()
        with pytest.raises(FileNotFoundError) as error:
            bpf.get(folder / "table")
        assert error.value.filename == str(folder / "table")
    finally:
        folder.rmdir()


@pytest.mark.parametrize("size", [4096, 65536])
def test_rings_have_the_size_that_was_asked_for(size: int) -> None:
    fd = bpf.create_ring(size, "test_ring")
    assert bpf.map_info(fd) == (0, size)
    os.close(fd)


def test_a_ring_of_an_odd_size_is_refused() -> None:
    with pytest.raises(OSError, match="Invalid argument") as error:
        bpf.create_ring(5000, "odd")
    assert error.value.filename == "odd"


def test_a_frozen_map_is_written_no_more(array: int) -> None:
    bpf.update(array, bytes(4), b"as it is".ljust(16))
    bpf.freeze(array)
    with pytest.raises(PermissionError):
        bpf.update(array, bytes(4), b"otherwise".ljust(16))
    assert bpf.lookup(array, bytes(4), 16) == b"as it is".ljust(16)


def test_a_map_like_another_is_of_its_shape_and_empty() -> None:
    first = bpf.create_map(bpf.Shape(HASH, 8, 24, 16, NO_PREALLOC), "test_like")
    bpf.update(first, bytes(8), b"a value".ljust(24))
    second = bpf.create_like(first)
    assert bpf.shape_of(second) == bpf.shape_of(first)
    assert bpf.object_id(second) != bpf.object_id(first)
    assert bpf.lookup(second, bytes(8), 24) is None
    shown = subprocess.run(
        ["bpftool", "-j", "map", "show", "id", str(bpf.object_id(second))], capture_output=True, check=True
    )
    assert json.loads(shown.stdout)["name"] == "test_like"
    os.close(first)
    os.close(second)


def test_a_link_lives_as_long_as_somebody_has_it() -> None:
    program = bpf.load_program(bpf.RAW_TRACEPOINT, bpf.NOTHING, "test_program")
    link = bpf.attach_tracepoint(program, "sched_process_exit")
    number = bpf.object_id(link)
    assert bpf.link_lives(number)
    os.close(link)
    assert not bpf.link_lives(number)
    os.close(program)


def test_programs_and_tracepoints() -> None:
    program = bpf.load_program(bpf.RAW_TRACEPOINT, bpf.NOTHING, "test_program")
    shown = subprocess.run(
        ["bpftool", "-j", "prog", "show", "id", str(bpf.object_id(program))], capture_output=True, check=True
    )
    found = json.loads(shown.stdout)
    assert (found["type"], found["gpl_compatible"]) == ("raw_tracepoint", True)
    os.close(bpf.attach_tracepoint(program, "sched_process_exit"))
    with pytest.raises(FileNotFoundError) as error:
        bpf.attach_tracepoint(program, "no_such_tracepoint")
    assert error.value.filename == "no_such_tracepoint"
    os.close(program)


def test_a_program_that_does_not_end_is_refused() -> None:
    with pytest.raises(OSError, match="Invalid argument") as error:
        bpf.load_program(bpf.RAW_TRACEPOINT, bpf.NOTHING[:8], "endless")
    assert error.value.filename == "endless"
