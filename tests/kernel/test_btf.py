"""Where fields lie, from types as bpftool lists them."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.kernel.btf import Btf, Place, running
from tests.live.host import need_kernel


def member(name: str, type_id: int, offset: int) -> dict[str, Any]:
    return {"name": name, "type_id": type_id, "bits_offset": 8 * offset}


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
    {"id": 8, "kind": "ENUM", "name": "state", "size": 1},
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
    {"id": 10, "kind": "FUNC_PROTO", "name": "(anon)", "params": [{}, {}, {}]},
    {"id": 11, "kind": "PTR", "name": "(anon)", "type_id": 10},
    {"id": 12, "kind": "TYPEDEF", "name": "btf_trace_something", "type_id": 11},
]


@pytest.mark.parametrize(
    ("field", "place"),
    [
        ("pid", Place(4, 4)),
        ("a", Place(16, 4)),
        ("b", Place(16, 8)),
        ("in", Place(32, 12)),
        ("in__y", Place(40, 4)),
        ("many", Place(48, 24)),
        ("state", Place(95, 1)),
        ("none", None),
        ("in__none", None),
        ("pid__x", None),
    ],
)
def test_places(field: str, place: Place | None) -> None:
    assert Btf(TYPES).place("outer", field) == place


def test_sizes_and_what_is_not_there() -> None:
    btf = Btf(TYPES)
    assert btf.size("outer") == 96
    assert btf.size("none") is None
    assert btf.place("none", "x") is None


def test_arguments_of_tracepoints() -> None:
    assert Btf(TYPES).arguments("something") == 2
    assert Btf(TYPES).arguments("nothing") == 0


@pytest.mark.kernel
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
    size = btf.size("task_struct")
    assert size is not None
    assert size > comm.offset
