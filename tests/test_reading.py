"""`tail` and `replay` through the command, over a real log; and what `tail` asks of a source."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio

from pipeline.cli.reading import LOOK, Chooser, tail
from pipeline.cli.replaying import moment
from pipeline.errors import UserError
from pipeline.event import Encoded, Passage, Records
from pipeline.ledger import zeros
from pipeline.sources.source import Picked, Record, Window
from pipeline.store import LOG, Store
from tests.test_cli import CLEAN, COMMAND, complaint, promissory

START = 1_800_000_000 * 10**9


def event(number: int, kind: str = "exit", **own: Any) -> dict[str, Any]:
    """A record as it is stored; its number is its pid, and its time in ms after START."""
    process = {"id": f"p{number}", "pid": number, "uid": number % 3, "user": None, "comm": b"\xff\n"}
    by_kind: dict[str, dict[str, Any]] = {
        "exit": {"code": number % 256, "signal": 0, "core": False},
        "exec": {"executable": "/bin/x", "path": "x", "interpreter": None, "argv": ["x", b"\xfe"]},
    }
    return {
        "schema": f"{kind}/1",
        "kind": kind,
        "time": START + number * 10**6,
        "host": {"boot_id": "b"},
        "ring": 0,
        "sequence": number,
        "process": process,
        **by_kind[kind],
        **own,
    }


def store(folder: Path, events: Iterable[dict[str, Any]], size: int = 10) -> None:
    """Put events into a log, in rows of so many."""
    events = list(events)
    log = Store(folder / LOG)
    for at in range(0, len(events), size):
        batch = events[at : at + size]
        times = [one["time"] for one in batch]
        records = Records(
            [b"key"] * len(batch), [msgpack.packb(one) for one in batch], [time // 10**6 for time in times]
        )
        log.append([Encoded({"process": records}, zeros(), Passage(at, {}), (times[0], times[-1]))])
    log.close()


def lines(*arguments: str) -> list[str]:
    done = promissory(*arguments)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.splitlines()


def pids(*arguments: str) -> list[int]:
    """Of the events that `tail` prints as JSON."""
    return [json.loads(line)["process"]["pid"] for line in lines("tail", *arguments, "--format", "json")]


@pytest.fixture
def log(tmp_path: Path) -> str:
    """100 events, every tenth an exec."""
    store(tmp_path, (event(n, "exec" if n % 10 == 0 else "exit") for n in range(100)))
    return str(tmp_path)


def test_how_many(log: str) -> None:
    assert pids(log) == list(range(90, 100))
    assert pids(log, "-n", "3") == [97, 98, 99]
    assert pids(log, "-n", "0") == []
    assert pids(log, "--from-start") == list(range(100))


def test_the_newest_of_those_asked_for(log: str) -> None:
    assert pids(log, "-n", "3", "--events", "exec") == [70, 80, 90]
    assert pids(log, "-n", "2", "--filter", "code = 5") == [5]
    assert pids(log, "-n", "2", "--filter", "pid < 20", "--events", "exec") == [0, 10]
    assert pids(log, "--from-start", "--events", "exec") == list(range(0, 100, 10))


def test_json_has_exactly_the_records_keys(log: str) -> None:
    printed = json.loads(lines("tail", log, "-n", "1", "--events", "exec", "--format", "json")[0])
    stored = event(90, "exec")
    stored["process"]["comm"] = {"base64": "/wo="}
    stored["argv"] = ["x", {"base64": "/g=="}]
    assert printed == stored


def test_text_has_one_line_per_event(log: str) -> None:
    shown = lines("tail", log, "-n", "2", "--events", "exec")
    assert len(shown) == 2
    assert shown[1].endswith(" exec                90 0         \\xff\\n           /bin/x  x '\\xfe'")


def test_without_a_place_it_reads_where_run_writes(log: str) -> None:
    done = promissory("tail", "-n", "1", "--format", "json", PROMISSORY_STATE=log, PROMISSORY_EVENTS="exec")
    assert json.loads(done.stdout)["process"]["pid"] == 99
    done = promissory("tail", "-n", "1", "--format", "json", PROMISSORY_STATE="/nowhere", PROMISSORY_TO=log)
    assert json.loads(done.stdout)["process"]["pid"] == 99


def test_what_cannot_be_read(tmp_path: Path, log: str) -> None:
    assert str(tmp_path / "none") in complaint("tail", str(tmp_path / "none"), status=1)
    assert "can only be written to" in complaint("tail", "-")
    assert "Columns: " in complaint("tail", log, "--filter", "pidd = 1")
    assert "did you mean exec?" in complaint("tail", log, "--events", "exce")
    assert "kafka://127.0.0.1:9092" in complaint("tail", "kafka://nowhere")


def test_a_record_that_is_no_event_is_left_out(tmp_path: Path) -> None:
    store(tmp_path, [event(1), {"time": START, "other": 1}, event(2)])
    done = promissory("tail", str(tmp_path), "--format", "json")
    assert [json.loads(line)["process"]["pid"] for line in done.stdout.splitlines()] == [1, 2]
    assert done.stderr == "promissory: process/1@1 holds no event; it is left out\n"


def test_follow_until_ctrl_c(tmp_path: Path) -> None:
    store(tmp_path, [event(1)])
    command = [*COMMAND, "tail", str(tmp_path), "--follow", "--format", "json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=CLEAN
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["process"]["pid"] == 1
        store(tmp_path, [event(2)])
        assert json.loads(process.stdout.readline())["process"]["pid"] == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read() == ""


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    store(tmp_path, (event(n) for n in range(5000)), size=1000)
    for form in ("text", "json"):
        command = [*COMMAND, "tail", str(tmp_path), "--from-start", "--format", form]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=CLEAN) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(20) == 141


# ---- how tail asks


class Listed:
    """A source of records in memory that counts what it hands out."""

    def __init__(self, events: Iterable[dict[str, Any]], live: Iterable[dict[str, Any]] = ()) -> None:
        self.stored = [record(one) for one in events]
        self.live = [record(one) for one in live]
        self.handed_out = 0

    @trio.as_safe_channel
    async def batches(self, window: Window) -> AsyncGenerator[list[Record], None]:
        picked = Picked(window)
        for at in range(0, len(self.stored), 1000):
            batch = picked.take(self.stored[at : at + 1000])
            self.handed_out += len(batch)
            if batch:
                yield batch
        newest = picked.newest()
        self.handed_out += len(newest)
        yield newest
        if window.follow:
            yield picked.take(self.live)


def record(fields: dict[str, Any]) -> Record:
    return Record("process", b"", msgpack.packb(fields), 0, "here")


async def tailed(source: Listed, newest: int | None, *kinds: str, follow: bool = False) -> list[int]:
    found: list[int] = []
    chooser = Chooser(kinds, None, found.append)  # type: ignore[arg-type]
    await tail(
        source,
        chooser,
        lambda events: found.extend(one["process"]["pid"] for one in events),
        newest=newest,
        follow=follow,
    )
    return found


@pytest.mark.parametrize("follow", [False, True])
async def test_a_search_begins_with_the_newest(follow: bool) -> None:
    live = [event(3 * LOOK + n, kind) for n, kind in enumerate(("exit", "exec"))]
    near = Listed([event(n, "exec" if n % 100 == 0 else "exit") for n in range(3 * LOOK)], live)
    expected = [3 * LOOK - 200, 3 * LOOK - 100]
    assert await tailed(near, 2, "exec", follow=follow) == expected + ([3 * LOOK + 1] if follow else [])
    assert near.handed_out == LOOK


@pytest.mark.parametrize("follow", [False, True])
async def test_a_search_goes_on_to_the_oldest(follow: bool) -> None:
    live = [event(3 * LOOK + n, kind) for n, kind in enumerate(("exit", "exec"))]
    far = Listed([event(n, "exec" if n < 5 else "exit") for n in range(3 * LOOK)], live)
    assert await tailed(far, 2, "exec", follow=follow) == [3, 4] + ([3 * LOOK + 1] if follow else [])


async def test_everything() -> None:
    assert await tailed(Listed(event(n) for n in range(3000)), None) == list(range(3000))


# ---- replay


def test_replay_copies_to_the_byte(log: str, tmp_path: Path) -> None:
    done = promissory("replay", log, str(tmp_path / "copy"))
    assert done.returncode == 0, done
    assert done.stderr == f"promissory: replayed 100 of 100 events from {log} to {tmp_path}/copy\n"
    assert values(tmp_path / "copy") == values(Path(log))


def values(folder: Path) -> list[bytes]:
    log = Store(folder / LOG, make=False)
    found = [value for row in log.rows() for value in row.unpack()["process"].values]
    log.close()
    return found


def test_replay_of_a_part(log: str) -> None:
    since, until = START + 20 * 10**6, START + 40 * 10**6
    done = promissory(
        "replay", log, "-", "--since", str(since), "--until", str(until), "--filter", "kind = 'exec'"
    )
    assert [json.loads(line)["process"]["pid"] for line in done.stdout.splitlines()] == [20, 30]
    assert done.stderr == f"promissory: replayed 2 of 20 events from {log} to -\n"


def test_replay_refuses(log: str) -> None:
    assert "replay into another prefix or folder" in complaint("replay", log, log)
    assert complaint("replay", log, "-", "--since", "soon").startswith("--since is 'soon', wanted: a time")
    assert "can only be written to" in complaint("replay", "-", log)
    assert "Missing argument 'TO'" in complaint("replay", log)


def test_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Etc/GMT-2")
    time.tzset()
    try:
        assert moment("--since", None) is None
        assert moment("--since", "1970-01-01T02:00") == 0
        assert moment("--since", "1970-01-01T02:00:01.000001") == 1_000_001_000
        assert moment("--since", "1970-01-02T00:00Z") == 86_400 * 10**9
        assert moment("--since", "1970-01-02") == 22 * 3600 * 10**9
        assert moment("--since", str(START)) == START
        for wrong in ("", "5", "tomorrow", "1970-13-01"):
            with pytest.raises(UserError, match="--until is"):
                moment("--until", wrong)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_progress_only_on_a_terminal(log: str, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "replay", log, str(tmp_path / "copy")],
        stderr=theirs,
        env=CLEAN | {"TERM": "xterm"},
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
        assert process.wait(20) == 0
    os.close(ours)
    assert b"read 100" in shown
    assert b"replayed 100 of 100 events" in shown
