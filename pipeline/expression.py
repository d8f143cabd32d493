"""A filter's expression: Polars' SQL over the columns of columns.py, checked before anything runs.

Polars is imported only where an expression is given. Its parser takes sub-queries, and those can read
files: they are refused before they reach it. What is left sees the columns and nothing else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from pipeline.columns import COLUMNS
from pipeline.errors import UserError

if TYPE_CHECKING:
    import polars as pl

__all__ = ["EvaluationError", "Expression", "FilterError"]

# Polars' table functions, all that can open a file; in a text such a name is spelled `read_csv` as LIKE
# 'read?csv'.
_READS: Final = re.compile(r"read_(?:csv|parquet|ipc|n?d?json|avro)|scan_", re.IGNORECASE)
# Nodes of an expression that look at more than the one event.
_AGGREGATES: Final = re.compile(
    r"│ (max|min|sum|mean|median|std|var|count|len|first|last|n_unique|quantile|window|implode|explode|filter"
    r"|sort|sort_by|slice|gather|rolling) (?=│)"
)


class FilterError(UserError):
    """An expression that cannot be a filter; the text says why, and what columns there are."""

    def __init__(self, text: str) -> None:
        super().__init__(f"filter: {text}. Columns: {', '.join(sorted(COLUMNS))}", status=2)


class EvaluationError(Exception):
    """An expression that was accepted and fails on some event; the text says why, in one line."""


class Expression:
    """One expression. FilterError where it cannot be parsed, is not Boolean, or looks at more than one
    event."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._pl = _polars()
        self._types = _types(self._pl)
        self._expression = self._parsed()
        self.names = frozenset(self._expression.meta.root_names())
        """The columns that it uses."""
        self._check()

    def __call__(self, columns: Mapping[str, Sequence[Any]]) -> list[bool | None]:
        """One answer per event. `columns` has all of `names`, of one length.

        Raises EvaluationError.
        """
        try:
            frame = self._pl.DataFrame(
                [self._pl.Series(name, columns[name], self._types[name]) for name in sorted(self.names)]
            )
            found: list[bool | None] = frame.select(self._expression.alias("keep"))["keep"].to_list()
        except (Exception, self._pl.exceptions.PanicException) as error:
            raise EvaluationError(_first_line(error)) from None
        return found

    def _parsed(self) -> pl.Expr:
        if _READS.search(self.text):
            raise FilterError("no file can be read from here")
        # Two columns are words of SQL.
        with _said('it cannot be read ("user" and "group" want double quotes)', self._pl):
            found: pl.Expr = self._pl.sql_expr(self.text)
        return found

    def _check(self) -> None:
        for name in sorted(self.names - COLUMNS.keys()):
            near = get_close_matches(name, COLUMNS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise FilterError(f"there is no column {name}{hint}")
        if not self.names:
            raise FilterError("it uses no column")
        with _said("it cannot be evaluated (sub-queries are not possible)", self._pl):
            tree = self._expression.meta.tree_format(return_as_string=True, schema=self._types)
        if (found := _AGGREGATES.search(tree)) is not None:
            raise FilterError(f"it looks at more than one event ({found[1]})")
        for rows in (0, 1):
            with _said("it cannot be evaluated", self._pl):
                frame = self._pl.DataFrame(
                    {name: [None] * rows for name in self.names}, schema_overrides=self._types_used()
                )
                result = frame.select(self._expression.alias("keep"))["keep"]
            if result.dtype != self._pl.Boolean:
                raise FilterError(f"it gives {result.dtype}, not true or false")
            if len(result) != rows:
                raise FilterError("it does not give one answer for each event")

    def _types_used(self) -> dict[str, Any]:
        return {name: self._types[name] for name in self.names}


class _said:
    """Turns what Polars raises, its panics included, into a FilterError."""

    def __init__(self, what: str, polars: Any) -> None:
        self._what = what
        self._panic = polars.exceptions.PanicException

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (Exception, self._panic)):
            raise FilterError(f"{self._what}: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _polars() -> Any:
    # One thread: batches are small, and the machine's cores belong to others.
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    import polars

    return polars


def _types(polars: Any) -> dict[str, Any]:
    by_type = {
        "i64": polars.Int64,
        "u64": polars.UInt64,
        "bool": polars.Boolean,
        "text": polars.String,
        "strings": polars.List(polars.String),
    }
    return {name: by_type[column.type] for name, column in COLUMNS.items()}
