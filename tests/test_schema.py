"""Schemas: the layout is what a C compiler makes of the generated structs; bad files are refused."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest

from pipeline.chunk import HEADER, PAYLOAD, STRIDE
from pipeline.kernel.btf import Btf
from pipeline.kernel.source import generate
from pipeline.schema import (
    COMMON,
    FOLDER,
    KINDS,
    TYPES,
    Field,
    Promise,
    Schema,
    SchemaError,
    by_name,
    by_number,
    families,
    load,
)
from tests.btf_types import encoded

HEAD = STRIDE - PAYLOAD
HEADER_MEMBERS = ("sequence", "id", "time", "part", "parts", "kind", "size", "flags", "faults")


def offsets(schemas: Mapping[str, Schema], folder: Path) -> dict[str, int]:
    """What gcc says: struct.member → offset, and struct → size."""
    chunk = [f"chunk.{member}" for member in (*HEADER_MEMBERS, "data")]
    asked = [*chunk, *(f"payload_common.{field.name}" for field in COMMON)]
    for schema in schemas.values():
        members = [field.name for field in schema.fields]
        members += [f"{promise.name}.{part}" for promise in schema.promises for part in ("of", "have")]
        asked += [f"payload_{schema.name}.{member}" for member in members]
        if schema.room:
            asked.append(f"payload_{schema.name}.room")
    structs = ["chunk", *(f"payload_{name}" for name in schemas)]
    (folder / "asked.c").write_text(
        "#include <linux/types.h>\n#include <stddef.h>\n#include <stdio.h>\n"
        + generate(Btf(encoded([])), "", (), {}, schemas)
        + "int main(void)\n{\n"
        + "".join(
            f'    printf("{name} %zu\\n", offsetof(struct {name.replace(".", ", ", 1)}));\n' for name in asked
        )
        + "".join(f'    printf("{name} %zu\\n", sizeof(struct {name}));\n' for name in structs)
        + "    return 0;\n}\n"
    )
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", folder / "asked", folder / "asked.c"], check=True)
    said = subprocess.run([folder / "asked"], check=True, capture_output=True, text=True).stdout
    return {name: int(offset) for name, offset in map(str.split, said.splitlines())}


def check(schemas: Mapping[str, Schema], folder: Path) -> None:
    said = offsets(schemas, folder)
    assert said["chunk"] == STRIDE - 8
    for member in (*HEADER_MEMBERS, "data"):
        name = "payload" if member == "data" else member
        assert HEADER.fields is not None
        assert said[f"chunk.{member}"] + 8 == HEADER.fields[name][1]
    for schema in schemas.values():
        struct, places = f"payload_{schema.name}", schema.dtype.fields
        assert places is not None
        for field in schema.fields:
            assert places[field.name][1] == HEAD + said[f"{struct}.{field.name}"], field.name
        for promise in schema.promises:
            for part in ("of", "have"):
                assert places[f"{promise.name}_{part}"][1] == HEAD + said[f"{struct}.{promise.name}.{part}"]
        if schema.room and schema.promises:
            assert places["room"][1] == HEAD + said[f"{struct}.room"] == STRIDE - schema.room
        assert said[struct] <= PAYLOAD
        assert schema.dtype.itemsize == STRIDE


def test_numpy_and_the_compiler_agree_on_every_kind(tmp_path: Path) -> None:
    check(by_name(), tmp_path)


def test_numpy_and_the_compiler_agree_on_any_fields(tmp_path: Path) -> None:
    """Fields of every type in every order, with and without promises."""
    draw = random.Random(1)
    made = {}
    for number in range(1, 80):
        fields = list(COMMON)
        for i in range(draw.randrange(12)):
            fields.append(Field(f"own_{i}", draw.choice(list(TYPES)), "", (f"own_{i}",)))
        promises = tuple(Promise(f"promise_{i}", "text", "path", "") for i in range(draw.randrange(4)))
        schema = Schema(f"made_{number}", "", tuple(fields), promises, number)
        try:
            _ = schema.dtype
        except SchemaError:
            continue
        if schema.room:
            made[schema.name] = schema
    assert len(made) > 50
    check(made, tmp_path)


def test_every_head_begins_with_the_common_block() -> None:
    first = next(iter(by_name().values()))
    for schema in by_name().values():
        assert schema.fields[: len(COMMON)] == COMMON
        for field in COMMON:
            assert schema.dtype.fields is not None
            assert first.dtype.fields is not None
            assert schema.dtype.fields[field.name] == first.dtype.fields[field.name]


def test_values_come_back_through_the_view() -> None:
    """A number written by name is read by name, and touches no other."""
    for schema in by_name().values():
        chunk = np.zeros(1, HEADER)
        view = chunk.view(schema.dtype)
        names = [name for name in schema.dtype.names or () if name != "room"]
        for i, name in enumerate(names, 1):
            view[name] = (
                np.void(bytes([i]) * view[name].itemsize) if view[name].dtype.kind == "V" else i % 200
            )
        view["room"] = 0xFF
        for i, name in enumerate(names, 1):
            value = view[name][0]
            wanted = bytes([i]) * value.nbytes if value.dtype.kind == "V" else i % 200
            assert (value.tobytes() if value.dtype.kind == "V" else value) == wanted, name
        assert not chunk["length"].any(), "the header is left alone"
        assert not chunk["faults"].any()


def test_the_kinds_there_are() -> None:
    assert {f"{name}.toml" for name in by_name()} | {"common.toml"} == {p.name for p in FOLDER.glob("*.toml")}
    assert list(by_name())[:5] == ["exec", "exec_failed", "fork", "exit", "process"]
    assert by_number() == {schema.number: schema for schema in by_name().values()}
    assert all(0 < number < KINDS for number in by_number())
    placed = {kind.name: name for name, kinds in families().items() for kind in kinds}
    assert placed == {kind.name: kind.family for kind in by_name().values()}
    assert by_name()["exec"].title == "exec/2"


def test_what_a_schema_takes_over() -> None:
    kinds = by_name()
    assert kinds["exec_failed"].promises == kinds["exec"].promises
    assert kinds["exec_failed"].fields[:-1] == kinds["exec"].fields[:-1], "without what only LSM shows"
    assert {p.name for p in kinds["exec"].promises} - {p.name for p in kinds["process"].promises} == {
        "path",
        "interpreter",
    }
    assert kinds["process"].surface("proc") is not None
    assert kinds["process"].surface("tracepoint") is None


def surface(name: str, more: str) -> str:
    return f'[[surfaces]]\nname = "{name}"\n{more}\n'


def test_surfaces_as_a_file_says_them(tmp_path: Path) -> None:
    hooks = 'hooks = { "lsm/a" = "one", "fexit/b" = "two" }\nbefore = { "lsm/c" = "three" }\n'
    hooks += 'parts = ["p", "q"]\noptional = ["lsm/c"]'
    more = field("x") + surface("lsm", hooks) + surface("perf", 'without = ["x"]\nblind = "much"')
    schema = load(folder(tmp_path, {"one": good(more=more)}))["one"]
    first, second = schema.surfaces
    assert (first.name, list(first.hooks.items())) == ("lsm", [("lsm/a", "one"), ("fexit/b", "two")])
    assert (dict(first.before), first.parts, first.optional) == ({"lsm/c": "three"}, ("p", "q"), ("lsm/c",))
    assert (second.hooks, second.parts, second.without, second.blind) == ({}, (), ("x",), "much")
    assert schema.surface("lsm") is first
    assert schema.hidden("perf") == {"x"}
    assert schema.hidden("lsm") == schema.hidden(None) == frozenset()


# ---- bad files

COMMON_FILE = (FOLDER / "common.toml").read_text()
GOOD = 'name = "{name}"\nnumber = {number}\nfamily = "test"\nsummary = "A test."\n'


def folder(path: Path, files: Mapping[str, str]) -> Path:
    (path / "common.toml").write_text(COMMON_FILE)
    for name, text in files.items():
        (path / f"{name}.toml").write_text(text)
    return path


def good(name: str = "one", number: object = 1, more: str = "") -> str:
    return GOOD.format(name=name, number=number) + more


def field(name: str, type: str = "u8", more: str = "") -> str:
    return f'[[fields]]\nname = "{name}"\ntype = "{type}"\nmeaning = "a test"\n{more}'


def promise(name: str, type: str = "text") -> str:
    return f'[[promises]]\nname = "{name}"\ntype = "{type}"\ncap = "path"\nmeaning = "a test"\n'


def many(make: Iterable[str]) -> str:
    return "".join(make)


def test_a_good_folder_is_read(tmp_path: Path) -> None:
    found = load(
        folder(tmp_path, {"a": good("a", 2, field("x")), "b": good("b", 1, 'extends = "a"\n' + promise("y"))})
    )
    assert list(found) == ["b", "a"], "in order of their numbers"
    assert found["b"].fields == found["a"].fields
    assert found["b"].fields[-1].name == "x"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"one": "name = \n"}, r"one\.toml: Invalid value \(at line 1"),
        ({"one": 'number = 1\nsummary = ""\n'}, r"schemas/one\.toml: the key 'name' is missing"),
        ({"one": 'name = "one"\nnumber = 1\n'}, r"schemas/one\.toml: the key 'summary' is missing"),
        ({"one": good("two")}, r'schemas/one\.toml: name = "two" is not the name of the file'),
        ({"one": good(number=0)}, r"numbers of their own from 1 to 31, got \[0\]"),
        ({"one": good(number=KINDS)}, r"numbers of their own from 1 to 31, got \[32\]"),
        ({"one": good(number='"1"')}, r"numbers of their own from 1 to 31, got \['1'\]"),
        ({"one": good(), "two": good("two")}, r"numbers of their own from 1 to 31, got \[1, 1\]"),
        ({"one": good(more=field("x", "u128"))}, r"schemas/one\.toml: field x: type is one of u8, bool, u16"),
        ({"one": good(more='[[fields]]\nname = "x"\n')}, r"schemas/one\.toml: the key 'type' is missing"),
        ({"one": good(more=field("x", more='unti = "ns"\n'))}, r"schemas/one\.toml: .*'unti'"),
        ({"one": good(more='[[fields]]\nname = "x"\ntype = "u8"\n')}, r"schemas/one\.toml: .*'meaning'"),
        ({"one": good(more=promise("x", "blob"))}, r"promise x: type is one of text, bytes, strings"),
        ({"one": good(more='[[promises]]\nname = "x"\n')}, r"schemas/one\.toml: the key 'type' is missing"),
        ({"one": good(more="[[surfaces]]\nhooks = {}\n")}, r"schemas/one\.toml: .*'name'"),
        ({"one": good(more='[[surfaces]]\nhook = "x"\n')}, r"schemas/one\.toml: .*'hook'"),
        (
            {"one": good(more='[[surfaces]]\nname = "lsm"\nwithout = ["x"]\n')},
            r"schemas/one\.toml: lsm is without x: no such field",
        ),
        ({"one": good(more=field("pid"))}, r"schemas/one\.toml: the name pid is taken twice"),
        ({"one": good(more=field("x") + promise("x"))}, r"schemas/one\.toml: the name x is taken twice"),
        (
            {"one": good(more=field("x", more='in = "process.pid"\n'))},
            r"schemas/one\.toml: the place in the record process\.pid is taken twice",
        ),
        ({"one": good(more='extends = "nobody"\n')}, r"extends: there is no schemas/nobody\.toml"),
        ({"one": good(more='extends = "one"\n')}, r"extends: one → one goes round in a circle"),
        (
            {"one": good(more='extends = "two"\n'), "two": good("two", 2, 'extends = "one"\n')},
            r"extends: one → two → one goes round in a circle",
        ),
        (
            {"one": good(more=many(field(f"f{i}", "u64") for i in range(20)))},
            r"one\.toml: the head is \d+ bytes too long; make a field smaller or turn it into a promise",
        ),
        (
            {"one": good(more=many(promise(f"p{i}") for i in range(17)))},  # faults has 16 bits
            r"schemas/one\.toml: the head is 8 bytes too long",
        ),
    ],
)
def test_a_bad_file_is_refused_in_clear_words(tmp_path: Path, files: Mapping[str, str], said: str) -> None:
    with pytest.raises(SchemaError, match=said) as caught:
        load(folder(tmp_path, files))
    assert "\n" not in str(caught.value)


def test_a_folder_without_the_common_block_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(good())
    with pytest.raises(SchemaError, match=r"schemas/one\.toml: extends: there is no schemas/common\.toml"):
        load(tmp_path)


def test_the_highest_number_is_one_less_than_the_room_for_kinds(tmp_path: Path) -> None:
    assert load(folder(tmp_path, {"one": good(number=KINDS - 1)}))["one"].number == KINDS - 1
