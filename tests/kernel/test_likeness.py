"""Is what is attached what would be attached now; and does this version understand it?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.configure import load
from pipeline.errors import UserError
from pipeline.kernel import likeness
from pipeline.kernel.likeness import COMMON, differing, is_current, laid_out, made_from, need_same
from pipeline.kernel.manifest import Hook, Manifest
from pipeline.schema import by_name

PIN = "entry_exec-raw_tp-x"


def config(folder: Path, **flags: Any) -> Config:
    return load({"state": folder, "pins": folder / "pins", **flags}, environ={})


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Of what is attached, whole."""
    folder = tmp_path / "pins"
    (folder / "gen-3").mkdir(parents=True)
    (folder / PIN.replace("entry", "link")).touch()
    hook = Hook("exec", "tracepoint", {"raw_tp/x": PIN}, True, "proven")
    made, layout = made_from(config(tmp_path)), laid_out(["exec"])
    return Manifest(
        *("b" * 32, 0, str(folder), str(tmp_path), {0: 4096}, 1, ["exec"], [hook]),
        generation=3,
        made=made,
        layout=layout,
    )


@pytest.mark.parametrize(
    "other",
    [
        {"events": "exec"},
        {"surface": "tracepoint"},
        {"kernel": {"uids": [7]}},
        {"caps": {"path": 100}},
        {"environment": {"enabled": False}},
        {"memory": {"all": True}},
    ],
)
def test_another_configuration_is_another_generation(
    tmp_path: Path, manifest: Manifest, other: dict[str, Any]
) -> None:
    assert is_current(manifest, config(tmp_path))
    assert not is_current(manifest, config(tmp_path, **other))


def test_what_the_kernel_need_not_know_changes_nothing(tmp_path: Path, manifest: Manifest) -> None:
    assert is_current(manifest, config(tmp_path, to="-", filter="uid = 0", quiet=True))


def test_other_programs_are_another_generation(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exec.c").write_text("one")
    monkeypatch.setattr(likeness, "BPF", tmp_path)
    one = made_from(config(tmp_path))
    (tmp_path / "exec.c").write_text("two")
    assert len({one, made_from(config(tmp_path)), manifest.made}) == 3


def test_a_hand_over_that_did_not_come_to_its_end(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "pins" / "gen-2").mkdir()
    assert not is_current(manifest, config(tmp_path))


def test_a_hook_without_its_link(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "pins" / PIN.replace("entry", "link")).unlink()
    assert not is_current(manifest, config(tmp_path))


def test_another_layout_is_refused(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    assert differing(manifest) == []
    need_same(differing(manifest))
    schema = by_name()["exec"]
    kinds = {**by_name(), "exec": replace(schema, fields=schema.fields[1:])}
    monkeypatch.setattr(likeness, "by_name", lambda: kinds)
    assert differing(manifest) == ["exec"]
    with pytest.raises(UserError, match=r"lays out exec in another way: .* then `promissory detach`"):
        need_same(differing(manifest))


def test_what_an_older_version_left_without_a_word_of_its_layout(manifest: Manifest) -> None:
    assert differing(replace(manifest, layout={})) == [COMMON]


def test_a_kind_that_is_no_more(manifest: Manifest) -> None:
    assert differing(replace(manifest, layout={**manifest.layout, "teleport": "x"})) == ["teleport"]
