"""A pipeline under test: `promissory run` as a process with state and pins of its own, and its log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgpack
import pytest

from pipeline.books import ask
from pipeline.event import Array
from pipeline.kernel import bpf
from pipeline.kernel.layout import BOOKS, OWN_ROWS, books_view
from pipeline.kernel.manifest import Manifest
from pipeline.notices import NOTICES
from pipeline.store import LOG, Store
from tests.live.host import lacks
from tests.live.witness import Act

__all__ = ["ALL", "PATIENCE", "Live", "Log", "Record", "eventually"]

Record = dict[str, Any]
ALL = "all"
SLOWER = float(os.environ.get("TESTS_SLOWER", "1"))
"""How much longer things may take here: tests/vm says so of a machine that is emulated."""
PATIENCE = 20.0 * SLOWER
"""Seconds to wait for what must come; a busy machine takes its time."""
LOOK = 0.01 * SLOWER
"""Seconds between two looks, which take the time of what is looked at."""
ATTACHING = 120.0 * SLOWER
"""Seconds that the verifier may take on a machine with other things to do."""


def eventually(found: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Call until the answer is true, and return it."""
    end = time.monotonic() + patience
    while True:
        if answer := found():
            return answer
        assert time.monotonic() < end, f"waited {patience} s in vain for {what}"
        time.sleep(LOOK)


class Log:
    """The records of a state folder's local log, in their order, read on as they come."""

    def __init__(self, state: Path) -> None:
        self._path = state / LOG
        self._last = 0
        self.records: list[Record] = []
        self.by_pid: dict[int, list[Record]] = {}
        self.notices: list[Record] = []

    def read(self) -> list[Record]:
        """All records so far."""
        if self._path.exists():
            store = Store(self._path, make=False)
            try:
                while rows := store.rows(self._last):
                    for row in rows:
                        for records in row.unpack().values():
                            self._take(records.values)
                    self._last = rows[-1].id
            finally:
                store.close()
        return self.records

    def of(self, pid: int, *kinds: str) -> list[Record]:
        """Records of one process, of these kinds."""
        self.read()
        return [r for r in self.by_pid.get(pid, ()) if not kinds or r["kind"] in kinds]

    def _take(self, values: Sequence[bytes]) -> None:
        for value in values:
            record = msgpack.unpackb(value)
            if record["kind"] in NOTICES:
                self.notices.append(record)
                continue
            self.records.append(record)
            self.by_pid.setdefault(record["process"]["pid"], []).append(record)


@dataclass
class Live:
    """One state folder with pins of its own, and the commands over it."""

    state: Path
    pins: Path
    settings: dict[str, str] = field(default_factory=dict)
    """Environment variables of configuration keys."""
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.log = Log(self.state)
        # Not in the state folder: that is the pipeline's user's.
        self._output = self.state.with_suffix(".output")

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a promissory command to its end."""
        return subprocess.run(
            [*COMMAND, *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=ATTACHING,
        )

    def start(self, *flags: str, events: str = ALL) -> None:
        """Begin `run`, and wait until it answers for its ledger."""
        if self.process:
            self._kill()
            pytest.fail("a test before this one left its run alive", pytrace=False)
        self.spawn(*flags, events=events)
        self.await_answer()

    def await_answer(self) -> None:
        """Wait until `run` answers for its ledger."""
        assert self.process
        process = self.process
        eventually(lambda: process.poll() is not None or self.answers(), "the pipeline to begin", ATTACHING)
        assert process.poll() is None, self.said()

    def spawn(self, *flags: str, events: str = ALL) -> subprocess.Popen[bytes]:
        """Begin `run`, and wait for nothing."""
        with self._output.open("ab") as output:
            self.process = subprocess.Popen(
                [*COMMAND, "run", "--state", str(self.state), "--events", events, "--quiet", *flags],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C at the tests is none of its business
            )
        return self.process

    def answers(self) -> bool:
        """Whether `run` answers for its ledger."""
        return bool((ask(self.state) or {}).get("attempted"))

    def stop(self, by: signal.Signals = signal.SIGINT) -> int:
        """End `run` and return its status."""
        assert self.process
        self.process.send_signal(by)
        status = self.process.wait(PATIENCE)
        self.process = None
        return status

    def clean(self) -> None:
        """Leave nothing behind, whatever happened."""
        self._kill()
        if self.pins.exists():
            self.command("detach", "--state", str(self.state))

    def _kill(self) -> None:
        """What a test left alive would be met by all that come after it."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    @property
    def kinds(self) -> dict[str, str]:
        """Kind that is reported → the surface that it comes from."""
        manifest = Manifest.read(self.state)
        assert manifest is not None
        return {kind: manifest.surfaces[kind] for kind in manifest.kinds}

    def ledger(self) -> dict[str, Any]:
        """What `promissory ledger --json` says; the live pipeline's answer is asked for without a command."""
        found = ask(self.state)
        if found is None:
            found = json.loads(self.command("ledger", "--state", str(self.state), "--json").stdout)
        return found

    def books(self) -> Array:
        """The kernel's counters, live: a row of BOOKS for each CPU."""
        manifest = Manifest.read(self.state)
        assert manifest is not None
        books = bpf.get(self.pins / "map_books")
        memory = bpf.map_memory(books, (manifest.entries + OWN_ROWS) * BOOKS.itemsize)
        os.close(books)
        return books_view(memory, manifest.entries)[: manifest.entries]

    def joins(self) -> int:
        """Joins of two hooks that are open now, as the kernel's books count them."""
        return int(self.books()["joins"].sum())

    def skipped(self, *kinds: str) -> int:
        """Events that the kernel skipped since the run began, at most: where a program may be preempted (7.3,
        by default), another thread's run of it is left out, and booked.
        """
        losses = self.ledger()["losses"]
        return sum(row["count"] for row in losses if row["reason"] == "skipped" and row["kind"] in kinds)

    def said(self) -> str:
        """What `run` wrote."""
        return self._output.read_text(errors="replace")

    def need(self, *kinds: str) -> None:
        """Skip a test where this host's kernel cannot give these kinds; fail where it can and we do not."""
        missing = [kind for kind in kinds if kind not in self.kinds]
        ours = [kind for kind in missing if not lacks(kind)]
        if ours:
            pytest.fail(f"this kernel could give {', '.join(ours)}, and no surface works", pytrace=False)
        if missing:
            pytest.skip(f"NOT TESTED: this host gives no {', '.join(missing)}; see `promissory check`")

    def only(self, kind: str, **fields: object) -> Record:
        """The one record with these values, when it has come."""

        def found() -> list[Record]:
            return [r for r in self.log.read() if r["kind"] == kind and fields.items() <= r.items()]

        (record,) = eventually(found, f"a {kind} with {fields}")
        return cast(Record, record)

    def ended(self, pid: int) -> Record:
        """The exit event of a process, when it has come; all others of that process are there then."""
        found: list[Record] = eventually(lambda: self.log.of(pid, "exit"), f"the exit of process {pid}")
        return found[-1]

    def execs_of(self, act: Act) -> list[Record]:
        """All exec events of a process that ended well."""
        assert act.status == 0, os.waitstatus_to_exitcode(act.status)
        self.ended(act.pid)
        return self.log.of(act.pid, "exec")

    def exec_of(self, act: Act) -> Record:
        """The one exec event of a process that ended well."""
        (record,) = self.execs_of(act)
        return record

    def environment(self) -> dict[str, str]:
        """Of commands over this state folder."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PROMISSORY_")}
        return {**kept, "PROMISSORY_PINS": str(self.pins), **self.settings}


def json_lines(text: str) -> Iterator[Record]:
    """Records as `tail --format json` prints them."""
    return map(json.loads, text.splitlines())


COMMAND = (sys.executable, "-m", "pipeline.cli")
