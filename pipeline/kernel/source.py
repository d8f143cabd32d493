"""The generated part of the BPF source: structs from the schemas, offsets from BTF.

What the hand-written part (bpf/) reads of the kernel it says itself, by READ and AT; this module finds those
names there and defines what they need.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.chunk import HIDDEN, OWN_RINGS, PAYLOAD
from pipeline.errors import UserError
from pipeline.event import UNKNOWN
from pipeline.kernel.btf import Btf, Place
from pipeline.kernel.calls import COMPAT, TABLE
from pipeline.schema import COMMON, KINDS, TYPES, Field, Schema, Surface, by_name

__all__ = [
    "BPF",
    "DISPATCHER",
    "FIELD_TAG",
    "LOADED",
    "MOVED",
    "SHARED",
    "Choice",
    "Use",
    "fed",
    "generate",
    "lacking",
    "selected",
    "shared",
    "unit",
    "uses",
]

BPF: Final = Path(__file__).resolve().parents[2] / "bpf"
FIELD_TAG: Final = 0x5A000000
"""FIELD_… numbers start here, so that a tag is told from any other number in a compiled program."""
LOADED: Final = 0x8000
"""Bit of a tag that stands before a plain load, not before a call of the helper."""
MOVED: Final = 0x4000
"""Bit of a tag that stands before the addition which makes the address of a field."""

USED: Final = re.compile(r"\b(READ|LOAD|GET|READ_IF|LOAD_IF|AT|AROUND)\((\w+), (\w+),")
INCLUDED: Final = re.compile(r'^#include "(.+)"$', re.M)
SIZED: Final = re.compile(r"\bSIZE_(\w+)\b")
CALLED: Final = re.compile(r"\b(?:RETURNED|ARGUMENT|UNTYPED)\((\w+)")
CONDITION: Final = re.compile(r"#\s*if(?:n?def)?\b(?:\s+(WITH_\w+))?")
PLAIN: Final = re.compile(r"//.*|^\s*#define .*(\\\n.*)*", re.M)
C_TYPES: Final = {1: "__u8", 2: "__u16", 4: "__u32", 8: "__u64"}
ARRAYS: Final = {"comm": 16, "tag": 8}
"""Types that are arrays of bytes in C → their length."""

DISPATCHER: Final = "raw_tp/sys_exit"
"""The hook of bpf/sys_exit.c, which calls the handlers of hooks of type sys_exit."""
SHARED: Final = {"raw_tp/inet_sock_set_state": "sock_state", DISPATCHER: "sys_exit"}
"""Hooks whose one program (bpf/NAME.c, `on_NAME`) serves several kinds: a link of its own for each would cost
every run as much again. Hook → NAME, which stands for a kind in the names of pins.
"""
Choice = Mapping[str, Surface]
"""Kind → the surface that it is to come from."""


@dataclass(frozen=True, slots=True)
class Use:
    """A field of a kernel struct that the programs read."""

    struct: str
    field: str
    tag: int
    place: Place | None
    """None: this kernel does not have it (allowed for READ_IF and LOAD_IF alone)."""


def uses(btf: Btf, text: str) -> list[Use]:
    """Every field that a source text names, with its place in this kernel."""
    read: set[tuple[str, str]] = set()
    optional: set[tuple[str, str]] = set()
    for macro, struct, field in USED.findall(PLAIN.sub("", text)):
        (optional if macro.endswith("_IF") else read).add((struct, field))
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


def unit(btf: Btf, choice: Choice, folder: Path = BPF) -> tuple[str, list[Use]]:
    """The whole source for bcc in one piece, and the fields that it reads: bcc rewrites map methods only in
    the text that it is given, not in files that the text includes. Files that programs.c does not name stand
    at the end.
    """
    text = _text(choice, folder) + "".join(_entries(choice))
    used = uses(btf, text)
    return generate(btf, text, used, choice), used


def _text(choice: Choice, folder: Path) -> str:
    root = (folder / "programs.c").read_text()
    named = {"programs.c", *INCLUDED.findall(root)}
    others = [path.read_text() for path in sorted(folder.glob("*.c")) if path.name not in named]
    whole = INCLUDED.sub(lambda m: (folder / m[1]).read_text(), root) + "".join(others)
    return selected(whole, _flags(choice))


def lacking(btf: Btf, choice: Choice, folder: Path = BPF) -> dict[str, str]:
    """Kinds whose programs read a field that this kernel does not have, and which. UserError: all programs
    do.
    """
    found: dict[str, str] = {}
    try:
        uses(btf, _text(choice, folder))
    except UserError:  # whose is it?
        uses(btf, _text({}, folder))
        for kind, surface in choice.items():
            try:
                uses(btf, _text({kind: surface}, folder))
            except UserError as error:
                found[kind] = str(error)
    return found


def fed(choice: Choice) -> set[str]:
    """Those of chunk.OWN_RINGS that the pipeline will fill, by their names."""
    names = {surface.name for surface in choice.values()} | ({"audit"} & choice.keys())
    return names & OWN_RINGS.keys()


def shared(choice: Choice) -> dict[str, set[str]]:
    """Those of SHARED that a choice wants, in their order → the kinds that they serve."""
    found: dict[str, set[str]] = {hook: set() for hook in SHARED}
    for kind, surface in choice.items():
        for hook in surface.hooks:
            at = DISPATCHER if hook.startswith("sys_exit/") else hook
            if at in SHARED:
                found[at].add(kind)
    return {hook: kinds for hook, kinds in found.items() if kinds}


def _flags(choice: Choice) -> set[str]:
    flags = {f"WITH_{kind}" for kind in choice}
    flags |= {f"WITH_{kind}_{surface.name}" for kind, surface in choice.items()}
    flags |= {f"WITH_family_{schema.family}" for kind, schema in by_name().items() if kind in choice}
    flags |= {f"WITH_{SHARED[hook]}" for hook in shared(choice)}
    if fed(choice):
        flags.add("WITH_pids")
    return flags


def selected(text: str, flags: Set[str]) -> str:
    """The text without what stands between `#ifdef WITH_…` and its `#endif` (or `#else`) for flags that are
    not set.
    """
    kept: list[str] = []
    open_: list[bool | None] = []  # per open condition: is it true? None: not ours to decide
    for line in text.splitlines():
        word = line.lstrip().removeprefix("#").lstrip()
        if line.lstrip().startswith("#") and word.startswith("if"):
            found = CONDITION.match(line.lstrip())
            flag = found[1] if found else None
            open_.append((flag in flags) != word.startswith("ifndef") if flag else None)
            if flag is None and False not in open_:
                kept.append(line)
        elif line.lstrip().startswith("#") and word.startswith("else") and open_[-1] is not None:
            open_[-1] = not open_[-1]
        elif line.lstrip().startswith("#") and word.startswith("endif"):
            ours = open_.pop() is not None
            if not ours and False not in open_:
                kept.append(line)
        elif False not in open_:
            kept.append(line)
    return "\n".join(kept) + "\n"


def generate(
    btf: Btf, text: str, used: Iterable[Use], choice: Choice, schemas: Mapping[str, Schema] | None = None
) -> str:
    """A source text with the C before it that it needs."""
    schemas = by_name() if schemas is None else schemas
    lines = [
        f"#define PAYLOAD {PAYLOAD}",
        f"#define KINDS {KINDS}",
        f"#define LOADED {LOADED:#x}",
        f"#define MOVED {MOVED:#x}",
        f"#define HIDDEN {HIDDEN}ULL",
        f"#define UNKNOWN {UNKNOWN}U",
        f"#define SYS_EXIT_COMPAT {COMPAT}",
        "struct promise { __u32 of, have; };",
        "struct ip { __u32 version; __u8 bytes[16]; };",
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
        *_tables(choice),
    ]
    for use in used:
        lines += _offset(use)
    for struct in sorted(set(SIZED.findall(text))):
        size = btf.size(struct)
        if size is None:
            raise UserError(f"this kernel's BTF has no struct {struct}; please report `uname -r`")
        lines.append(f"#define SIZE_{struct} {size}")
    for function in sorted(set(CALLED.findall(PLAIN.sub("", text)))):
        lines += _function(btf, function)
    return "\n".join(lines) + "\n" + text


def _entries(choice: Choice) -> Iterator[str]:
    """The programs that stay at the hooks (bpf/entry.h)."""
    kinds = [kind for kind, surface in choice.items() if surface.hooks]
    for name, number in {"before": "0", **{kind: f"KIND_{kind}" for kind in kinds}}.items():
        yield f"PROGRAM(entry_{name}) {{ return enter(ctx, {number}); }}\n"


def _tables(choice: Choice) -> Iterator[str]:
    """The tables of tail calls, and each part's place."""
    if DISPATCHER in shared(choice):
        yield f"BPF_PROG_ARRAY(calls_sys_exit, {TABLE});"
    for kind, surface in choice.items():
        if surface.parts:
            yield f"BPF_PROG_ARRAY(calls_{kind}, {len(surface.parts)});"
            yield from (f"#define CALL_{part} {place}" for place, part in enumerate(surface.parts))


def _function(btf: Btf, name: str) -> Iterator[str]:
    """How many arguments a function of the kernel takes, and which is which; nothing where there is none."""
    found = btf.function(name)
    if found is not None:
        yield f"#define PARAMETERS_{name} {len(found[1])}"
        yield from (f"#define PARAMETER_{name}__{p} {place}" for place, p in enumerate(found[1]))


def _struct(name: str, fields: Iterable[Field], promises: Iterable[str], room: int = 0) -> list[str]:
    body = [
        f"    {TYPES[f.type][0]} {f.name}{f'[{ARRAYS[f.type]}]' if f.type in ARRAYS else ''};" for f in fields
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
