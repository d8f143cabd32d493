"""enrich: who did it, in words. Assembled events come in, before any filter; each leaves with two more
columns.

`origin` holds an `Origin` per event (user and group, container and unit, the parent's program, the ancestry
by exec ids), `program` a `Program` (what the process runs). Programs come from the events themselves: each
`exec` and `process` event that passes teaches what its exec_id runs. The table is bounded; what it has
forgotten, or never saw, is unknown (nil), never a guess.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

import numpy as np

from pipeline.answers import Answers
from pipeline.event import Array, Batch, Ints, settle
from pipeline.ledger import zeros
from pipeline.promises import extents, pick
from pipeline.record import ANCESTRY
from pipeline.remember import Remembered
from pipeline.schema import COMMON, Schema, by_number
from pipeline.stages.names import (
    HIDDEN,
    TOP,
    UNKNOWN,
    Lineage,
    Origin,
    Owner,
    Program,
    origin,
    pack,
    packed_executable,
)

__all__ = ["Enrich"]

PROGRAMS: Final = 65_536
"""Programs that the table holds."""
SOUGHT: Final = 65_536
"""Ids that were asked for in vain and are kept in mind."""
EPOCH: Final = 33
"""Names are asked for again every 2**33 ns (8.6 s) of the events' own time: no clock is read."""

# What an Origin depends on, as one key.
_KEY: Final = np.dtype(
    [
        ("parent_exec_id", "<u8"),
        ("cgroup", "<u8"),
        ("uid", "<u4"),
        ("gid", "<u4"),
        ("epoch", "<u4"),
        ("top", "<u4"),
        ("comm", "V16"),
    ]
)
_UNPACK: Final = struct.Struct("<QQIIII16s").unpack
_PARENT: Final = struct.Struct("<Q20xI").unpack_from
"""parent_exec_id and top of a key."""

_TEACHERS: Final = {n: s for n, s in by_number().items() if any(p.name == "executable" for p in s.promises)}
"""Kinds whose events may say what an exec_id runs: where it is their own id."""
_NO_START: Final = next(field.nil for field in COMMON if field.name == "parent_start")
_COMMON: Final = next(iter(by_number().values())).dtype[[field.name for field in COMMON]]


class Enrich:
    """The stage; `answers` is asked for names, `programs` bounds the process table."""

    name = "enrich"

    def __init__(self, answers: Answers, programs: int = PROGRAMS) -> None:
        self._answers = answers
        self._programs: Remembered[int, Program] = Remembered(programs)
        self._origins: Remembered[bytes, Origin] = Remembered(16_384)
        self._owner = lru_cache(4096)(self._ask)
        self._lineage = lru_cache(8192)(self._ascend)
        self._sought: set[int] = set()

    def __call__(self, batch: Batch) -> Iterable[Batch]:
        """Add the columns `origin` and `program`."""
        common = batch.heads.view(_COMMON)
        keys = _keys(batch.heads, common)
        ids = common["exec_id"].tolist()
        lessons = _lessons(batch, common["exec_id"])
        origins, programs = self._origins.find(keys), self._programs.find(ids)
        turns = self._turns()
        rows = iter(_open_rows(origins, programs, lessons))
        # In order, and looked up anew when something was forgotten: so what an event is told never
        # depends on where batches begin.
        while (row := next(rows, None)) is not None:
            if row in lessons:
                programs[row] = self._learn(ids[row], keys[row], lessons[row])
            elif programs[row] is None:
                programs[row] = self._program(ids[row])
            if origins[row] is None or turns != self._turns():
                origins[row] = self._origins.get(keys[row]) or self._find_out(keys[row])
                if turns != self._turns():
                    turns = self._turns()
                    origins[row + 1 :] = programs[row + 1 :] = [None] * (len(batch) - row - 1)
                    rows = iter(range(row + 1, len(batch)))
        found = {"origin": origins, "program": programs}
        columns = {name: np.fromiter(column, object, len(batch)) for name, column in found.items()}
        return (replace(batch, columns={**batch.columns, **columns}),)

    def finish(self) -> Iterable[Batch]:
        """Nothing is held."""
        return ()

    def held(self) -> Ints:
        """Nothing is held."""
        return zeros()

    def _learn(self, exec_id: int, key: bytes, path: bytes | None) -> Program:
        """Take a program into the table; `path`: None or empty where the event does not say it."""
        parent, top = _PARENT(key)
        executable, packed = packed_executable(path) if path else (None, UNKNOWN.packed)
        self._programs[exec_id] = program = Program(executable, packed, parent, top == 1)
        if exec_id in self._sought:
            # Somebody was told "unknown": let all be asked again.
            self._sought.clear()
            self._origins.clear()
            self._lineage.cache_clear()
        return program

    def _turns(self) -> int:
        return self._origins.turns + self._programs.turns

    def _find_out(self, key: bytes) -> Origin:
        parent, cgroup, uid, gid, epoch, top, comm = _UNPACK(key)
        lineage = (self._lineage(parent), TOP, HIDDEN)[top]
        self._origins[key] = found = origin(self._owner(uid, gid, cgroup, epoch), lineage, comm)
        return found

    def _ask(self, uid: int, gid: int, cgroup: int, epoch: int) -> Owner:
        return Owner.ask(self._answers, uid, gid, cgroup)

    def _program(self, exec_id: int) -> Program:
        program = self._programs.get(exec_id) if exec_id else UNKNOWN
        if program is None:
            if len(self._sought) >= SOUGHT:
                self._sought.clear()
            self._sought.add(exec_id)
            return UNKNOWN
        return program

    def _ascend(self, parent: int) -> Lineage:
        program = self._program(parent)
        ancestry = pack("ancestry") + pack(self._ancestry(parent))
        return Lineage(program.executable, pack(program.executable), ancestry)

    def _ancestry(self, exec_id: int) -> list[dict[str, Any] | None]:
        """From a parent's exec upwards; None at the end: not known, or not shown, what stands above."""
        found: list[dict[str, Any] | None] = []
        while exec_id and len(found) < ANCESTRY:
            program = self._program(exec_id)
            found.append({"exec_id": exec_id, "executable": program.executable})
            if program.top:
                return found
            exec_id = program.parent
        return [*found, None]


def _keys(heads: Array, common: Array) -> list[bytes]:
    """What each event's Origin depends on."""
    keys = np.empty(len(heads), _KEY)
    for name in ("parent_exec_id", "cgroup", "uid", "gid", "comm"):
        keys[name] = common[name]
    keys["epoch"] = heads["time"] >> EPOCH
    # 1: the parent is the kernel, 2: it is unknown.
    keys["top"] = (common["parent_pid"] == 0) * (1 + (common["parent_start"] == _NO_START))
    found: list[bytes] = keys.view(f"V{_KEY.itemsize}").tolist()
    return found


def _open_rows(
    origins: list[Origin | None], programs: list[Program | None], lessons: Mapping[int, bytes | None]
) -> list[int]:
    """Rows that need a look of their own: those that teach, and those of which something is not known yet."""
    for row in lessons:
        programs[row] = UNKNOWN  # until its turn comes
    if all(origins) and all(programs):
        return sorted(lessons)
    whole = enumerate(zip(origins, programs, strict=True))
    return [row for row, known in whole if None in known or row in lessons]


def _lessons(batch: Batch, exec_ids: Array) -> dict[int, bytes | None]:
    """Rows that say what their own exec_id runs → the executable's path, or None where it is not complete."""
    kinds = batch.heads["kind"]
    own = batch.heads["id"] == exec_ids
    lessons: dict[int, bytes | None] = {}
    for number, schema in _TEACHERS.items():
        rows = np.flatnonzero(own & (kinds == number))
        if len(rows):
            lessons.update(_executables(batch, schema, rows))
    return lessons


def _executables(batch: Batch, schema: Schema, rows: Ints) -> dict[int, bytes | None]:
    heads = pick(batch.heads, rows)
    where = [promise.name for promise in schema.promises].index("executable")
    ends, whole = extents(batch, schema, rows, heads)
    stream = batch.stream.data
    spans = zip(rows.tolist(), ends[:, where].tolist(), ends[:, where + 1].tolist(), strict=True)
    found: dict[int, bytes | None] = {row: bytes(stream[start:end]) for row, start, end in spans}
    for at in np.flatnonzero(~whole).tolist():
        row = int(rows[at])
        settled = settle(schema, heads[at], int(batch.size[row]), batch.holes.get(row))["executable"][1]
        if settled.state != "complete":
            found[row] = None
    return found
