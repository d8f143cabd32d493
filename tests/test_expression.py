"""A filter's text: checked before anything runs, and refused in one line that a person can use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.columns import COLUMNS
from pipeline.expression import EvaluationError, Expression, FilterError


def test_every_column_can_be_used() -> None:
    for name in COLUMNS:
        assert Expression(f'"{name}" IS NOT NULL').names == {name}


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("pidd = 3", "no column pidd; did you mean pid?"),
        ("zzz = 3", "no column zzz"),
        ("pid", "gives Int64"),
        ("pid >", "cannot be read"),
        ("", "cannot be read"),
        ("user = 'x'", "double quotes"),
        ("pid = 'x'", "cannot be evaluated"),
        ("true", "uses no column"),
        ("pid > max(pid)", "more than one event (max)"),
        ("count(*) > 3 AND pid > 1", "more than one event (len)"),
        ("row_number() OVER (ORDER BY pid) > 1", "more than one event (window)"),
        ("pid > (SELECT 3)", "sub-queries"),
        ("pid IN (SELECT a FROM read_csv('/etc/passwd'))", "no file"),
        ("pid IN (SELECT a FROM \"READ_CSV\"('/etc/passwd'))", "no file"),
    ],
)
def test_what_cannot_be_a_filter_is_refused_in_one_line(expression: str, says: str) -> None:
    with pytest.raises(FilterError) as caught:
        Expression(expression)
    text = str(caught.value)
    assert says in text
    assert "\n" not in text
    assert "parent_executable" in text
    assert "root:x:0" not in text
    assert caught.value.__cause__ is None
    assert caught.value.status == 2


def test_one_answer_for_each_event() -> None:
    expression = Expression("uid >= 1000 AND path LIKE '/tmp/%'")
    assert expression.names == {"uid", "path"}
    assert expression({"uid": [0, 1000, 1001, 1000], "path": ["/tmp/x", "/tmp/x", "/bin/x", None]}) == [
        False,
        True,
        False,
        None,
    ]
    assert expression({"uid": [], "path": []}) == []


@pytest.mark.parametrize("path", ["no number", "\ud800"])
def test_what_fails_on_some_event_says_so_in_one_line(path: str) -> None:
    expression = Expression("CAST(path AS BIGINT) > 3")
    with pytest.raises(EvaluationError) as caught:
        expression({"path": ["4", path]})
    assert "\n" not in str(caught.value)


def test_polars_is_loaded_for_those_who_filter_only() -> None:
    code = "import sys; import pipeline.stages.filter; assert 'polars' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
