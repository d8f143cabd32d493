"""Adding an event touches two files: those of docs/adding-an-event.md, in a copy of the project."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.books import ask
from pipeline.docs import DOCS
from tests.live.run import ATTACHING, PATIENCE, eventually

pytestmark = pytest.mark.kernel

NAME = "signal_sent"


@pytest.fixture
def project(ground: Path) -> Path:
    """What is read at run time, with two files more."""
    folder = ground / "project"
    for part in ("bpf", "config", "pipeline", "schemas"):
        shutil.copytree(DOCS.parent / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    text = (DOCS / "adding-an-event.md").read_text()
    files = re.findall(r"^\*\*([\w/.]+)\*\*:\n\n```\w+\n(.*?)^```$", text, re.M | re.S)
    assert [name for name, _ in files] == [f"schemas/{NAME}.toml", f"bpf/{NAME}.c"]
    for name, content in files:
        assert not (folder / name).exists()
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def environment(ground: Path) -> Iterator[dict[str, str]]:
    """Pins of its own; in the end nothing of it is left."""
    pins = Path(f"/sys/fs/bpf/promissory-test-{os.getpid()}-adding")
    yield {**os.environ, "PROMISSORY_PINS": str(pins), "PROMISSORY_STATE": str(ground / "adding")}
    assert not pins.exists()


def test_two_files_are_enough(project: Path, environment: dict[str, str], ground: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli"]

    def answer(*arguments: str) -> str:
        return subprocess.check_output([*command, *arguments], cwd=project, env=environment, text=True)

    assert "process id of the one that gets it" in answer("schema", "show", NAME)
    said = ground / "signals"
    with said.open("w") as output:
        run = subprocess.Popen(
            [
                *(*command, "run", "--events", NAME, "--to", "-"),
                *("--filter", f"target = {os.getpid()} AND number = 10"),
            ],
            cwd=project,
            env=environment,
            stdout=output,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        eventually(lambda: ask(ground / "adding") or run.poll() is not None, "the run to begin", ATTACHING)
        before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        child = os.posix_spawn("/bin/sh", ["sh", "-c", f"kill -USR1 {os.getpid()}"], {})
        os.waitpid(child, 0)
        signal.signal(signal.SIGUSR1, before)
    finally:
        run.send_signal(signal.SIGINT)
        status = run.wait(PATIENCE)
    (record,) = (
        found for line in said.read_text().splitlines() if (found := json.loads(line))["kind"] == NAME
    )
    assert (status, record["surface"], record["schema"]) == (0, "tracepoint", f"{NAME}/1")
    assert (record["number"], record["target"]) == (signal.SIGUSR1, os.getpid())
    assert (record["process"]["pid"], record["process"]["comm"]) == (child, "sh")
    required: dict[str, Any] = json.loads(answer("schema", "json", NAME))
    assert record.keys() >= set(required["required"])
    assert json.loads(answer("ledger", "--json"))["balanced"]
