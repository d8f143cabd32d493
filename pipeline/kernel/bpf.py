"""The bpf system call, as far as the long-running process needs it: no bcc, no LLVM.

Works on file descriptors; errors are OSError with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

__all__ = [
    "NOEXIST",
    "NOTHING",
    "RAW_TRACEPOINT",
    "ProgramInfo",
    "Shape",
    "attach_tracepoint",
    "create_array",
    "create_like",
    "create_map",
    "create_ring",
    "create_table",
    "delete",
    "freeze",
    "get",
    "keys",
    "link_lives",
    "load_btf",
    "load_program",
    "lookup",
    "map_info",
    "map_memory",
    "object_id",
    "pin",
    "program_ids",
    "program_info",
    "program_misses",
    "program_runs",
    "shape_of",
    "statistics",
    "update",
]

NOEXIST: Final = 1
MAP_TYPE_ARRAY: Final = 2
MAP_TYPE_PROG_ARRAY: Final = 3
MAP_TYPE_RINGBUF: Final = 27
MMAPABLE: Final = 1 << 10
RAW_TRACEPOINT: Final = 17
"""Type of program."""
NOTHING: Final = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
"""A program that returns 0."""

_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT, _LOAD, _PIN, _GET = range(8)
_INFO, _TRACEPOINT, _TYPES, _FREEZE = 15, 17, 18, 22
_NEXT_PROGRAM, _PROGRAM = 11, 13
_BTF, _LINK, _STATISTICS = 19, 30, 32
_SYSCALL: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280}.get(os.uname().machine, 321)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _bpf(command: int, attributes: bytes, what: str) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(_libc.syscall(_SYSCALL, command, buffer, len(attributes)))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def _address(data: ctypes.Array[ctypes.c_char] | None) -> int:
    return ctypes.addressof(data) if data is not None else 0


class Shape(NamedTuple):
    """A map without what is in it."""

    type: int
    key: int
    """Bytes."""
    value: int
    entries: int
    flags: int = 0


def create_map(shape: Shape, name: str, inner: int = 0, types: int = 0) -> int:
    """A new map. `inner`: a map like those that will be in it; `types`: BTF of which 1 is the key's, 3 the
    value's.
    """
    attributes = struct.pack(
        *("=IIIIIII16sIIII", *shape, inner, 0, name.encode()[:15]),
        *(0, types, 1 if types else 0, 3 if types else 0),
    )
    return _bpf(_CREATE, attributes.ljust(72, b"\0"), name)


def create_ring(size: int, name: str) -> int:
    """A new ring buffer map of `size` bytes (a power of two of pages)."""
    return create_map(Shape(MAP_TYPE_RINGBUF, 0, 0, size), name)


def create_table(entries: int, name: str) -> int:
    """A new table of tail calls."""
    return create_map(Shape(MAP_TYPE_PROG_ARRAY, 4, 4, entries), name)


def create_array(value_size: int, entries: int, name: str) -> int:
    """A new array map that can be mapped into memory."""
    return create_map(Shape(MAP_TYPE_ARRAY, 4, value_size, entries, MMAPABLE), name)


def load_btf(types: bytes) -> int:
    """Load types; their descriptor."""
    buffer = ctypes.create_string_buffer(types, len(types))
    return _bpf(_TYPES, struct.pack("=QQIII", _address(buffer), 0, len(types), 0, 0), "types")


def create_like(fd: int) -> int:
    """A new, empty map of the same shape as another."""
    info = ctypes.create_string_buffer(88)
    _bpf(_INFO, struct.pack("=IIQ", fd, 88, _address(info)), "map info")
    kind, _, key, value, entries, flags, name = struct.unpack_from("=IIIIII16s", info.raw)
    types, *key_and_value = struct.unpack_from("=III", info.raw, 64)
    btf = _bpf(_BTF, struct.pack("=III", types, 0, 0), "types of a map") if types else 0
    attributes = struct.pack(
        "=IIIIIII16sIIII", kind, key, value, entries, flags, 0, 0, name, 0, btf, *key_and_value
    )
    try:
        return _bpf(_CREATE, attributes.ljust(72, b"\0"), name.decode())
    finally:
        if types:
            os.close(btf)


def load_program(kind: int, code: bytes, name: str = "") -> int:
    """Load a program of this type; its descriptor."""
    instructions, license = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        *("=IIQQIIQII16s", kind, len(code) // 8, _address(instructions), _address(license)),
        *(0, 0, 0, 0, 0, name.encode()[:15]),
    )
    return _bpf(_LOAD, attributes, name)


def attach_tracepoint(program: int, name: str) -> int:
    """Attach a loaded program to a raw tracepoint; the link's descriptor."""
    text = ctypes.create_string_buffer(name.encode())
    return _bpf(_TRACEPOINT, struct.pack("=QII", _address(text), program, 0), name)


def object_id(fd: int) -> int:
    """The kernel's number for a map, program or link."""
    info = ctypes.create_string_buffer(32)
    _bpf(_INFO, struct.pack("=IIQ", fd, 32, _address(info)), "info")
    return int(struct.unpack_from("=I", info.raw, 4)[0])


def link_lives(id: int) -> bool:
    """Whether a link is there still: the kernel takes one away some time after its last name went."""
    try:
        os.close(_bpf(_LINK, struct.pack("=III", id, 0, 0), f"link {id}"))
    except FileNotFoundError:
        return False
    return True


def pin(fd: int, path: Path) -> None:
    """Give a map, program or link a name in bpffs."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(_PIN, struct.pack("=QII", _address(name), fd, 0), str(path))


def get(path: Path) -> int:
    """Descriptor of what is pinned under a name."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(_GET, struct.pack("=QII", _address(name), 0, 0), str(path))


def lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value of a key, or None."""
    k, v = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value_size)
    try:
        _bpf(_LOOKUP, struct.pack("=IIQQQ", fd, 0, _address(k), _address(v), 0), "lookup")
    except FileNotFoundError:
        return None
    return v.raw


def update(fd: int, key: bytes, value: bytes, flags: int = 0) -> bool:
    """Set a key; with NOEXIST, False where it is there already."""
    k, v = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
    try:
        _bpf(_UPDATE, struct.pack("=IIQQQ", fd, 0, _address(k), _address(v), flags), "update")
    except FileExistsError:
        return False
    return True


def delete(fd: int, key: bytes) -> bool:
    """Remove a key; False: it was gone already."""
    k = ctypes.create_string_buffer(key, len(key))
    try:
        _bpf(_DELETE, struct.pack("=IIQQQ", fd, 0, _address(k), 0, 0), "delete")
    except FileNotFoundError:
        return False
    return True


def freeze(fd: int) -> None:
    """Let nobody write to a map from user space any more."""
    _bpf(_FREEZE, struct.pack("=I", fd), "freeze")


def keys(fd: int, key_size: int) -> list[bytes]:
    """All keys of a hash map, as they were while it was walked."""
    found: list[bytes] = []
    current: ctypes.Array[ctypes.c_char] | None = None
    while True:
        following = ctypes.create_string_buffer(key_size)
        try:
            _bpf(_NEXT, struct.pack("=IIQQQ", fd, 0, _address(current), _address(following), 0), "next key")
        except FileNotFoundError:
            return found
        found.append(following.raw)
        current = following


def map_info(fd: int) -> tuple[int, int]:
    """(bytes of a value, entries) of a map; for a ring: (0, bytes)."""
    shape = shape_of(fd)
    return shape.value, shape.entries


def shape_of(fd: int) -> Shape:
    """What the kernel tells of a map."""
    info = ctypes.create_string_buffer(80)
    _bpf(_INFO, struct.pack("=IIQ", fd, 80, _address(info)), "map info")
    kind, _, *rest = struct.unpack_from("=IIIIII", info.raw)
    return Shape(kind, *rest)


@contextmanager
def statistics() -> Iterator[None]:
    """While inside the kernel counts the runs of all programs (since Linux 5.8)."""
    fd = _bpf(_STATISTICS, bytes(4), "statistics")
    try:
        yield
    finally:
        os.close(fd)


def program_runs(fd: int) -> int:
    """How often a program was run under `statistics`."""
    return _program_count(fd, 200)


def program_misses(fd: int) -> int:
    """How often the kernel skipped a program that was running already on that CPU (since Linux 5.12)."""
    return _program_count(fd, 208)


def _program_count(fd: int, at: int) -> int:
    info = ctypes.create_string_buffer(232)
    _bpf(_INFO, struct.pack("=IIQ", fd, 232, _address(info)), "program info")
    return int(struct.unpack_from("=Q", info.raw, at)[0])


def map_memory(fd: int, size: int, writable: bool = True) -> mmap.mmap:
    """The values of an array map as memory; `size` is rounded up to whole pages."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    return mmap.mmap(fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE, mmap.MAP_SHARED, protection)


class ProgramInfo(NamedTuple):
    """What the kernel tells of a loaded program."""

    type: int
    tag: bytes
    name: bytes
    instructions: int
    """After verification."""
    jited: int
    """Bytes of machine code."""


def program_info(id: int) -> ProgramInfo:
    """Ask for a program by its id; FileNotFoundError: it is gone."""
    fd = _bpf(_PROGRAM, struct.pack("=III", id, 0, 0), f"program {id}")
    try:
        info = ctypes.create_string_buffer(232)
        _bpf(_INFO, struct.pack("=IIQ", fd, 232, _address(info)), "program info")
    finally:
        os.close(fd)
    type, _, tag, jited, translated, name = struct.unpack_from("=II8sII40x16s", info.raw)
    return ProgramInfo(type, tag, name.partition(b"\0")[0], translated // 8, jited)


def program_ids() -> Iterator[int]:
    """Ids of all loaded programs."""
    id = 0
    while True:
        buffer = ctypes.create_string_buffer(struct.pack("=III", id, 0, 0), 12)
        if _libc.syscall(_SYSCALL, _NEXT_PROGRAM, buffer, len(buffer)) < 0:
            return
        yield (id := struct.unpack_from("=I", buffer.raw, 4)[0])
