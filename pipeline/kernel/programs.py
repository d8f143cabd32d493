"""What LLVM made of the sources: instructions, and the maps that they name, not tied to a kernel; in files.

    compiler.py: sources → bcc, once → Programs → kept under the hash of what it was made from
    the next time: the file → Programs → maps of this attachment → instructions that name them

So LLVM runs again only for another source, which another kernel's offsets make too.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgpack

from pipeline.kernel import bpf
from pipeline.kernel.bpf import Shape
from pipeline.kernel.offsets import INSTRUCTION, LOAD_IMM64

__all__ = ["FOLDER", "MODEL", "Programs", "kept", "key", "make_maps", "renamed", "store"]

FOLDER: Final = Path(os.environ.get("CACHE_DIRECTORY", "/var/cache/promissory"))
"""Root's alone: what lies there is loaded into the kernel. systemd names another by this variable."""
MOST: Final = 32
"""Files that are kept; the oldest go."""
MODEL: Final = "ring_model"
"""The map that maps of maps take as what is in them."""
MAP_OF_MAPS: Final = 12
STORAGES: Final = frozenset({24, 28, 29, 32})
"""Types of map that keep something by a socket, inode, task or cgroup: they want BTF of their values."""
LOAD_MAP: Final = (LOAD_IMM64, 1)
"""Opcode and source of the instruction that loads a map, by its descriptor."""
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Programs:
    """The code of each program; it names a map by its place in `maps`. `types`: map → a digest of what its
    keys and values are made of.
    """

    maps: Mapping[str, Shape]
    types: Mapping[str, str]
    code: Mapping[str, bytes]


def key(*made_from: str) -> str:
    """The name under which programs made from these texts are kept."""
    return hashlib.sha256("\0".join((str(_VERSION), *made_from)).encode()).hexdigest()


def kept(name: str, folder: Path | None = None) -> Programs | None:
    """What is kept under a name; None: nothing, or somebody else than root may have put it there."""
    folder = folder or FOLDER
    path = folder / name
    try:
        for place in (folder, path):
            found = place.stat()
            if found.st_uid != 0 or found.st_mode & 0o022:
                return None
        maps, types, code = msgpack.unpackb(path.read_bytes())
    except (OSError, ValueError, msgpack.UnpackException):
        return None
    with suppress(OSError):
        path.touch()
    return Programs({name: Shape(*shape) for name, shape in maps.items()}, types, code)


def store(name: str, programs: Programs, folder: Path | None = None) -> None:
    """Keep programs under a name. What cannot be kept is compiled again: no error."""
    folder = folder or FOLDER
    new = folder / f"{name}.{os.getpid()}"
    with suppress(OSError):
        folder.mkdir(0o700, parents=True, exist_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgpack.packb([programs.maps, programs.types, programs.code]))
        new.rename(folder / name)
        for old in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-MOST]:
            old.unlink()


def make_maps(shapes: Mapping[str, Shape]) -> dict[str, int]:
    """The maps' descriptors. OSError is the kernel's answer."""
    found: dict[str, int] = {}
    for name, shape in sorted(shapes.items(), key=lambda item: item[1].type == MAP_OF_MAPS):
        inner = found[MODEL] if shape.type == MAP_OF_MAPS else 0
        types = bpf.load_btf(_types(shape.value)) if shape.type in STORAGES else 0
        found[name] = bpf.create_map(shape, name, inner, types)
        if types:
            os.close(types)
    return found


def renamed(code: bytes, maps: Mapping[int, int]) -> bytes:
    """The same instructions with other maps: places for descriptors, or descriptors for places. What `maps`
    does not have stays as it is.
    """
    changed = bytearray(code)
    wide = False
    for at, (opcode, registers, _, value) in enumerate(INSTRUCTION.iter_unpack(code)):
        if not wide and (opcode, registers >> 4) == LOAD_MAP:
            struct.pack_into("=i", changed, at * INSTRUCTION.size + 4, maps.get(value, value))
        wide = not wide and opcode == LOAD_IMM64  # the second half of a 64-bit constant
    return bytes(changed)


def _types(value: int) -> bytes:
    """BTF: 1 is int, 2 is char, 3 an array of so many of these."""
    names = b"\0int\0char\0"
    types = struct.pack("=IIII", 1, 1 << 24, 4, 1 << 24 | 32)  # signed
    types += struct.pack("=IIII", 5, 1 << 24, 1, 8)
    types += struct.pack("=IIIIII", 0, 3 << 24, 0, 2, 1, value)
    return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names)) + types + names
