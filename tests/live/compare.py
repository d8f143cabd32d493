"""Records against what a witness knows; and the list of all that was compared.

The rule: every test of a kind compares through `same`. At the end of a whole run of tests/live,
test_compared.py computes from schemas and manifest which fields this kernel yields, and fails for each that
no `same` had in its hands, the common block and promises included. So a kind needs, on every kernel that
gives it:

    same(record, {"local_address": "127.0.0.1", "local_port": port, "errno": 0, …})    its own fields
    same(record, {**who(), **ran(live.log)})                                           the common block

What is expected comes from the test's own system calls, /proc, ss, strace, bpftool: never from the pipeline.
A field that the record's surface does not show (`without`) must be nil in it, whatever is expected. Where a
host cannot be made to give a kind at all (no loadable modules), its test says `cannot(kind, why)`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest

from pipeline.schema import Schema, by_name
from tests.live.run import Log

__all__ = ["Within", "cannot", "missing", "ran", "same", "who"]

COMPARED: Final[set[tuple[str, str]]] = set()
"""(kind, name of a field or promise) that had a comparison."""
IMPOSSIBLE: Final[dict[str, str]] = {}
"""Kind → why this host cannot be made to give it."""
TICK: Final = 10**7
"""ns to which /proc knows when a process started."""


class Within:
    """Equal to every number from `first` to `last`: for what a witness cannot know exactly."""

    def __init__(self, first: float, last: float) -> None:
        self._first, self._last = first, last

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int | float) and self._first <= other <= self._last

    def __repr__(self) -> str:
        return f"{self._first} … {self._last}"

    __hash__ = None  # type: ignore[assignment]


def same(record: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Assert that a record says what a witness expects, and take note of it. Keys are paths in the record:
    "local_port", "process.pid", "child.start"; all that differ are told at once.
    """
    schema = by_name()[record["kind"]]
    hidden = schema.hidden(record["surface"])
    names = _names(schema)
    wrong = []
    for path, value in expected.items():
        assert path in names, f"{schema.title} has no {path}"
        name = names[path]
        wanted = None if name in hidden else value
        found = _at(record, path)
        if name in record.get("unsettled", ()):
            wrong.append(f"{path}: {record['unsettled'][name]}, wanted {wanted!r}")
        elif _rounded(path, found) != _rounded(path, wanted):
            wrong.append(f"{path}: {found!r}, wanted {wanted!r}")
        COMPARED.add((schema.name, name))
    assert not wrong, f"{schema.title} from {record['surface']}: " + "; ".join(wrong)


def who(pid: int | str = "self", tid: int | None = None) -> dict[str, Any]:
    """What /proc says of a living process (or, with its `tid`, of one of its threads), as `same` expects the
    common block; plain numbers and texts, so that a child can write it down for the test.

    `process.exec_id` and `process.parent.exec_id` only the pipeline knows: `ran` has them.
    """
    process = Path("/proc") / str(pid)
    status = _status(process)
    thread = process / "task" / str(tid) if tid else process
    parent = int(status["PPid"])
    found = {
        "process.pid": int(status["Tgid"]),
        "process.tid": tid or int(status["Pid"]),
        "process.ns_pid": int(status["NStgid"].split()[-1]),
        "process.uid": int(status["Uid"].split()[0]),
        "process.gid": int(status["Gid"].split()[0]),
        "process.comm": (thread / "comm").read_text().removesuffix("\n"),
        "process.start": _start(process),
        "process.cgroup": _cgroup(process),
    }
    if parent:
        found |= {"process.parent.pid": parent, "process.parent.start": _start(Path("/proc") / str(parent))}
    return found


def ran(log: Log, *, by_child: bool = False) -> dict[str, int]:
    """What this process and its parent run, by the ids of the events that say so; or the same of a child of
    this process.
    """
    ours, parents = (log.of(pid, "exec", "process")[-1]["id"] for pid in (os.getpid(), os.getppid()))
    return {"process.exec_id": ours, "process.parent.exec_id": ours if by_child else parents}


def cannot(kind: str, why: str) -> NoReturn:
    """Skip a test because this host cannot be made to give a kind of event."""
    IMPOSSIBLE[kind] = why
    pytest.skip(f"NOT TESTED: {kind}: {why}")


def missing(surfaces: Mapping[str, str], schemas: Iterable[Schema] | None = None) -> list[str]:
    """What these kinds (kind → its surface) show and nothing was compared with, as "kind.name"."""
    return [
        f"{schema.name}.{name}"
        for schema in (by_name().values() if schemas is None else schemas)
        if schema.name in surfaces and schema.name not in IMPOSSIBLE
        for name in _names(schema).values()
        if name not in schema.hidden(surfaces[schema.name]) and (schema.name, name) not in COMPARED
    ]


def _names(schema: Schema) -> dict[str, str]:
    """Path in the record → name of the field or promise."""
    fields = {".".join(field.path): field.name for field in schema.fields}
    return fields | {promise.name: promise.name for promise in schema.promises}


def _at(record: Mapping[str, Any], path: str) -> Any:
    found: Any = record
    for key in path.split("."):
        found = found[key] if found is not None else None
    return found


def _rounded(path: str, value: Any) -> Any:
    return value // TICK if path.endswith("start") and isinstance(value, int) else value


def _status(process: Path) -> dict[str, str]:
    lines = (process / "status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _start(process: Path) -> int:
    return int((process / "stat").read_text().rpartition(")")[2].split()[19]) * TICK


def _cgroup(process: Path) -> int | None:
    """The inode of a process's cgroup; under version 1 the kernel gives none."""
    root = Path("/sys/fs/cgroup")
    if not (root / "cgroup.controllers").exists():
        return None
    path = (process / "cgroup").read_text().partition("0::")[2].splitlines()[0]
    return os.stat(root / path.lstrip("/")).st_ino
