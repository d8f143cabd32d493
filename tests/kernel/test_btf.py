"""Where fields lie: over types made here, and over whole kernels as bpftool lists them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.kernel.btf import VMLINUX, Btf, Place, running
from tests.absent import absent
from tests.btf_types import encoded
from tests.live.host import need_kernel
from tests.vm.kernels import MATRIX


def member(name: str, type_id: int, offset: int, **more: int) -> dict[str, Any]:
    return {"name": name, "type_id": type_id, "bits_offset": 8 * offset, **more}


def argument(name: str) -> dict[str, Any]:
    return {"name": name, "type_id": 1}


TYPES: list[dict[str, Any]] = [
    {"id": 1, "kind": "INT", "name": "int", "size": 4},
    {"id": 2, "kind": "TYPEDEF", "name": "pid_t", "type_id": 1},
    {"id": 3, "kind": "CONST", "name": "(anon)", "type_id": 2},
    {"id": 4, "kind": "PTR", "name": "(anon)", "type_id": 9},
    {"id": 5, "kind": "ARRAY", "name": "(anon)", "type_id": 2, "nr_elems": 6},
    {
        "id": 6,
        "kind": "UNION",
        "name": "(anon)",
        "size": 8,
        "members": [member("a", 1, 0), member("b", 4, 0)],
    },
    {
        "id": 7,
        "kind": "STRUCT",
        "name": "inner",
        "size": 12,
        "members": [member("x", 1, 0), member("y", 1, 8)],
    },
    {"id": 8, "kind": "ENUM", "name": "state", "size": 1, "values": [{"name": "on", "val": 1}]},
    {
        "id": 9,
        "kind": "STRUCT",
        "name": "outer",
        "size": 96,
        "members": [
            member("pid", 3, 4),
            member("(anon)", 6, 16),
            member("in", 7, 32),
            member("many", 5, 48),
            member("state", 8, 95),
        ],
    },
    {
        "id": 10,
        "kind": "FUNC_PROTO",
        "name": "(anon)",
        "type_id": 1,
        "params": [argument("(anon)"), argument("first"), argument("second")],
    },
    {"id": 11, "kind": "PTR", "name": "(anon)", "type_id": 10},
    {"id": 12, "kind": "TYPEDEF", "name": "btf_trace_something", "type_id": 11},
    {"id": 13, "kind": "FUNC", "name": "something", "type_id": 10},
    {
        "id": 14,
        "kind": "STRUCT",
        "name": "bits",
        "size": 8,
        "members": [member("few", 1, 0, bitfield_size=3), member("whole", 1, 4, bitfield_size=0)],
    },
    {"id": 15, "kind": "ENUM64", "name": "wide", "size": 8, "values": [{"name": "big", "val": 1 << 40}]},
    {"id": 16, "kind": "VAR", "name": "variable", "type_id": 1},
    {
        "id": 17,
        "kind": "DATASEC",
        "name": ".data",
        "size": 4,
        "vars": [{"type_id": 16, "offset": 0, "size": 4}],
    },
    {"id": 18, "kind": "DECL_TAG", "name": "tag", "type_id": 13},
    {"id": 19, "kind": "FLOAT", "name": "double", "size": 8},
    {"id": 20, "kind": "TYPE_TAG", "name": "user", "type_id": 1},
    {
        "id": 21,
        "kind": "STRUCT",
        "name": "last",
        "size": 32,
        "members": [member("wide", 15, 0), member("real", 19, 8), member("tagged", 20, 16)],
    },
]


@pytest.mark.parametrize(
    ("struct", "field", "place"),
    [
        ("outer", "pid", Place(4, 4)),
        ("outer", "a", Place(16, 4)),
        ("outer", "b", Place(16, 8)),
        ("outer", "in", Place(32, 12)),
        ("outer", "in__y", Place(40, 4)),
        ("outer", "many", Place(48, 24)),
        ("outer", "many__1", Place(52, 4)),
        ("outer", "pid__0", None),
        ("outer", "state", Place(95, 1)),
        ("outer", "none", None),
        ("outer", "in__none", None),
        ("outer", "pid__x", None),
        ("none", "x", None),
        ("int", "x", None),
        ("bits", "few", Place(0, 4)),
        ("bits", "whole", Place(4, 4)),
        ("last", "wide", Place(0, 8)),
        ("last", "real", Place(8, 8)),
        ("last", "tagged", Place(16, 4)),
    ],
)
def test_places(struct: str, field: str, place: Place | None) -> None:
    assert Btf(encoded(TYPES)).place(struct, field) == place


def test_sizes() -> None:
    btf = Btf(encoded(TYPES))
    assert btf.size("outer") == 96
    assert btf.size("none") is None
    assert btf.size("ut") is None  # a name's tail is not a name
    assert Btf(encoded([])).size("outer") is None


def test_tracepoints_and_functions() -> None:
    btf = Btf(encoded(TYPES))
    assert btf.arguments("something") == 2
    assert btf.arguments("nothing") == 0
    assert btf.function("something") == (13, ("", "first", "second"))
    assert btf.function("outer") is None


def test_what_is_no_btf_is_said() -> None:
    with pytest.raises(UserError, match="no BTF"):
        Btf(bytes(64))


def kernels() -> list[Path]:
    return [VMLINUX, *(kernel.types for kernel in MATRIX.values())]


@pytest.mark.kernel
@pytest.mark.parametrize("path", kernels(), ids=str)
def test_a_whole_kernel_as_bpftool_lists_it(path: Path) -> None:
    """Every field of every struct, every tracepoint, and functions by the hundred."""
    if not path.exists():
        absent(f"no {path}: make vm-kernels")
    listed = json.loads(subprocess.check_output(["bpftool", "-j", "btf", "dump", "file", str(path)]))["types"]
    types = {entry["id"]: entry for entry in listed}
    btf = Btf(path.read_bytes())
    structs: dict[str, dict[str, Any]] = {}
    functions: dict[str, dict[str, Any]] = {}
    for entry in listed:
        if entry["kind"] in ("STRUCT", "UNION"):
            structs.setdefault(entry["name"], entry)
        if entry["kind"] == "FUNC":
            functions.setdefault(entry["name"], entry)
    del structs["(anon)"]
    wrong = [
        (struct, name)
        for struct, entry in structs.items()
        for name, bits, type_id in fields(types, entry)
        if "__" not in name and btf.place(struct, name) != Place(bits // 8, size(types, type_id))
    ]
    assert not wrong
    assert not [struct for struct, entry in structs.items() if btf.size(struct) != entry["size"]]
    for name, entry in [*functions.items()][::100]:
        parameters = types[entry["type_id"]]["params"]
        assert btf.function(name) == (entry["id"], tuple(p["name"].replace("(anon)", "") for p in parameters))
    for entry in listed:
        if entry["kind"] == "TYPEDEF" and entry["name"].startswith("btf_trace_"):
            parameters = types[types[entry["type_id"]]["type_id"]]["params"]
            assert btf.arguments(entry["name"].removeprefix("btf_trace_")) == len(parameters) - 1


def plain(types: dict[int, dict[str, Any]], type_id: int) -> dict[str, Any]:
    entry = types.get(type_id, {"kind": "VOID"})
    while entry["kind"] in ("TYPEDEF", "CONST", "VOLATILE", "RESTRICT", "TYPE_TAG"):
        entry = types.get(entry["type_id"], {"kind": "VOID"})
    return entry


def fields(types: dict[int, dict[str, Any]], struct: dict[str, Any]) -> list[tuple[str, int, int]]:
    """(name, bits from the start, type) of a struct, through unnamed members; the first of a name."""
    found: dict[str, tuple[str, int, int]] = {}
    for row in struct.get("members", ()):
        inner = [(row["name"], 0, row["type_id"])]
        if row["name"] == "(anon)":
            inner = fields(types, plain(types, row["type_id"]))
        for name, bits, type_id in inner:
            found.setdefault(name, (name, row["bits_offset"] + bits, type_id))
    return [*found.values()]


def size(types: dict[int, dict[str, Any]], type_id: int) -> int:
    entry = plain(types, type_id)
    if entry["kind"] == "ARRAY":
        return int(entry["nr_elems"]) * size(types, entry["type_id"])
    return 8 if entry["kind"] == "PTR" else int(entry.get("size", 0))


@pytest.mark.kernel
@pytest.mark.vm
def test_the_running_kernel() -> None:
    need_kernel()
    btf = running()
    comm = btf.place("task_struct", "comm")
    assert comm is not None
    assert comm.size == 16
    pid, tgid = btf.place("task_struct", "pid"), btf.place("task_struct", "tgid")
    assert pid is not None
    assert tgid == Place(pid.offset + 4, 4)
    assert btf.arguments("sys_exit") == 2
