"""One command inside one virtual machine: the host's root shared, QEMU's software emulation.

The command's output comes through a file on the shared root, because Debian's kernels have no virtio-serial
built in; the console is shown only of a machine that did not come up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from tests.vm.kernels import HERE, STATE, Kernel, Missing

__all__ = ["SLOTS", "run", "slot"]

SLOTS: Final = 2
"""Machines at once on this host."""
VIRTME: Final = STATE / "venv" / "bin" / "virtme-run"
INSIDE: Final = Path(__file__).with_name("inside.sh")
LSM: Final = "lsm=lockdown,capability,landlock,yama,bpf"
CACHED: Final = "local,path=/,mount_tag=cached,security_model=none,multidevs=remap"
"""The host's root once more, for inside.sh to mount with a cache."""
SLOWER: Final = 10
"""How much longer than the host an emulated machine may take; tests/live/run.py reads it."""
LOOK: Final = 0.05


@contextlib.contextmanager
def slot(folder: Path = STATE) -> Iterator[Path]:
    """One of the host's places for a machine: a folder of its own, ours while we are in here."""
    folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as files:
        locks = [files.enter_context((folder / f"slot-{n}.lock").open("w")) for n in range(SLOTS)]
        said = False
        while True:
            for number, lock in enumerate(locks):
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    yield folder / f"slot-{number}"
                    return
            if not said:
                print(f"waiting: {SLOTS} virtual machines are running", file=sys.stderr, flush=True)
                said = True
            time.sleep(LOOK * 10)


def run(
    kernel: Kernel,
    command: Sequence[str],
    *,
    output: BinaryIO,
    options: Sequence[str] = (),
    timeout: float = 900,
) -> int:
    """Boot a kernel, run a command in the project's folder as root, and return its status.

    `output` gets what it writes, as it comes. Raises Missing when the machine does not come up, TimeoutError
    when the command takes longer than `timeout` seconds.
    """
    image = kernel.image
    if not VIRTME.exists() or not shutil.which("qemu-system-x86_64"):
        raise Missing("virtual machines need virtme-ng and QEMU: VM=yes config/setup.sh")
    with slot() as folder:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "command").write_text(f"export TESTS_SLOWER={SLOWER}\nexec {shlex.join(command)}\n")
        (folder / "output").touch()
        console = (folder / "console").open("wb")
        machine = subprocess.Popen(
            [
                *(VIRTME, "--kimg", image, "--mods", "auto", "--disable-kvm", "--rw", "--memory", "2G"),
                *("--cpus", "2", "--verbose", "--show-boot-console", "--cwd", HERE, "-a", LSM),
                *(part for option in options for part in ("-a", option)),
                *("--script-sh", f"busybox sh {INSIDE} {folder} {HERE}"),
                *("--qemu-opts", "-virtfs", CACHED),
            ],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
        )
        try:
            return _follow(machine, folder, output, time.monotonic() + timeout, timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(machine.pid, signal.SIGKILL)
            machine.wait()
            console.close()


def _follow(
    machine: subprocess.Popen[bytes], folder: Path, output: BinaryIO, end: float, timeout: float
) -> int:
    status = folder / "status"
    with (folder / "output").open("rb") as written:
        while True:
            over = status.exists() and status.read_text().strip()
            ended = machine.poll() is not None
            output.write(written.read())
            output.flush()
            if over:
                return int(over)
            if ended:
                console = (folder / "console").read_text(errors="replace")
                raise Missing(f"the machine did not come up; its console:\n{console[-6000:]}")
            if time.monotonic() > end:
                raise TimeoutError(f"the machine was stopped: {timeout:.0f} s were not enough (--timeout)")
            time.sleep(LOOK)
