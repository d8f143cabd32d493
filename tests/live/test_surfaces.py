"""check --matrix on this kernel, against what the shared run is attached to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline.schema import by_name
from tests.live.run import Live

pytestmark = [pytest.mark.kernel, pytest.mark.vm]

SHEET = os.environ.get("TESTS_SHEET")
"""Where tests/vm wants the kernel's sheet."""


def test_the_sheet_has_every_surface_and_says_what_a_run_takes(live: Live) -> None:
    done = live.command("check", "--matrix", "--json", "--state", str(live.state))
    if SHEET:
        Path(SHEET).write_text(done.stdout)
    rows = json.loads(done.stdout)["rows"]
    assert [(row["event"], row["surface"]) for row in rows] == [
        (schema.name, surface.name) for schema in by_name().values() for surface in schema.surfaces
    ]
    first: dict[str, str] = {}
    for row in rows:
        assert row["state"] in ("proven", "attached", "refused"), row
        assert row["answer"], row
        if row["state"] != "refused":
            first.setdefault(row["event"], row["surface"])
    assert first == live.kinds
