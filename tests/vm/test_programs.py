"""Programs for another kernel, compiled here: for its structures, and for the CPUs of a machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.kernel.btf import Btf
from pipeline.kernel.programs import kept
from tests.absent import absent
from tests.live.host import need_kernel
from tests.vm.kernels import HERE, MATRIX
from tests.vm.machine import CPUS

pytestmark = pytest.mark.kernel
NAME = "6.1"
"""Its structures differ most from those of any newer one."""


def test_a_machine_s_programs_are_made_for_its_kernel(tmp_path: Path) -> None:
    need_kernel()
    kernel = MATRIX[NAME]
    if not kernel.types.exists():
        absent(f"no {kernel.types}: make vm-kernels")
    command = [sys.executable, "-m", "tests.vm.programs", NAME, "preempt"]
    environment = {**os.environ, "CACHE_DIRECTORY": str(tmp_path / "kept")}
    subprocess.run(command, cwd=HERE, env=environment, check=True)
    place = Btf(kernel.types.read_bytes()).place("task_struct", "group_leader")
    assert place
    files = list((tmp_path / "kept").iterdir())
    assert files
    for file in files:
        programs = kept(file.name, file.parent)
        assert programs
        assert {"on_exec", "on_fork", "on_exit"} <= programs.code.keys()
        assert programs.maps["exec_scratches"].entries == CPUS
        assert place.offset in offsets(programs.code["on_fork"])


def offsets(code: bytes) -> set[int]:
    """The offsets of all loads of 8 bytes."""
    return {
        int.from_bytes(code[at + 2 : at + 4], "little") for at in range(0, len(code), 8) if code[at] == 0x79
    }
