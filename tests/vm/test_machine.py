"""What is around a machine: the host's places for it, its command's output and status, and its end."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm import machine
from tests.vm.kernels import HERE, MATRIX, Kernel, Missing
from tests.vm.machine import Broken, ready, run, slot

BOOT = """#!/bin/bash
# Stands for virtme-run: does what inside.sh does, on the host.
while [[ $1 != --script-sh ]]; do shift; done
read -r _ _ _ folder _ <<<"$2"
%s
"""
INSIDE = 'sh "$folder/command" >"$folder/output" 2>&1; echo $? >"$folder/status"; sleep 60'


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Kernel]:
    """A host whose machines do what a script says."""
    monkeypatch.setattr(machine, "STATE", tmp_path)
    monkeypatch.setattr(machine, "VIRTME", tmp_path / "virtme-run")
    monkeypatch.setattr(machine, "ready", lambda: None)
    kernel = Kernel("0", "none", ())
    monkeypatch.setattr(Kernel, "folder", tmp_path)
    (tmp_path / "release").write_text("0")

    def boots(script: str) -> Kernel:
        machine.VIRTME.write_text(BOOT % script)
        machine.VIRTME.chmod(0o755)
        return kernel

    return boots


def test_output_and_status_come_back(host: Callable[[str], Kernel]) -> None:
    output = io.BytesIO()
    command = ["sh", "-c", 'echo $TESTS_SLOWER "$1"; echo to stderr >&2; exit 7', "sh", "a 'quoted' word"]
    assert run(host(INSIDE), command, output=output) == 7
    assert output.getvalue() == b"10 a 'quoted' word\nto stderr\n"


def test_a_machine_that_does_not_come_up_shows_its_console(host: Callable[[str], Kernel]) -> None:
    with pytest.raises(Broken, match="Kernel panic"):
        run(host("echo Kernel panic"), ["true"], output=io.BytesIO())


def test_a_machine_that_takes_too_long_is_stopped(host: Callable[[str], Kernel], tmp_path: Path) -> None:
    kernel = host('echo $$ >"$folder/../pid"; ' + INSIDE)
    output = io.BytesIO()
    with pytest.raises(Broken, match="1 s were not enough"):
        run(kernel, ["sh", "-c", "echo so far; sleep 60"], output=output, timeout=1)
    assert output.getvalue() == b"so far\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_machine_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """Also when that was killed, and could do nothing about it."""
    program = f"""
import subprocess, sys, time
from tests.vm.machine import ENDS_WITH_US
subprocess.Popen([*ENDS_WITH_US, "sh", "-c", "sleep 60 & echo $! >{tmp_path}/pid; wait"],
                 stdin=subprocess.PIPE, start_new_session=True)
time.sleep(60)
"""
    starter = subprocess.Popen([sys.executable, "-c", program], cwd=HERE)
    wait(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    sleeper = int((tmp_path / "pid").read_text())
    os.kill(sleeper, 0)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    wait(lambda: not alive(sleeper))


def test_the_host_has_so_many_places_and_they_go_round(tmp_path: Path) -> None:
    got: list[tuple[str, Path]] = []
    may_end = {name: threading.Event() for name in ("first", "second", "third", "fourth")}

    def use(name: str) -> None:
        with slot(tmp_path, slots=2) as folder:
            (folder / "mine").touch(exist_ok=False)  # what another left is gone
            got.append((name, folder))
            may_end[name].wait(20)

    threads = []
    for number, name in enumerate(may_end):
        threads.append(threading.Thread(target=use, args=(name,)))
        threads[-1].start()
        if number < 2:
            wait(lambda: len(got) > len(threads) - 1)
        time.sleep(0.1)  # the third is in the queue before the fourth
    assert [name for name, _ in got] == ["first", "second"]
    assert got[0][1] != got[1][1]
    may_end["second"].set()
    wait(lambda: len(got) == 3)
    assert got[2] == ("third", got[1][1])
    may_end["first"].set()
    wait(lambda: len(got) == 4)
    assert got[3] == ("fourth", got[0][1])
    for name in ("third", "fourth"):
        may_end[name].set()
    for thread in threads:
        thread.join()


def test_a_host_without_an_emulator_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match=r"qemu-system-x86_64.*config/setup.sh vm"):
        ready()


def test_a_kernel_that_is_not_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Kernel, "folder", tmp_path)
    with pytest.raises(Missing, match=r"fetch 6\.1"):
        run(MATRIX["6.1"], ["true"], output=io.BytesIO())


def wait(found: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not found():
        assert time.monotonic() < end
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
