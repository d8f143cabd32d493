"""What the loader leaves for the pipeline, and when it is not to be believed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.kernel.manifest import FILE, Hook, Manifest, boot_id, charged
from pipeline.kernel.source import SHARED
from pipeline.schema import by_name


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    pins = tmp_path / "pins"
    pins.mkdir()
    (pins / "map_books").touch()
    return Manifest(
        boot_id=boot_id(),
        attached=17,
        pins=str(pins),
        state=str(tmp_path),
        rings={0: 65536, 3: 65536},
        entries=4,
        kinds=["exec", "exit"],
        hooks=[
            Hook("exec", "lsm", {"lsm/bprm_creds_for_exec": ""}, False, "refused"),
            Hook("exec", "tracepoint", {"raw_tp/sched_process_exec": "program_exec-x"}, True, "proven"),
        ],
        processes=5,
    )


def test_it_is_read_as_it_was_written(manifest: Manifest, tmp_path: Path) -> None:
    manifest.write()
    assert Manifest.read(tmp_path) == manifest
    assert manifest.surfaces == {"exec": "tracepoint"}
    assert manifest.id == f"{boot_id()}-17"


def test_there_is_none(tmp_path: Path) -> None:
    assert Manifest.read(tmp_path) is None


def test_one_of_another_boot_says_nothing(manifest: Manifest, tmp_path: Path) -> None:
    replace(manifest, boot_id="0" * 32).write()
    assert Manifest.read(tmp_path) is None


def test_one_whose_pins_are_gone_says_nothing(manifest: Manifest, tmp_path: Path) -> None:
    manifest.write()
    (Path(manifest.pins) / "map_books").unlink()
    assert Manifest.read(tmp_path) is None


def test_half_a_file_says_nothing(manifest: Manifest, tmp_path: Path) -> None:
    manifest.write()
    whole = (tmp_path / FILE).read_text()
    assert json.loads(whole)["entries"] == 4
    (tmp_path / FILE).write_text(whole[: len(whole) // 2])
    assert Manifest.read(tmp_path) is None


def test_skipped_runs_are_charged_to_one_kind_whichever_are_chosen() -> None:
    assert charged("entry_exec-raw_tp-sched_process_exec") == "exec"
    assert charged("entry_mmap-fexit-vm_mmap_pgoff") == "mmap"
    assert charged("entry_sock_state-raw_tp-inet_sock_set_state") == "connect_done"
    assert charged("entry_sys_exit-raw_tp-sys_exit") == "exec_failed"
    assert charged("entry_exec-lsm-bprm_creds_for_exec") == "exec", "what it remembers is that one's"
    assert charged("entry_nobody-lsm-knows") is None
    for hook, name in SHARED.items():
        kind = charged(f"entry_{name}-{hook.replace('/', '-')}")
        assert kind
        hooks = [each for surface in by_name()[kind].surfaces for each in surface.hooks]
        assert hook in hooks or any(each.startswith("sys_exit/") for each in hooks)
