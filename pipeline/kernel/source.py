"""The generated part of the BPF source: structs from the schemas, offsets from BTF.

What the hand-written part (bpf/) reads of the kernel it says itself, by READ and AT; this module finds those
names there and defines what they need.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.chunk import HIDDEN, PAYLOAD
from pipeline.errors import UserError
from pipeline.event import UNKNOWN
from pipeline.kernel.btf import Btf, Place
from pipeline.schema import COMMON, KINDS, TYPES, Field, Schema, by_name

__all__ = ["BPF", "FIELD_TAG", "LOADED", "MOVED", "Use", "generate", "unit", "uses"]

BPF: Final = Path(__file__).resolve().parents[2] / "bpf"
FIELD_TAG: Final = 0x5A000000
"""FIELD_… numbers start here, so that a tag is told from any other number in a compiled program."""
LOADED: Final = 0x8000
"""Bit of a tag that stands before a plain load, not before a call of the helper."""
MOVED: Final = 0x4000
"""Bit of a tag that stands before the addition which makes the address of a field."""

USED: Final = re.compile(r"\b(READ|LOAD|LOAD_IF|AT|AROUND)\((\w+), (\w+),")
INCLUDED: Final = re.compile(r'^#include "(.+)"$', re.M)
SIZED: Final = re.compile(r"\bSIZE_(\w+)\b")
C_TYPES: Final = {1: "__u8", 2: "__u16", 4: "__u32", 8: "__u64"}


@dataclass(frozen=True, slots=True)
class Use:
    """A field of a kernel struct that the programs read."""

    struct: str
    field: str
    tag: int
    place: Place | None
    """None: this kernel does not have it (allowed for LOAD_IF alone)."""


def uses(btf: Btf, folder: Path = BPF) -> list[Use]:
    """Every field that the sources name, with its place in this kernel."""
    read: set[tuple[str, str]] = set()
    optional: set[tuple[str, str]] = set()
    for path in sorted(folder.glob("*.[ch]")):
        text = re.sub(r"//.*|^\s*#define .*(\\\n.*)*", "", path.read_text(), flags=re.M)
        for macro, struct, field in USED.findall(text):
            (optional if macro == "LOAD_IF" else read).add((struct, field))
    found = []
    for number, (struct, field) in enumerate(sorted(read | optional), 1):
        place = btf.place(struct, field)
        if place is None and (struct, field) in read:
            raise UserError(
                f"this kernel's BTF has no {struct}.{field.replace('__', '.')}: "
                "promissory does not know this kernel yet; please report `uname -r`"
            )
        found.append(Use(struct, field, FIELD_TAG + number, place))
    return found


def unit(btf: Btf, folder: Path = BPF) -> str:
    """The whole source for bcc in one piece: bcc rewrites map methods only in the text that it is given, not
    in files that the text includes.
    """
    root = (folder / "programs.c").read_text()
    return generate(btf, folder=folder) + INCLUDED.sub(lambda m: (folder / m[1]).read_text(), root)


def generate(btf: Btf, schemas: Mapping[str, Schema] | None = None, folder: Path = BPF) -> str:
    """The C that stands before bpf/programs.c."""
    schemas = by_name() if schemas is None else schemas
    lines = [
        f"#define PAYLOAD {PAYLOAD}",
        f"#define KINDS {KINDS}",
        f"#define LOADED {LOADED:#x}",
        f"#define MOVED {MOVED:#x}",
        f"#define HIDDEN {HIDDEN}ULL",
        f"#define UNKNOWN {UNKNOWN}U",
        "struct promise { __u32 of, have; };",
        *_struct("common", COMMON, ()),
    ]
    for schema in schemas.values():
        lines.append(f"#define KIND_{schema.name} {schema.number}")
        lines.append(f"#define ROOM_{schema.name} {schema.room}")
        lines += [f"#define PROMISE_{schema.name}_{p.name} {i}" for i, p in enumerate(schema.promises)]
        lines += _struct(schema.name, schema.fields, [p.name for p in schema.promises], schema.room)
    lines += [
        "struct chunk {",
        "    __u64 sequence, id, time;",
        "    __u32 part, parts;",
        "    __u16 kind, size, flags, faults;",
        "    union {",
        "        __u8 data[PAYLOAD];",
        "        struct payload_common common;",
        *(f"        struct payload_{name} {name};" for name in schemas),
        "    };",
        "};",
    ]
    for use in uses(btf, folder):
        lines += _offset(use)
    for struct in sorted({s for p in folder.glob("*.[ch]") for s in SIZED.findall(p.read_text())}):
        size = btf.size(struct)
        if size is None:
            raise UserError(f"this kernel's BTF has no struct {struct}; please report `uname -r`")
        lines.append(f"#define SIZE_{struct} {size}")
    return "\n".join(lines) + "\n"


def _struct(name: str, fields: Iterable[Field], promises: Iterable[str], room: int = 0) -> list[str]:
    body = [
        f"    char {f.name}[16];" if f.type == "comm" else f"    {TYPES[f.type][0]} {f.name};" for f in fields
    ]
    body += [f"    struct promise {promise};" for promise in promises]
    if room:
        body.append(f"    __u8 room[{room}];")
    return [f"struct payload_{name} {{", *body, "};"]


def _offset(use: Use) -> list[str]:
    name = f"{use.struct}__{use.field}"
    place = use.place or Place(0, 1)
    lines = [
        f"#define HAVE_{name} {int(use.place is not None)}",
        f"#define OFFSET_{name} {place.offset}",
        f"#define FIELD_{name} {use.tag:#x}",
    ]
    if place.size in C_TYPES:
        lines.append(f"#define TYPE_{name} {C_TYPES[place.size]}")
        lines.append(f'#define WIDTH_{name} "u{8 * place.size}"')
    return lines
