"""The ledger for eyes."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from pipeline.event import Ints
from pipeline.ledger import Statement, zeros
from pipeline.schema import by_name
from pipeline.tables import print_ledger, summary

EXEC = by_name()["exec"].number
RING = {
    "chunks_attempted": 1010,
    "chunks_attempted_after": 1010,
    "chunks_read": 1000,
    "gaps": 10,
    "drops": 10,
}


@pytest.fixture
def statement() -> Statement:
    def events(number: int) -> Ints:
        counts = zeros()
        counts[EXEC] = number
        return counts

    return Statement(
        attempted=events(1234),
        attempted_after=events(1234),
        acknowledged=events(1200),
        tally={("filtered", "kernel", "self"): events(30), ("lost", "ring", "full"): events(4)},
        in_outbox=zeros(),
        in_flight=zeros(),
        rings={0: {**RING, "unread": 0}},
    )


def shown(statement: Statement, *, rings: bool = True) -> list[list[str]]:
    file = io.StringIO()
    print_ledger(Console(file=file, width=200), statement.to_plain(), rings=rings)
    return [line.split() for line in file.getvalue().splitlines()]


def test_every_term_stands_in_the_table(statement: Statement) -> None:
    lines = shown(statement)
    assert ["exec", "1,234", "0", "30", "0", "0", "1,200", "4", "0"] in lines
    assert ["all", "1,234", "0", "30", "0", "0", "1,200", "4", "0"] in lines
    assert ["kernel", "self", "exec", "30"] in lines
    assert ["ring", "full", "exec", "4"] in lines
    assert ["0", "1,010", "1,000", "10", "10"] in lines
    assert not [line for line in lines if line[:1] in (["fork"], ["exit"])]
    assert ["0", "1,010", "1,000", "10", "10"] not in shown(statement, rings=False)


def test_verdict(statement: Statement) -> None:
    terms = "attempted 1,234 = acknowledged 1,200 + filtered 30 + lost 4 + in outbox 0 + in flight 0"
    assert summary(statement.to_plain()) == f"ledger: balanced ✓  {terms}"
    wrong = replace(statement, acknowledged=statement.acknowledged - 1)
    assert summary(wrong.to_plain()).startswith("ledger: NOT BALANCED ✗")
    assert shown(wrong)[-1][:4] == ["ledger:", "NOT", "BALANCED", "✗"]
