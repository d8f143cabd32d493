"""Rows of a store: what was put in comes out, and whatever turned over in one is seen."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.event import Encoded
from pipeline.store_file import BrokenError, connect
from pipeline.store_row import SMALL, SUMMARY, Row, insert, mark_of, read, restore, small
from tests.encoded import encoded, record


@contextmanager
def table() -> Iterator[sqlite3.Connection]:
    with closing(connect(Path(":memory:"))) as db:
        yield db


def stored(db: sqlite3.Connection) -> tuple[tuple[Any, ...], bytes]:
    """The one row: its summary, and its body."""
    *summary, body = db.execute(f"SELECT {SUMMARY}, body FROM batch").fetchone()
    return tuple(summary), body


def flipped(value: bytes | int, bit: int) -> bytes | int:
    if isinstance(value, int):
        return value ^ 1 << bit % 63
    at = bit % (8 * len(value))
    return bytes(byte ^ (1 << at % 8) * (i == at // 8) for i, byte in enumerate(value))


batches = st.lists(st.integers(0, 1000), unique=True, max_size=20).map(
    lambda indexes: encoded(7, [record(index, padding=index % 50) for index in sorted(indexes)])
)


@given(batches, st.none() | st.integers(1, 1 << 47))
def test_what_was_put_in_comes_out(batch: Encoded, id: int | None) -> None:
    with table() as db:
        at, size = insert(db, "a", batch, id)
        row = read(*stored(db))
        assert (row.id, row.size, row.attachment, row.whole) == (at, size, "a", True)
        assert id in (None, at)
        assert row.unpack() == batch.records
        assert ((row.first, row.last), row.passage) == (batch.time, batch.passage.number)
        assert (row.counts.tolist(), row.spans) == (batch.counts.tolist(), tuple(batch.spans))
        assert read(stored(db)[0]).body == b""


@given(batches, st.integers(1, 9), st.integers(0, 1 << 20))
def test_a_bit_that_turned_over_in_its_summary_makes_the_row_corrupt(
    batch: Encoded, column: int, bit: int
) -> None:
    with table() as db:
        insert(db, "a", batch)
        summary = list(stored(db)[0])
    value = summary[column]
    summary[column] = "b" if isinstance(value, str) else flipped(value, bit)
    with pytest.raises(BrokenError, match="row 1 is corrupt"):
        read(summary)


@given(batches, st.integers(0, 1 << 20))
def test_one_in_its_body_costs_the_body_alone(batch: Encoded, bit: int) -> None:
    with table() as db:
        insert(db, "a", batch)
        summary, body = stored(db)
    row = read(summary, flipped(body, bit))
    assert not row.whole
    assert (row.body, row.told(), row.is_told) == (b"", None, False)
    assert row.counts.tolist() == batch.counts.tolist()
    assert not read(summary, "no bytes at all").whole


def test_a_row_that_is_restored_is_the_same_and_comes_once() -> None:
    batch = encoded(7, [record(index) for index in range(5)])
    with table() as db, table() as other:
        insert(db, "a", batch, 3)
        row: Row = read(*stored(db))
        for what in (row, batch, row):
            restore(other, "a", 3, what)
            assert stored(other) == stored(db)
        restore(db, "b", 4, batch)
        assert db.execute("SELECT id, attachment FROM batch").fetchall() == [(3, "a"), (4, "b")]


@pytest.mark.parametrize("name", SMALL)
def test_small_tables_carry_marks_too(name: str) -> None:
    columns = SMALL[name].split(", ")
    values = [f"{column} of it" for column in columns]
    with table() as db:
        places = ", ".join("?" * (len(columns) + 1))
        db.execute(f"INSERT INTO {name} ({SMALL[name]}, mark) VALUES ({places})", (*values, mark_of(*values)))
        assert list(small(db, name)) == [[1, *values]]
        db.execute(f"UPDATE {name} SET {columns[-1]} = 'another'")
        with pytest.raises(BrokenError, match=name):
            list(small(db, name))
