"""filter: what the user asked to see. Enriched batches come in; what the expression refuses is booked and
does not go on.

An event is dropped where the expression is false, or NULL with all its promises complete. NULL where a
promise is unsettled passes: it might have been true. `Filter.keep` says the same of stored records, for
`tail` and `replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.columns import Columns, of_records
from pipeline.event import Array, Batch, Ints, count
from pipeline.expression import EvaluationError, Expression
from pipeline.ledger import zeros
from pipeline.promises import extents, pick
from pipeline.schema import by_number

__all__ = ["Filter", "Judge"]


class Judge:
    """An expression that is asked about events, and never stands in their way: where it fails, they pass.

    warn: told once, the first time that it fails.
    """

    def __init__(self, expression: str, warn: Callable[[str], object]) -> None:
        self._expression = Expression(expression)
        self._warn: Callable[[str], object] | None = warn
        self.names = self._expression.names
        """The columns that it wants."""

    def keep(self, records: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Which of these decoded records pass."""
        settled = np.array(["unsettled" not in record for record in records], bool)
        found: list[bool] = self.passes(of_records(self.names, records), settled).tolist()
        return found

    def passes(self, columns: Mapping[str, Sequence[Any]], settled: Array) -> Array:
        """(n,) of bool; `settled` says which events have all promises complete."""
        try:
            answers = self._expression(columns)
        except EvaluationError as error:
            if self._warn is not None:
                self._warn(f"the filter failed, events pass it: {error}")
                self._warn = None
            return np.ones(len(settled), bool)
        true = np.array([answer is True for answer in answers], bool)
        null = np.array([answer is None for answer in answers], bool)
        return true | (null & ~settled)


class Filter:
    """The stage. It needs the columns that enrich adds."""

    name = "filter"

    def __init__(self, judge: Judge, columns: Columns) -> None:
        self._judge = judge
        self._columns = columns

    def __call__(self, batch: Batch) -> Iterable[Batch]:
        """Book what is refused; pass on the rest, even when that is nothing."""
        if not len(batch):
            return (batch,)
        passes = self._judge.passes(self._columns.of_batch(self._judge.names, batch), _settled(batch))
        if passes.all():
            return (batch,)
        batch.passage.book("filtered", self.name, "expression", count(batch.heads["kind"][~passes]))
        return (batch.take(passes),)

    def finish(self) -> Iterable[Batch]:
        """Nothing is held."""
        return ()

    def held(self) -> Ints:
        """Nothing is held."""
        return zeros()


def _settled(batch: Batch) -> Array:
    """(n,): which events have all promises complete."""
    settled = np.ones(len(batch), bool)
    for number, schema in by_number().items():
        rows = np.flatnonzero(batch.heads["kind"] == number)
        if schema.promises and len(rows):
            settled[rows] = extents(batch, schema, rows, pick(batch.heads, rows)).whole
    return settled
