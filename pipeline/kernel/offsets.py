"""Check the compiled programs against BTF: every read of a kernel struct, where it really reads.

READ (bpf/read.h) puts a tag into a register just before the helper is called. Here the instructions are followed in
a straight line: at each bpf_probe_read_kernel after a tag, the offset added to the source pointer and the size must
be those of the tagged field. LOAD puts its tag right before the load, which has both. What was compiled is what is checked, so no mistake of the generator, a macro or the
compiler can read the wrong field in silence. A read without a tag is of our own memory, or a string.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from pipeline.errors import UserError
from pipeline.kernel.source import FIELD_TAG, LOADED, Use

__all__ = ["Read", "check", "reads"]

PROBE_READ_KERNEL: Final = 113
MOV64_IMM, MOV64_REG, ADD64_IMM, CALL = 0xB7, 0xBF, 0x07, 0x85
LOAD_IMM64 = 0x18
LOADS: Final = {0x71: 1, 0x69: 2, 0x61: 4, 0x79: 8}
"""Opcode of a load → bytes."""
INSTRUCTION: Final = struct.Struct("=BBhi")

Read = tuple[int, int, int]
"""(tag, offset, bytes)"""


def reads(code: bytes) -> Iterator[Read]:
    """The tagged reads of a program, in order of its instructions."""
    offset: dict[int, int] = {}  # register → what was added to it since the tag
    number: dict[int, int] = {}  # register → constant
    tag = 0
    skip = False
    for opcode, registers, distance, imm in INSTRUCTION.iter_unpack(code):
        if skip:
            skip = False
            continue
        target, source = registers & 15, registers >> 4
        if tag & LOADED:
            yield tag & ~LOADED, distance, LOADS.get(opcode, -1)
            tag = 0
            continue
        if opcode == MOV64_IMM:
            number[target] = imm
            if FIELD_TAG <= imm < FIELD_TAG + 0x10000:
                if tag:  # the read that the last tag announced was not found
                    yield tag, -1, -1
                tag = imm
                offset.clear()
        elif opcode == MOV64_REG:
            offset[target] = offset.get(source, 0)
            number.pop(target, None)
        elif opcode == ADD64_IMM:
            offset[target] = offset.get(target, 0) + imm
        elif opcode == CALL and imm == PROBE_READ_KERNEL and tag:
            yield tag, offset.get(3, 0), number.get(2, -1)
            tag = 0
        elif opcode & 7 in (0, 1, 4, 7) and opcode != CALL:  # loads and arithmetic: a new unknown
            offset.pop(target, None)
            number.pop(target, None)
            skip = opcode == LOAD_IMM64


def check(programs: Iterable[tuple[str, bytes]], uses: Iterable[Use]) -> int:
    """Compare every tagged read with BTF; returns how many there were."""
    by_tag = {use.tag: use for use in uses}
    n = 0
    for name, code in programs:
        for tag, offset, size in reads(code):
            use = by_tag[tag]
            if use.place is None or (use.place.offset, use.place.size) != (offset, size):
                raise UserError(
                    f"the compiled program {name} reads {size} bytes at {offset} for {use.struct}.{use.field}, "
                    f"BTF says {use.place}: not loading it; please report `uname -r` and the version of bcc"
                )
            n += 1
    return n
