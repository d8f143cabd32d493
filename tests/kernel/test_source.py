"""The generated part of the BPF source, against a C compiler's view of the same structs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline.chunk import HEADER, STRIDE
from pipeline.errors import UserError
from pipeline.kernel.btf import Btf, Place
from pipeline.kernel.source import BPF, FIELD_TAG, generate, unit, uses
from pipeline.schema import by_name


class AnyKernel(Btf):
    """A kernel that has every field, and each is a u64 at 8."""

    def __init__(self, without: str = "") -> None:
        super().__init__([])
        self._without = without

    def place(self, struct: str, field: str) -> Place | None:
        return None if field == self._without else Place(8, 8)

    def size(self, struct: str) -> int | None:
        return None if struct == self._without else 64


def offsets(folder: Path, asked: list[str]) -> list[int]:
    """What gcc says of expressions over the generated structs."""
    types = "".join(f"typedef {c} {name};\n" for name, c in C_TYPES.items())
    prints = "".join(f'printf("%zu\\n", (size_t)({expression}));\n' for expression in asked)
    source = folder / "ask.c"
    includes = "#include <stdio.h>\n#include <stddef.h>\n"
    source.write_text(f"{includes}{types}{generate(AnyKernel())}int main(void) {{ {prints} return 0; }}\n")
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
        if schema.promises:
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


def test_every_use_has_a_tag_of_its_own() -> None:
    found = uses(AnyKernel())
    tags = [use.tag for use in found]
    assert len(set(tags)) == len(tags) > 50
    assert min(tags) > FIELD_TAG
    assert {("task_struct", "tgid"), ("mount", "mnt")} <= {(use.struct, use.field) for use in found}


def test_a_field_that_a_kernel_lacks() -> None:
    with pytest.raises(UserError, match=r"no task_struct\.group_leader"):
        uses(AnyKernel(without="group_leader"))


def test_a_field_that_a_kernel_may_lack() -> None:
    (use,) = [use for use in uses(AnyKernel(without="loginuid")) if use.field == "loginuid"]
    assert use.place is None
    assert "#define HAVE_task_struct__loginuid 0" in generate(AnyKernel(without="loginuid"))
    assert "#define HAVE_task_struct__loginuid 1" in generate(AnyKernel())


def test_a_struct_that_a_kernel_lacks() -> None:
    with pytest.raises(UserError, match="no struct upid"):
        generate(AnyKernel(without="upid"))


def test_the_unit_holds_every_source() -> None:
    text = unit(AnyKernel())
    for path in BPF.glob("*.[ch]"):
        if path.name != "programs.c":
            assert path.read_text() in text
