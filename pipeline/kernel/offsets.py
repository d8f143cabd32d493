"""Check the compiled programs against BTF: every read of a kernel struct, where it really reads.

READ (bpf/read.h) puts a tag into a register just before the helper is called: from there the instructions are
followed to the call, and the offset added to the source pointer and the size must be those of the tagged
field. LOAD puts its tag right before the load, which has both, and AT right before the addition. What was
compiled is what is checked, so no mistake of the generator, a macro or the compiler can read the wrong field
in silence. A read without a tag is of our own memory, or a string.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from pipeline.errors import UserError
from pipeline.kernel.source import FIELD_TAG, LOADED, MOVED, Use

__all__ = ["INSTRUCTION", "LOAD_IMM64", "Read", "check", "reads"]

PROBE_READ_KERNEL: Final = 113
MOV64_IMM, MOV64_REG, ADD64_IMM, CALL, JUMP = 0xB7, 0xBF, 0x07, 0x85, 0x05
MOST_STEPS: Final = 64
"""Instructions between a tag and its call."""
Instruction = tuple[int, int, int, int]
"""opcode, registers, offset, constant"""
LOAD_IMM64 = 0x18
LOADS: Final = {0x71: 1, 0x69: 2, 0x61: 4, 0x79: 8}
"""Opcode of a load → bytes."""
INSTRUCTION: Final = struct.Struct("=BBhi")

Read = tuple[int, int, int]
"""(tag, offset, bytes; 0 bytes: only the address is made)"""


def reads(code: bytes) -> Iterator[Read]:
    """The tagged reads of a program; -1 for what could not be followed."""
    instructions = list(INSTRUCTION.iter_unpack(code))
    wide = False
    for at, (opcode, _, _, imm) in enumerate(instructions):
        if wide:  # the second half of a 64-bit constant
            wide = False
            continue
        wide = opcode == LOAD_IMM64
        if opcode == MOV64_IMM and FIELD_TAG <= imm < FIELD_TAG + 2 * LOADED:
            if imm & MOVED:
                addition, _, _, distance = instructions[at + 1]
                yield imm & ~MOVED, abs(distance) if addition == ADD64_IMM else -1, 0
            elif imm & LOADED:
                load, _, distance, _ = instructions[at + 1]
                yield imm & ~LOADED, distance, LOADS.get(load, -1)
            else:
                yield (imm, *_call(instructions, at + 1))


def _call(instructions: list[Instruction], at: int) -> tuple[int, int]:
    """(offset, bytes) of the call that comes next; compilers let equal ends of blocks share one call, behind
    a jump.
    """
    added: dict[int, int] = {}  # register → what was added to it since the tag
    number: dict[int, int] = {}  # register → constant
    for _ in range(MOST_STEPS):
        opcode, registers, distance, imm = instructions[at]
        target, source = registers & 15, registers >> 4
        at += 1
        if opcode == CALL:
            return (added.get(3, 0), number.get(2, -1)) if imm == PROBE_READ_KERNEL else (-1, -1)
        if opcode == JUMP:
            at += distance
        elif opcode == MOV64_IMM:
            number[target] = imm
        elif opcode == MOV64_REG:
            added[target] = added.get(source, 0)
            number.pop(target, None)
        elif opcode == ADD64_IMM:
            added[target] = added.get(target, 0) + imm
        elif opcode & 7 in (5, 6):  # a condition: the call is not sure to come
            return -1, -1
        elif opcode & 7 in (0, 1, 4, 7):  # loads and arithmetic: a new unknown
            added.pop(target, None)
            number.pop(target, None)
            at += opcode == LOAD_IMM64
    return -1, -1


def check(programs: Iterable[tuple[str, bytes]], uses: Iterable[Use]) -> int:
    """Compare every tagged read with BTF; returns how many there were."""
    by_tag = {use.tag: use for use in uses}
    n = 0
    for name, code in programs:
        for tag, offset, size in reads(code):
            use = by_tag[tag]
            if use.place is None or (use.place.offset, size and use.place.size) != (offset, size):
                raise UserError(
                    f"the compiled program {name} reads {size} bytes at {offset} for "
                    f"{use.struct}.{use.field}, BTF says {use.place}: not loading it; please report "
                    "`uname -r` and the version of bcc"
                )
            n += 1
    return n
