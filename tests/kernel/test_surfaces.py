"""Where kinds come from, before and after hand-overs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.kernel.manifest import Hook, Manifest
from pipeline.kernel.surfaces import Surfaces


def manifest(*hooks: Hook) -> Manifest:
    return Manifest("b", 0, "/pins", "/state", {}, 1, [], list(hooks))


def test_a_kind_that_a_hand_over_added_is_looked_up_once() -> None:
    first = manifest(Hook("exec", "lsm", {}, True, ""), Hook("bind", "lsm", {}, False, "refused"))
    second = replace(first, hooks=[Hook("fork", "tracepoint", {}, True, "")], former={"exec": "lsm"})
    asked: list[None] = []

    def renew() -> Manifest:
        asked.append(None)
        return second

    surfaces = Surfaces(first, renew)
    assert dict(surfaces) == {"exec": "lsm"}
    assert not asked
    assert surfaces["fork"] == "tracepoint"
    assert surfaces.get("exec") == "lsm", "of whose events some may be on their way"
    assert len(surfaces) == 2
    assert len(asked) == 1
    with pytest.raises(KeyError):
        surfaces["bind"]
