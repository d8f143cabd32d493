"""What a compiled program really reads is compared with BTF; a layout that is wrong anywhere is refused."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.kernel.btf import Place, running
from pipeline.kernel.compiler import Compiled, refusal
from pipeline.kernel.offsets import PROBE_READ_KERNEL, check, reads
from pipeline.kernel.source import FIELD_TAG, LOADED, MOVED, Use, unit
from pipeline.schema import Surface, by_name
from tests.live.host import need_kernel

TAG = FIELD_TAG + 7
USE = Use("task_struct", "pid", TAG, Place(40, 4))


def instruction(opcode: int, target: int = 0, source: int = 0, offset: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhi", opcode, target | source << 4, offset, imm)


def move(target: int, imm: int) -> bytes:
    return instruction(0xB7, target, imm=imm)


def copy(target: int, source: int) -> bytes:
    return instruction(0xBF, target, source)


def add(target: int, imm: int) -> bytes:
    return instruction(0x07, target, imm=imm)


def call(helper: int = PROBE_READ_KERNEL) -> bytes:
    return instruction(0x85, imm=helper)


EXIT = instruction(0x95)
STRAIGHT = move(2, 4) + copy(3, 6) + add(3, 40) + call() + EXIT


def test_a_read_by_the_helper() -> None:
    assert list(reads(move(1, TAG) + STRAIGHT)) == [(TAG, 40, 4)]


def test_offsets_add_up() -> None:
    code = move(1, TAG) + copy(4, 6) + add(4, 16) + copy(3, 4) + add(3, 24) + move(2, 4) + call()
    assert list(reads(code)) == [(TAG, 40, 4)]


def test_a_plain_load() -> None:
    for opcode, size in ((0x71, 1), (0x69, 2), (0x61, 4), (0x79, 8)):
        assert list(reads(move(1, TAG | LOADED) + instruction(opcode, 1, 6, 40))) == [(TAG, 40, size)]
    assert list(reads(move(1, TAG | LOADED) + EXIT)) == [(TAG, 0, -1)]


def test_an_address() -> None:
    for distance in (40, -40):  # to a field, and back from it
        assert list(reads(move(1, TAG | MOVED) + add(2, distance))) == [(TAG, 40, 0)]
    assert list(reads(move(1, TAG | MOVED) + EXIT)) == [(TAG, -1, 0)]
    assert check([("program", move(1, TAG | MOVED) + add(2, 40))], [USE]) == 1
    with pytest.raises(UserError, match=r"task_struct\.pid"):
        check([("program", move(1, TAG | MOVED) + add(2, 48))], [USE])


def test_a_call_behind_a_jump() -> None:
    jump = instruction(0x05, offset=2)
    assert list(reads(move(1, TAG) + jump + EXIT + EXIT + STRAIGHT)) == [(TAG, 40, 4)]


def test_a_size_that_is_not_a_constant() -> None:
    code = move(1, TAG) + instruction(0x79, 2, 10, -8) + copy(3, 6) + add(3, 40) + call()
    assert list(reads(code)) == [(TAG, 40, -1)]


@pytest.mark.parametrize(
    "between",
    [
        instruction(0x15, 3, offset=1),  # a condition
        call(1),  # another helper
        instruction(0x05, offset=-1),  # a jump to itself
    ],
)
def test_what_cannot_be_followed_is_not_believed(between: bytes) -> None:
    found = list(reads(move(1, TAG) + between + STRAIGHT))
    assert found == [(TAG, -1, -1)]
    with pytest.raises(UserError, match=r"task_struct\.pid"):
        check([("program", move(1, TAG) + between + STRAIGHT)], [USE])


def test_the_half_of_a_wide_constant_is_no_tag() -> None:
    wide = instruction(0x18, 1, imm=0) + instruction(0xB7, imm=TAG)
    assert list(reads(wide + STRAIGHT)) == []


@pytest.mark.parametrize("place", [Place(44, 4), Place(40, 8), Place(0, 4), None])
def test_a_field_elsewhere_is_refused(place: Place | None) -> None:
    code = [("program", move(1, TAG) + STRAIGHT)]
    assert check(code, [USE]) == 1
    with pytest.raises(UserError, match=r"program reads 4 bytes at 40 for task_struct\.pid"):
        check(code, [replace(USE, place=place)])


Unit = tuple[list[tuple[str, bytes]], list[Use]]
"""Programs by name, and the fields that their sources name."""
SURFACES = {name: [s for s in schema.surfaces if s.hooks] for name, schema in by_name().items()}


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> list[Unit]:
    """Each kind's first surface as it is compiled for this kernel, then each one's second, …"""
    need_kernel()
    folder: Path = tmp_path_factory.mktemp("compiled")
    return [compiled(number, folder / "log") for number in range(max(map(len, SURFACES.values())))]


def compiled(number: int, log: Path) -> Unit:
    choice: dict[str, Surface] = {}
    for name, surfaces in SURFACES.items():
        place = min(number, len(surfaces) - 1) if by_name()[name].always else number
        for surface in surfaces[place : place + 1]:
            if is_known({name: surface}, log):
                choice[name] = surface
    made = Compiled(rings=2, processes=1024, arguments=1 << 20, log=log, choice=choice)
    names = {
        program
        for surface in choice.values()
        for program in (*surface.hooks.values(), *surface.before.values(), *surface.parts)
    }
    if any(surface.name == "sys_exit" for surface in choice.values()):
        names.add("on_sys_exit")
    return [(name, made.code(name)) for name in sorted(names)], unit(running(), choice)[1]


def is_known(choice: dict[str, Surface], log: Path) -> bool:
    """Whether this kernel has the hooks and the fields."""
    try:
        unit(running(), choice)
    except UserError:
        return False
    hooks = [hook for surface in choice.values() for hook in (*surface.hooks, *surface.before)]
    return not any(refusal(hook, log).startswith("this kernel has no") for hook in hooks)


@pytest.mark.kernel
def test_all_programs_read_what_btf_says(units: Sequence[Unit]) -> None:
    for programs, known in units:
        assert check(programs, known) >= len(programs)


@pytest.mark.kernel
def test_every_layout_that_is_used_is_really_checked(units: Sequence[Unit]) -> None:
    """Shift one field at a time, as a wrong header would: whatever any program reads, it is noticed."""
    for programs, known in units:
        found = [read for _, code in programs for read in reads(code)]
        read = {tag for tag, _, _ in found}
        moved = {tag for tag, _, size in found if size == 0}
        assert len(read) > 10
        for i, use in enumerate(known):
            if use.tag not in read:
                continue
            assert use.place is not None
            wrong_places = [Place(use.place.offset + 8, use.place.size)]
            if use.tag not in moved:  # an address has no size
                wrong_places.append(Place(use.place.offset, use.place.size * 2))
            for wrong in wrong_places:
                falsified = [*known[:i], replace(use, place=wrong), *known[i + 1 :]]
                with pytest.raises(UserError, match=f"{use.struct}.{use.field}"):
                    check(programs, falsified)


@pytest.mark.kernel
def test_every_field_that_the_sources_name_is_checked(units: Sequence[Unit]) -> None:
    """Somewhere: what helpers in common read, not every choice does."""
    named, read = set(), set()
    for programs, known in units:
        tags = {tag for _, code in programs for tag, _, _ in reads(code)}
        named |= {(use.struct, use.field) for use in known if use.place}
        read |= {(use.struct, use.field) for use in known if use.tag in tags}
    if not running().arguments("module_load"):  # a kernel without modules
        named = {(struct, field) for struct, field in named if struct != "module"}
    assert named - read <= ELSEWHERE


ELSEWHERE = {
    ("signal_struct", "live"),
    ("signal_struct", "nr_threads"),
}
"""Read on kernels whose hook at exit does not say which thread is the last."""
