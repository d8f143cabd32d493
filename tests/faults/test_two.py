"""Row 6: a second pipeline refuses in one clear line, and the first one does not notice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.conftest import Row
from tests.faults.storms import UID, Storms, event_of, mark_of, settled
from tests.live.run import Live, eventually

pytestmark = pytest.mark.kernel

KINDS = "exec,exit"
ANOTHER = "another `promissory run` works over"


def test_a_second_pipeline_refuses(make_live: Callable[..., Live], acts: bytes, row: Row) -> None:
    row(
        "6 two pipelines",
        "`run` over the same state folder, and over the same pins, while one works in a storm",
    )
    first, other = make_live(kernel__uids=str(UID)), make_live()
    other.pins = first.pins  # and a state folder of its own
    first.start(events=KINDS)
    with Storms(acts) as storms:
        answers = [
            (ANOTHER, first.command("run", "--state", str(first.state))),
            (ANOTHER, first.command("detach", "--state", str(first.state))),
            ("attached for another state folder", other.command("run", "--state", str(other.state))),
        ]
    assert first.process
    assert first.process.poll() is None
    for text, done in answers:
        assert done.returncode == 1, done
        (line,) = done.stderr.splitlines()
        assert text in line
    ledger = settled(first)
    assert first.stop() == 0, first.said()
    stored = [(mark, event_of(r)) for r in first.log.read() if (mark := mark_of(r))]
    marks = {mark for mark, _ in stored}
    row.saw(
        refused=len(answers),
        executed=len(storms.executed),
        missing=len(storms.executed - marks),
        doubles=len(stored) - len(marks),
        lost=ledger["lost"],
    )
    assert marks == storms.executed
    assert len({event for _, event in stored}) == len(stored) == len(marks)
    assert ledger["balanced"]
    assert ledger["lost"] == 0


def test_of_two_that_start_at_once_one_runs(make_live: Callable[..., Live], acts: bytes, row: Row) -> None:
    row("6 two pipelines", "two `run` over one state folder, started in the same moment")
    live = make_live(kernel__uids=str(UID))
    attached = live.command("attach", "--state", str(live.state), "--events", KINDS)
    assert attached.returncode == 0, attached.stderr
    with Storms(acts) as storms:
        both = [live.spawn(events=KINDS) for _ in range(2)]
        refused = eventually(lambda: [run for run in both if run.poll() is not None], "one to refuse")
        (live.process,) = [run for run in both if run not in refused]
        live.await_answer()
    ledger = settled(live)
    assert live.stop() == 0, live.said()
    found = sorted(mark for record in live.log.read() if (mark := mark_of(record)))
    row.saw(
        ran=1,
        refused=len(refused),
        executed=len(storms.executed),
        missing=len(storms.executed - set(found)),
        doubles=len(found) - len(set(found)),
    )
    assert [run.returncode for run in refused] == [1]
    assert ANOTHER in live.said()
    assert found == sorted(storms.executed)
    assert ledger["balanced"]
    assert live.command("detach", "--state", str(live.state)).returncode == 0
