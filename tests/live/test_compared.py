"""The last test of a whole run: every field that this kernel yields was compared with a witness."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live.compare import missing
from tests.live.run import Live

pytestmark = [pytest.mark.kernel, pytest.mark.vm]


def test_every_field_that_this_kernel_yields_was_compared(live: Live, pytestconfig: pytest.Config) -> None:
    """Computed from the schemas, and from what the loader says is attached where."""
    asked = [Path(argument.partition("::")[0]) for argument in pytestconfig.args]
    is_whole = pytestconfig.option.markexpr == "vm" or all(path.is_dir() for path in asked)
    if pytestconfig.option.keyword or not is_whole:
        pytest.skip("NOT TESTED: only a run of all of tests/live, or of all that is marked vm, can say")
    lacking = missing(live.kinds)
    if lacking:
        names = ", ".join(lacking)
        pytest.fail(f"no witness was asked for {names}; see tests/live/compare.py", pytrace=False)
