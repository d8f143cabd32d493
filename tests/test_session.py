"""What a run says of events that it does not collect, and what it begins with. (The run itself:
tests/live/test_run.py.)
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pipeline.kernel.manifest import Hook, Manifest
from pipeline.schema import Surface, by_name
from pipeline.session import absent, more_files

PRICE = "runs at the end of every system call: 20 ns each"
FREE = (Surface("lsm"), Surface("fexit"))


@pytest.fixture(autouse=True)
def _schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kinds that may be free or priced, one that is never free, and some without a price."""
    surfaces = {
        "bind": (*FREE, Surface("sys_exit", cost=PRICE)),
        "listen": (*FREE, Surface("sys_exit", cost=PRICE)),
        "exec_failed": (Surface("sys_exit", cost="is dear"),),
        "module_load": FREE,
        "module_unload": FREE,
        "fork": (),
    }
    made = {name: replace(by_name()[name], surfaces=some) for name, some in surfaces.items()}
    monkeypatch.setattr("pipeline.session.by_name", lambda: made)


def manifest(*hooks: Hook) -> Manifest:
    return Manifest("b", 0, "/pins", "/state", {}, 1, [], list(hooks))


def refused(event: str, surface: str) -> Hook:
    return Hook(event, surface, {}, False, f"{surface}/x: refused: Operation not permitted")


def test_events_of_one_reason_share_a_line() -> None:
    tried = [refused(event, surface) for event in ("bind", "listen") for surface in ("lsm", "fexit")]
    for event in ("module_load", "module_unload"):
        tried += [refused(event, "lsm"), replace(refused(event, "fexit"), answer="no such thing")]
    assert list(absent(manifest(*tried))) == [
        f"not collected here: bind, listen (only at a price: it {PRICE}; --events turns it on)",
        "not collected here: exec_failed (only at a price: it is dear; --events turns it on)",
        "not collected here: module_load, module_unload (refused: Operation not permitted; no such thing)",
    ]


def test_what_works_or_was_never_tried_is_no_line() -> None:
    works = [Hook(event, "fexit", {}, True, "proven") for event in ("bind", "listen", "exec_failed")]
    assert list(absent(manifest(refused("bind", "lsm"), *works))) == []


@pytest.fixture
def limit() -> Iterator[int]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield resource.RLIMIT_NOFILE
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_as_many_files_as_may_be(limit: int) -> None:
    hard = resource.getrlimit(limit)[1]
    resource.setrlimit(limit, (256, hard))
    more_files()
    assert resource.getrlimit(limit) == (hard, hard)
    more_files()
