"""The generated part of the BPF source, against a C compiler's view of the same structs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from pipeline.chunk import HEADER, STRIDE
from pipeline.errors import UserError
from pipeline.kernel.btf import Btf, Place
from pipeline.kernel.calls import NUMBERS, TABLE
from pipeline.kernel.source import (
    BPF,
    FIELD_TAG,
    INCLUDED,
    SHARED,
    Choice,
    Use,
    generate,
    selected,
    shared,
    unit,
    uses,
)
from pipeline.schema import Surface, by_name
from tests.btf_types import encoded


class AnyKernel(Btf):
    """A kernel that has every field, and each is a u64 at 8."""

    def __init__(self, without: str = "") -> None:
        super().__init__(encoded([]))
        self._without = without

    def place(self, struct: str, field: str) -> Place | None:
        return None if field == self._without else Place(8, 8)

    def size(self, struct: str) -> int | None:
        return None if struct == self._without else 64

    def function(self, name: str) -> tuple[int, tuple[str, ...]] | None:
        return None if name == self._without else (1, ("first", "second"))


SURFACES = {name: [s for s in schema.surfaces if s.hooks] for name, schema in by_name().items()}
CHOICES: list[Choice] = [
    {name: surfaces[number] for name, surfaces in SURFACES.items() if number < len(surfaces)}
    for number in range(max(map(len, SURFACES.values())))
]
"""Each kind's first surface, each one's second, …"""


def whole(kernel: Btf) -> str:
    """The unit of every kind's first surface."""
    return unit(kernel, CHOICES[0])[0]


def offsets(folder: Path, asked: list[str]) -> list[int]:
    """What gcc says of expressions over the generated structs."""
    types = "".join(f"typedef {c} {name};\n" for name, c in C_TYPES.items())
    prints = "".join(f'printf("%zu\\n", (size_t)({expression}));\n' for expression in asked)
    source = folder / "ask.c"
    includes = "#include <stdio.h>\n#include <stddef.h>\n"
    structs = generate(AnyKernel(), "", (), {})
    source.write_text(f"{includes}{types}{structs}int main(void) {{ {prints} return 0; }}\n")
    subprocess.run(["gcc", "-o", folder / "ask", source], check=True)
    return [
        int(line) for line in subprocess.run([folder / "ask"], check=True, capture_output=True).stdout.split()
    ]


C_TYPES = {
    "__u8": "unsigned char",
    "__u16": "unsigned short",
    "__u32": "unsigned int",
    "__s32": "int",
    "__u64": "unsigned long long",
}


def test_a_c_compiler_and_numpy_see_the_same_bytes(tmp_path: Path) -> None:
    asked: dict[str, int] = {}
    for name in ("sequence", "id", "time", "part", "parts", "kind", "size", "flags", "faults"):
        asked[f"offsetof(struct chunk, {name})"] = HEADER.fields[name][1] - 8  # type: ignore[index]
    asked["sizeof(struct chunk)"] = STRIDE - 8
    for schema in by_name().values():
        start = STRIDE - schema.dtype.itemsize + HEADER.fields["payload"][1]  # type: ignore[index]
        fields = schema.dtype.fields
        assert fields is not None
        for field in schema.fields:
            struct = f"struct payload_{schema.name}"
            asked[f"offsetof({struct}, {field.name})"] = fields[field.name][1] - start
            asked[f"sizeof((({struct} *)0)->{field.name})"] = fields[field.name][0].itemsize
        for promise in schema.promises:
            for part in ("of", "have"):
                asked[f"offsetof(struct payload_{schema.name}, {promise.name}.{part})"] = (
                    fields[f"{promise.name}_{part}"][1] - start
                )
        if schema.promises and schema.room:
            asked[f"offsetof(struct payload_{schema.name}, room)"] = fields["room"][1] - start
        asked[f"ROOM_{schema.name}"] = schema.room
    assert len(asked) > 150
    assert dict(zip(asked, offsets(tmp_path, list(asked)), strict=True)) == asked


def test_common_fields_stand_first_in_every_kind() -> None:
    common = next(iter(by_name().values())).dtype.fields
    assert common is not None
    for schema in by_name().values():
        fields = schema.dtype.fields
        assert fields is not None
        assert {name: fields[name] for name in ("exec_id", "pid", "comm")} == {
            name: common[name] for name in ("exec_id", "pid", "comm")
        }


def test_a_file_that_is_not_named_stands_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "programs.c").write_text('first\n#include "b.c"\n#include "c.h"\nlast\n')
    for name in ("a.c", "b.c", "c.h", "d.h"):
        (tmp_path / name).write_text(f"this is {name}\n")
    (tmp_path / "e.c").write_text("#ifdef WITH_exec\nexec\n#endif\n#ifdef WITH_fork\nfork\n#endif\n")
    text, _ = unit(AnyKernel(), {"fork": SURFACES["fork"][0]}, tmp_path)
    written = "first\nthis is b.c\n\nthis is c.h\n\nlast\nthis is a.c\nfork\n"
    assert f"\n{written}PROGRAM(entry_" in text
    assert text.endswith("PROGRAM(entry_fork) { return enter(ctx, KIND_fork); }\n")


@pytest.mark.parametrize("choice", CHOICES)
def test_every_use_has_a_tag_of_its_own(choice: Choice) -> None:
    _, found = unit(AnyKernel(), choice)
    tags = [use.tag for use in found]
    assert len(set(tags)) == len(tags) > 10
    assert min(tags) > FIELD_TAG
    assert {("task_struct", "tgid"), ("mount", "mnt")} <= {(use.struct, use.field) for use in found}


def test_a_field_that_a_kernel_lacks() -> None:
    with pytest.raises(UserError, match=r"no task_struct\.group_leader"):
        whole(AnyKernel(without="group_leader"))


def test_a_field_that_a_kernel_may_lack() -> None:
    text = "READ_IF(task_struct, loginuid, task, 0) READ(task_struct, pid, task)"
    known, unknown = AnyKernel(), AnyKernel(without="loginuid")
    found = uses(unknown, text)
    assert found == [
        Use("task_struct", "loginuid", FIELD_TAG + 1, None),
        Use("task_struct", "pid", FIELD_TAG + 2, Place(8, 8)),
    ]
    assert "#define HAVE_task_struct__loginuid 0" in generate(unknown, text, found, {})
    assert "#define HAVE_task_struct__loginuid 1" in generate(known, text, uses(known, text), {})


def test_what_a_macro_or_a_comment_names_is_no_use() -> None:
    text = "#define READ_ALL(x) READ(one, x, y)\n// LOAD(two, x, y)\nLOAD(three, x, y)\n"
    assert [use.struct for use in uses(AnyKernel(), text)] == ["three"]


def test_a_struct_that_a_kernel_lacks() -> None:
    with pytest.raises(UserError, match="no struct upid"):
        whole(AnyKernel(without="upid"))


def test_arguments_of_a_function_by_name() -> None:
    text = "ARGUMENT(some_call, second); RETURNED(other_call)"
    made = generate(AnyKernel(without="other_call"), text, (), {})
    assert "#define PARAMETERS_some_call 2" in made
    assert "#define PARAMETER_some_call__second 1" in made
    assert "other_call 2" not in made


def test_tables_of_tail_calls() -> None:
    made = generate(
        AnyKernel(), "", (), {"exec": Surface("lsm", parts=("one", "two")), "fork": Surface("lsm")}
    )
    assert "BPF_PROG_ARRAY(calls_exec, 2);\n#define CALL_one 0\n#define CALL_two 1" in made
    assert "calls_fork" not in made
    assert "calls_sys_exit" not in made
    made = generate(AnyKernel(), "", (), {"exec_failed": Surface("sys_exit", {"sys_exit/execve": "failed"})})
    assert f"BPF_PROG_ARRAY(calls_sys_exit, {TABLE});" in made
    assert max(place for places in NUMBERS.values() for place in places) < TABLE


def test_one_program_serves_all_kinds_at_a_shared_hook() -> None:
    """What a schema names there is not loaded by itself: it must be that program, and has no parts."""
    hooks = [
        (hook, program, surface.parts)
        for schema in by_name().values()
        for surface in schema.surfaces
        for hook, program in (*surface.hooks.items(), *surface.before.items())
        if hook in SHARED
    ]
    assert len(hooks) == 3
    assert all((program, parts) == (f"on_{SHARED[hook]}", ()) for hook, program, parts in hooks)
    state, calls = SHARED
    surfaces = {kind: Surface("x", {state: "on_sock_state"}) for kind in ("listen", "connect")}
    assert shared({**surfaces, "exec": Surface("x", {"raw_tp/other": "p"})}) == {state: {"listen", "connect"}}
    assert shared({"bind": Surface("x", {"sys_exit/bind": "p"})}) == {calls: {"bind"}}


LINES = """always
#ifdef WITH_a
a
#ifdef WITH_a_lsm
a by lsm
#else
a, not by lsm
#endif
#ifndef WITH_b
no b
#endif
#ifdef RINGS
rings
#else
no rings
#endif
#endif
#ifdef WITH_b
b
#if SOMETHING > 1
something
#endif
#endif
end"""


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        (set(), "always|end"),
        ({"WITH_a"}, "always|a|a, not by lsm|no b|#ifdef RINGS|rings|#else|no rings|#endif|end"),
        (
            {"WITH_a", "WITH_a_lsm", "WITH_b"},
            "always|a|a by lsm|#ifdef RINGS|rings|#else|no rings|#endif"
            "|b|#if SOMETHING > 1|something|#endif|end",
        ),
        ({"WITH_b"}, "always|b|#if SOMETHING > 1|something|#endif|end"),
        ({"WITH_a_lsm"}, "always|end"),
    ],
)
def test_only_what_was_chosen_is_compiled(flags: set[str], kept: str) -> None:
    assert selected(LINES, flags).splitlines() == kept.split("|")


def test_the_unit_holds_every_header() -> None:
    assert {path.name for path in BPF.glob("*.h")} <= set(INCLUDED.findall((BPF / "programs.c").read_text()))


@pytest.mark.parametrize("choice", CHOICES)
def test_the_unit_holds_the_programs_of_the_choice_and_no_others(choice: Choice) -> None:
    text, _ = unit(AnyKernel(), choice)
    there = set(PROGRAM.findall(text))
    entries = {"entry_before", *(f"entry_{kind}" for kind, surface in choice.items() if surface.hooks)}
    chosen = {program for surface in choice.values() for program in programs(surface)}
    assert there - ALWAYS == chosen - ALWAYS | entries


def programs(surface: Surface) -> tuple[str, ...]:
    return (*surface.hooks.values(), *surface.before.values(), *surface.parts)


PROGRAM = re.compile(r"^PROGRAM\((\w+)\)", re.M)
ALWAYS = {
    program
    for schema in by_name().values()
    if schema.always
    for surface in schema.surfaces
    for program in programs(surface)
} | {"on_sys_exit"}
"""Programs of kinds that are attached always, and of no kind."""
