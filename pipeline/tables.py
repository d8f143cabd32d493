"""Tables that the command prints: the ledger, what this host allows, the schemas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.ledger import SHOWN, TERMS

__all__ = ["console", "mark", "print_ledger", "summary", "table"]

MARKS: Final = {"ok": "green", "warn": "bold yellow", "fail": "bold red"}
PIPED: Final = 200
"""Columns where there is no terminal to say."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command what a closed pipe means."""
        raise BrokenPipeError


def console(*, beside: bool = False) -> Console:
    """Standard output (`beside`: standard error): coloured on a terminal unless NO_COLOR is set."""
    made = _Console(highlight=False, stderr=beside)
    if not made.is_terminal:
        made.width = PIPED
    return made


def table(
    columns: Iterable[str], rows: Iterable[Iterable[str | Text]], *, right: Iterable[str] = ()
) -> Table:
    """Rows under a heading. The columns named in `right` hold numbers."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    numbers = set(right)
    for column in columns:
        if column in numbers:
            made.add_column(column, justify="right", no_wrap=True)
        else:
            made.add_column(column, overflow="fold")
    for row in rows:
        # As text: what a host says may hold what rich would take for markup.
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return made


def mark(status: str) -> Text:
    """ok, warn or fail as one sees it at a glance."""
    return Text({"ok": "✓ ok", "warn": "! warn", "fail": "✗ fail"}[status], MARKS[status])


def summary(ledger: Mapping[str, Any]) -> str:
    """The ledger in one line."""
    first, *rest = (f"{name.replace('_', ' ')} {ledger[name]:,}" for name in TERMS)
    verdict = "balanced ✓" if ledger["balanced"] else "NOT BALANCED ✗"
    return f"ledger: {verdict}  {first} = {' + '.join(rest)}"


def print_ledger(out: Console, ledger: Mapping[str, Any], *, rings: bool) -> None:
    """The books for eyes: events per kind, why some were filtered or lost, and, if asked for, every ring."""
    kinds = {kind: terms for kind, terms in ledger["events"].items() if any(terms.values())}
    headings = [name.replace("_", " ") for name in SHOWN]
    rows = [_numbers(kind, (terms[name] for name in SHOWN)) for kind, terms in kinds.items()]
    rows.append(_numbers("all", (ledger[name] for name in SHOWN), style="bold"))
    out.print(table(["kind", *headings], rows, right=headings))
    for name, title in (("filters", "filtered"), ("losses", "lost")):
        if ledger[name]:
            style = "red" if name == "losses" else ""
            reasons = (
                [Text(r["stage"], style), r["reason"], r["kind"], f"{r['count']:,}"] for r in ledger[name]
            )
            out.print(table([f"{title} by", "reason", "kind", "events"], reasons, right=["events"]))
    if rings and ledger["rings"]:
        out.print(_rings(ledger["rings"]))
    if until := ledger.get("complete_until"):
        out.print(Text(f"complete until {until / 1e9:,.3f} s since boot"), soft_wrap=True)
    out.print(
        Text(summary(ledger), "bold green" if ledger["balanced"] else "bold white on red"), soft_wrap=True
    )


def _numbers(name: str, values: Iterable[int], style: str = "") -> list[Text]:
    return [Text(name, style), *(Text(f"{value:,}", style) for value in values)]


def _rings(rings: Mapping[str, Mapping[str, int]]) -> Table:
    """Every ring with all that is known of its chunks; a column that is 0 everywhere says nothing."""
    always = ("chunks_attempted", "chunks_read", "gaps", "drops")
    names = list(dict.fromkeys(name for values in rings.values() for name in values))
    shown = [
        name
        for name in names
        if name in always or (not name.endswith("_after") and any(v.get(name) for v in rings.values()))
    ]
    headings = [name.replace("_", " ") for name in shown]
    rows = (_numbers(ring, (values.get(name, 0) for name in shown)) for ring, values in rings.items())
    return table(["ring", *headings], rows, right=headings)
