"""Where BPF is no active security module the kernel attaches LSM programs too, and never calls them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.schema import by_name
from tests.live.run import Live

pytestmark = [pytest.mark.kernel, pytest.mark.lsm]

MODULES = Path("/sys/kernel/security/lsm")


@pytest.fixture(autouse=True)
def _inactive() -> None:
    if not MODULES.exists() or "bpf" in MODULES.read_text().split(","):
        pytest.skip("NOT TESTED: BPF is an active security module here, or nobody can tell")


def test_other_surfaces_serve_and_say_why(make_live: Callable[..., Live]) -> None:
    live = make_live()
    done = live.command("check", "--json", "--events", "all", "--state", str(live.state))
    rows = json.loads(done.stdout)
    answers = {(row["what"], row["answer"].partition(":")[0].split()[0]): row for row in rows}
    taps = [schema.name for schema in by_name().values() if schema.surface("lsm")]
    assert {"exec", "mmap", "mprotect", "module_request"} <= set(taps)
    for kind in taps:
        row = answers[kind, "lsm"]
        assert "BPF is not among this kernel's active security modules" in row["answer"]
        assert (row["status"], row["advice"]) == ("ok", "another surface serves")
    serving = {row["what"]: row["answer"].split()[0] for row in rows if ": proven: " in row["answer"]}
    assert {kind: serving.get(kind) for kind in taps} == {
        "exec": "tracepoint",
        "mmap": "fexit",
        "mprotect": "fexit",
        "module_load": None,
        "module_request": None,
    }
    unproven = {row["what"]: row["answer"].split()[0] for row in rows if "unproven" in row["answer"]}
    assert (unproven["module_load"], unproven["module_request"]) == ("fexit", "tracepoint")
