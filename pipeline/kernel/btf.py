"""The running kernel's types: where a field of a struct lies, from BTF by bpftool.

Only offsets and sizes are asked for; no copy of a kernel struct is ever made. (A whole vmlinux.h compiled by
the LLVM that bcc brings is silently wrong in places: runs of unnamed padding, one-byte enums, embedded tagged
structs.)
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from pipeline.errors import UserError

__all__ = ["VMLINUX", "Btf", "Place", "running"]

VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")
MODIFIERS: Final = frozenset({"CONST", "VOLATILE", "RESTRICT", "TYPEDEF", "TYPE_TAG"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a field lies: bytes from the start of its struct, and its size in bytes."""

    offset: int
    size: int


class Btf:
    """The types of one kernel, as `bpftool -j btf dump` lists them."""

    def __init__(self, types: list[dict[str, Any]]) -> None:
        self._types = {entry["id"]: entry for entry in types}
        self._structs: dict[str, dict[str, Any]] = {}
        for entry in types:
            if entry["kind"] in ("STRUCT", "UNION") and entry["name"] != "(anon)":
                self._structs.setdefault(entry["name"], entry)

    def place(self, struct: str, field: str) -> Place | None:
        """A field's place; `outer__inner` names a field of an embedded struct. None: there is none."""
        entry = self._structs.get(struct)
        offset = 0
        for name in field.split("__"):
            found = self._member(entry, name) if entry else None
            if found is None:
                return None
            bits, type_id = found
            offset += bits // 8
            entry = self._resolve(type_id)
        return Place(offset, self._size(entry)) if entry else None

    def size(self, struct: str) -> int | None:
        """Bytes of a struct."""
        entry = self._structs.get(struct)
        return int(entry["size"]) if entry else None

    def arguments(self, tracepoint: str) -> int:
        """How many arguments a raw tracepoint gives its programs; 0: there is no such tracepoint."""
        name = f"btf_trace_{tracepoint}"
        hook = next((t for t in self._types.values() if t["kind"] == "TYPEDEF" and t["name"] == name), None)
        pointer = self._resolve(hook["type_id"]) if hook else None
        function = self._resolve(pointer["type_id"]) if pointer else None
        return len(function["params"]) - 1 if function else 0  # the first is the kernel's own

    def function(self, name: str) -> tuple[int, tuple[str, ...]] | None:
        """(type id, names of the parameters) of one of the kernel's functions; None: there is none."""
        entry = next((t for t in self._types.values() if t["kind"] == "FUNC" and t["name"] == name), None)
        if entry is None:
            return None
        parameters = self._types[entry["type_id"]]["params"]
        return entry["id"], tuple(parameter["name"] for parameter in parameters)

    def _resolve(self, type_id: int) -> dict[str, Any] | None:
        entry = self._types.get(type_id)
        while entry and entry["kind"] in MODIFIERS:
            entry = self._types.get(entry["type_id"])
        return entry

    def _member(self, struct: dict[str, Any], name: str) -> tuple[int, int] | None:
        """(bits from the start, type) of a member, also inside anonymous structs and unions."""
        for member in struct.get("members", ()):
            if member["name"] == name:
                return member["bits_offset"], member["type_id"]
            if member["name"] == "(anon)":
                inner = self._resolve(member["type_id"])
                found = self._member(inner, name) if inner else None
                if found:
                    return member["bits_offset"] + found[0], found[1]
        return None

    def _size(self, entry: dict[str, Any]) -> int:
        if entry["kind"] == "PTR":
            return 8
        if entry["kind"] == "ARRAY":
            element = self._resolve(entry["type_id"])
            return int(entry["nr_elems"]) * (self._size(element) if element else 0)
        return int(entry.get("size", 0))


@lru_cache(maxsize=1)
def running() -> Btf:
    """The BTF of the kernel that runs."""
    if not VMLINUX.exists():
        raise UserError(f"this kernel has no BTF ({VMLINUX} is missing): it needs CONFIG_DEBUG_INFO_BTF=y")
    command = ["bpftool", "-j", "btf", "dump", "file", str(VMLINUX)]
    path = "/usr/sbin:/sbin:/usr/bin:/bin"
    try:
        done = subprocess.run(command, capture_output=True, check=True, env={"PATH": path})
    except FileNotFoundError:
        raise UserError("bpftool is missing: apt-get install bpftool") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"bpftool could not read {VMLINUX}: {error.stderr.decode().strip()}") from None
    return Btf(json.loads(done.stdout)["types"])
