"""The running kernel's types: where a field of a struct lies, which functions there are, from its BTF.

Read as the kernel gives it (Documentation/bpf/btf.rst): one array of 32-bit words, in which a type is three
words and what its kind adds, and one block of names. Only what is asked for is looked at; no copy of a kernel
struct is ever made. (A whole vmlinux.h compiled by the LLVM that bcc brings is silently wrong in places: runs
of unnamed padding, one-byte enums, embedded tagged structs.)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.errors import UserError

__all__ = ["HEADER", "MAGIC", "VMLINUX", "Btf", "Place", "running"]

VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")
MAGIC: Final = 0xEB9F
HEADER: Final = struct.Struct("<HBBIIIII")
"""magic, version, flags, bytes of this header; then where after it, and how long: the types, the names."""

PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, VOLATILE, CONST, RESTRICT = 2, 3, 4, 5, 6, 8, 9, 10, 11
FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = 12, 13, 14, 15, 16, 17, 18, 19
INT: Final = 1
KINDS: Final = 32
FIXED: Final = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
"""Words that follow the three of such a type."""
EACH: Final = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}
"""Words that follow for each member, value or parameter."""
MODIFIERS: Final = frozenset({TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG})
SIZED: Final = frozenset({INT, STRUCT, UNION, ENUM, FLOAT, ENUM64})
POINTER: Final = 8


@dataclass(frozen=True, slots=True)
class Place:
    """Where a field lies: bytes from the start of its struct, and its size in bytes."""

    offset: int
    size: int


class Btf:
    """The types of one kernel. A type is known by its id, as the kernel's system calls take it."""

    def __init__(self, data: bytes) -> None:
        """`data`: what /sys/kernel/btf/vmlinux holds."""
        magic, _, _, header, types, types_size, names, names_size = HEADER.unpack_from(data)
        if magic != MAGIC:
            raise UserError(f"this is no BTF: it begins with {magic:#x}")
        self._words = np.frombuffer(data, "<u4", types_size // 4, header + types)
        self._names = data[header + names : header + names + names_size]
        self._starts = _starts(self._words)
        self._first = self._words[self._starts]
        self._kinds = _kind(self._words[self._starts + 1])
        self._found: dict[tuple[str, tuple[int, ...]], int] = {}
        self._members: dict[int, dict[str, tuple[int, int]]] = {}

    def place(self, struct: str, field: str) -> Place | None:
        """A field's place; `outer__inner` names a field of an embedded struct, `array__0` an array's first
        element. None: there is none.
        """
        type_id = self._find(struct, STRUCT, UNION)
        offset = 0
        for name in field.split("__"):
            found = self._element(type_id, int(name)) if name.isdigit() else self._fields(type_id).get(name)
            if found is None:
                return None
            offset += found[0] // 8
            type_id = self._resolve(found[1])
        return Place(offset, self._size(type_id))

    def size(self, struct: str) -> int | None:
        """Bytes of a struct."""
        type_id = self._find(struct, STRUCT, UNION)
        return self._size(type_id) if type_id else None

    def arguments(self, tracepoint: str) -> int:
        """How many arguments a raw tracepoint gives its programs; 0: there is no such tracepoint."""
        pointer = self._resolve(self._find(f"btf_trace_{tracepoint}", TYPEDEF))
        function = self._resolve(self._target(pointer)) if self._kind(pointer) == PTR else 0
        return max(len(self._added(function, FUNC_PROTO)) - 1, 0)  # the first is the kernel's own

    def function(self, name: str) -> tuple[int, tuple[str, ...]] | None:
        """(type id, names of the parameters) of one of the kernel's functions; None: there is none."""
        type_id = self._find(name, FUNC)
        if not type_id:
            return None
        parameters = self._added(self._target(type_id), FUNC_PROTO)
        return type_id, tuple(self._name(at) for at in parameters[:, 0])

    def prototype(self, function: str) -> int:
        """Type id of the signature of one of the kernel's functions; 0: there is none."""
        type_id = self._find(function, FUNC)
        return self._target(type_id) if type_id else 0

    def _find(self, name: str, *kinds: int) -> int:
        """The first type of that name and one of these kinds; 0: none. Names are stored whole, and once."""
        asked = (name, kinds)
        if asked not in self._found:
            at = self._names.find(b"\0%s\0" % name.encode()) + 1
            called_so = np.flatnonzero(self._first == at) if at else ()
            self._found[asked] = next((int(t) + 1 for t in called_so if self._kinds[t] in kinds), 0)
        return self._found[asked]

    def _fields(self, type_id: int) -> dict[str, tuple[int, int]]:
        """Name → (bits from the start, type) of a struct's members, those of unnamed members too."""
        if type_id not in self._members:
            found: dict[str, tuple[int, int]] = {}
            with_sizes = type_id and self._words[self._starts[type_id - 1] + 1] >> 31
            for name, member, bits in self._added(type_id, STRUCT, UNION).tolist():
                start = bits & 0xFFFFFF if with_sizes else bits
                if name:
                    found.setdefault(self._name(name), (start, member))
                    continue
                for inner, (offset, kind) in self._fields(self._resolve(member)).items():
                    found.setdefault(inner, (start + offset, kind))
            self._members[type_id] = found
        return self._members[type_id]

    def _element(self, type_id: int, number: int) -> tuple[int, int] | None:
        """(bits from the start, type) of an array's element."""
        if self._kind(type_id) != ARRAY:
            return None
        element = int(self._words[self._starts[type_id - 1] + 3])
        return number * self._size(self._resolve(element)) * 8, element

    def _added(self, type_id: int, *kinds: int) -> npt.NDArray[np.uint32]:
        """What a type of one of these kinds has for each member or parameter, a row each; else no rows."""
        kind = self._kind(type_id)
        if kind not in kinds:
            return np.zeros((0, 2), np.uint32)
        start = self._starts[type_id - 1]
        count = int(self._words[start + 1]) & 0xFFFF
        return self._words[start + 3 : start + 3 + count * EACH[kind]].reshape(count, EACH[kind])

    def _kind(self, type_id: int) -> int:
        return int(self._kinds[type_id - 1]) if type_id else 0

    def _target(self, type_id: int) -> int:
        """What a type leads to, or its size."""
        return int(self._words[self._starts[type_id - 1] + 2])

    def _resolve(self, type_id: int) -> int:
        while self._kind(type_id) in MODIFIERS:
            type_id = self._target(type_id)
        return type_id

    def _size(self, type_id: int) -> int:
        kind = self._kind(type_id)
        if kind == PTR:
            return POINTER
        if kind == ARRAY:
            element, _, count = self._words[self._starts[type_id - 1] + 3 :][:3].tolist()
            return int(count) * self._size(self._resolve(element))
        return self._target(type_id) if kind in SIZED else 0

    def _name(self, at: int) -> str:
        return self._names[at : self._names.index(b"\0", at)].decode()


def _kind(info: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    return (info >> np.uint32(24)) & np.uint32(KINDS - 1)


def _starts(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """Where each type begins: how far the next would be is computed for every word at once, and followed."""
    fixed, each = np.zeros(KINDS, np.uint32), np.zeros(KINDS, np.uint32)
    fixed[[*FIXED]], each[[*EACH]] = [*FIXED.values()], [*EACH.values()]
    kinds = _kind(words[1:])
    lengths = (3 + fixed[kinds] + each[kinds] * (words[1:] & 0xFFFF)).tolist()
    found, at, end = [], 0, len(words)
    while at < end:
        found.append(at)
        at += lengths[at]
    return np.array(found, np.int64)


@lru_cache(maxsize=1)
def running() -> Btf:
    """The BTF of the kernel that runs."""
    if not VMLINUX.exists():
        raise UserError(f"this kernel has no BTF ({VMLINUX} is missing): it needs CONFIG_DEBUG_INFO_BTF=y")
    return Btf(VMLINUX.read_bytes())
