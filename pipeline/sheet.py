"""The sheet of surfaces: what one kernel answered when every surface of every event was tried.

`promissory check --matrix` makes it out of what the loader found; the sheets in docs/sheets/ become
docs/surfaces.md. Nothing of the pipeline's flow passes through here.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final

from rich.text import Text

from pipeline.kernel.manifest import Hook
from pipeline.schema import COMMON, Schema, by_name
from pipeline.tables import console, mark, table

__all__ = ["Sheet", "document", "print_sheet", "sheet"]

Sheet = Mapping[str, Any]
"""{kernel, date, rows: [{event, schema, surface, hooks, state, answer, fields, …}]}, as JSON has it.
`state`: proven (our own act came through), attached (and unproven, for want of a harmless act), or refused,
with the kernel's `answer`; `fields`: the event's own keys of the record that such records fill; `without`:
keys, those of the common block too, that are nil in them; `blind`: what happens unseen; `cost`: why it is off
unless asked for."""
MARKS: Final = {"proven": "ok", "attached": "warn", "refused": "fail"}


def sheet(hooks: Sequence[Hook], release: str = "", date: str = "") -> Sheet:
    """The sheet of this kernel, today, from the loader's answers to a `matrix` request."""
    return {
        "kernel": release or platform.release(),
        "date": date or f"{datetime.now(UTC):%Y-%m-%d}",
        "rows": [_row(by_name()[hook.event], hook) for hook in hooks],
    }


def _row(schema: Schema, hook: Hook) -> dict[str, Any]:
    surface = schema.surface(hook.surface)
    assert surface is not None
    state = "attached" if hook.works else "refused"
    if hook.works and (hook.answer.startswith("proven") or hook.surface == "proc"):
        state = "proven"
    common = {field.name: ".".join(field.path) for field in COMMON}
    own = {f.name: ".".join(f.path) for f in schema.fields if f not in COMMON}
    own |= {promise.name: promise.name for promise in schema.promises}
    return {
        "event": hook.event,
        "schema": schema.title,
        "surface": hook.surface,
        "hooks": [*surface.before, *surface.hooks],
        "state": state,
        "answer": hook.answer,
        "idle": list(hook.idle),
        "fields": [key for name, key in own.items() if name not in surface.without],
        "without": [key for name, key in (common | own).items() if name in surface.without],
        "blind": surface.blind,
        "cost": surface.cost,
    }


def print_sheet(made: Sheet) -> None:
    """As a table."""
    rows: list[tuple[str | Text, ...]] = []
    for row in made["rows"]:
        rows.append(
            (
                row["event"],
                row["surface"],
                mark(MARKS[row["state"]]),
                row["answer"],
                ", ".join(row["without"]),
                "; ".join(
                    filter(None, (row["blind"], row["cost"] and f"off unless asked for: {row['cost']}"))
                ),
            )
        )
    console().print(table(["event", "surface", "", f"Linux {made['kernel']}", "nil", "note"], rows))


# ---- the document


def document(sheets: Iterable[Sheet]) -> str:
    """Markdown: which surface serves each event on each kernel, and then each event's surfaces one by one."""
    ordered = sorted(sheets, key=_version)
    kernels = [made["kernel"] for made in ordered]
    rows = list(chain.from_iterable(made["rows"] for made in ordered))
    events = [name for name in by_name() if any(row["event"] == name for row in rows)]
    serving = ([f"[`{name}`](#{name})", *(_serves(name, made) for made in ordered)] for name in events)
    parts = [
        "Asked: " + ", ".join(f"Linux {made['kernel']} ({made['date']})" for made in ordered) + ".",
        "## Which surface serves",
        _table(["event", *kernels], serving),
    ]
    for name in events:
        surfaces = {row["surface"]: row for row in rows if row["event"] == name}
        answers = [[f"**{surface}**", *(_answer(name, surface, m) for m in ordered)] for surface in surfaces]
        said = "\n".join(f"- {_surface(row)}" for row in surfaces.values())
        parts += [f"## {name}", _table(["surface", *kernels], answers), said]
    return "\n\n".join(parts)


def _version(made: Sheet) -> list[int]:
    return [int(part) for part in made["kernel"].partition("-")[0].partition("+")[0].split(".")]


def _serves(name: str, made: Sheet) -> str:
    """The first surface that works: one with a price only where there is no other."""
    working = [row for row in made["rows"] if row["event"] == name and row["state"] != "refused"]
    first = next((row for row in working if not row["cost"]), working[0] if working else None)
    if first is None:
        return "none"
    unproven = ", unproven" if first["state"] == "attached" else ""
    return f"{first['surface']}{unproven}{', when asked for' if first['cost'] else ''}"


def _answer(name: str, surface: str, made: Sheet) -> str:
    row = next((r for r in made["rows"] if (r["event"], r["surface"]) == (name, surface)), None)
    if row is None:
        return "not tried"
    if row["state"] != "proven":
        return str(row["answer"])
    idle = ", ".join(f"`{hook}`" for hook in row.get("idle", ()))
    return f"proven, but for {idle}" if idle else "proven"


def _surface(row: Mapping[str, Any]) -> str:
    nil = [f"`{key}`" for key in row["without"]]
    parts = [
        f"yields {len(row['fields'])} [keys of its own](record.md#{row['schema'].replace('/', '')})",
        f"nil: {', '.join(nil)}" if nil else "",
        f"unseen: {row['blind']}" if row["blind"] else "",
        f"off unless asked for: {row['cost']}" if row["cost"] else "",
    ]
    name = " ".join((f"**{row['surface']}**", *(f"`{hook}`" for hook in row["hooks"])))
    return f"{name}: {'; '.join(filter(None, parts))}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
