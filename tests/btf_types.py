"""BTF written from types as bpftool lists them, for tests that want a kernel of their own."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

from pipeline.kernel.btf import HEADER, MAGIC

__all__ = ["encoded"]

ORDER: Final = """
    INT PTR ARRAY STRUCT UNION ENUM FWD TYPEDEF VOLATILE CONST RESTRICT FUNC FUNC_PROTO VAR DATASEC FLOAT
    DECL_TAG TYPE_TAG ENUM64
"""
KINDS: Final = {name: number for number, name in enumerate(ORDER.split(), 1)}
ANONYMOUS: Final = "(anon)"


def encoded(types: Sequence[dict[str, Any]]) -> bytes:
    """The bytes of /sys/kernel/btf/vmlinux for these types, whose ids count from 1."""
    names = bytearray(b"\0")
    known = {ANONYMOUS: 0}

    def name(text: str) -> int:
        if text not in known:
            known[text] = len(names)
            names.extend(text.encode() + b"\0")
        return known[text]

    words: list[int] = []
    for number, entry in enumerate(types, 1):
        assert entry["id"] == number
        rows = entry.get("members") or entry.get("params") or entry.get("values") or entry.get("vars") or ()
        with_sizes = any("bitfield_size" in row for row in rows)
        info = len(rows) | KINDS[entry["kind"]] << 24 | with_sizes << 31
        words += [name(entry["name"]), info, entry.get("size", entry.get("type_id", 0))]
        if entry["kind"] == "ARRAY":
            words[-1] = 0
            words += [entry["type_id"], 1, entry["nr_elems"]]
        if entry["kind"] in ("INT", "VAR", "DECL_TAG"):
            words.append(0)
        for row in rows:
            match entry["kind"]:
                case "STRUCT" | "UNION":
                    bits = row["bits_offset"] | row.get("bitfield_size", 0) << 24
                    words += [name(row["name"]), row["type_id"], bits]
                case "FUNC_PROTO":
                    words += [name(row["name"]), row["type_id"]]
                case "ENUM":
                    words += [name(row["name"]), row["val"]]
                case "ENUM64":
                    words += [name(row["name"]), row["val"] & 0xFFFFFFFF, row["val"] >> 32]
                case "DATASEC":
                    words += [row["type_id"], row["offset"], row["size"]]
    block = struct.pack(f"<{len(words)}I", *words)
    return HEADER.pack(MAGIC, 1, 0, HEADER.size, 0, len(block), len(block), len(names)) + block + names
