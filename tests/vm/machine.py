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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from tests.vm.kernels import HERE, STATE, Kernel, Missing

__all__ = ["CPUS", "KEPT", "SLOTS", "Broken", "ready", "run", "slot"]

SLOTS: Final = 2
"""Machines at once on this host."""
CPUS: Final = 2
"""Of each."""
KEPT: Final = STATE / "programs"
"""Where the loader inside keeps compiled programs, and finds those that were compiled here."""
VIRTME: Final = Path(sys.executable).with_name("virtme-run")
PROGRAMS: Final = (str(VIRTME), "qemu-system-x86_64", "busybox", "depmod")
INSIDE: Final = Path(__file__).with_name("inside.sh")
FLAGS: Final = (
    *("--mods", "auto", "--disable-kvm", "--rw", "--memory", "2G", "--cpus", str(CPUS), "--cwd", str(HERE)),
    *("--verbose", "--show-boot-console", "--kopt=lsm=lockdown,capability,landlock,yama,bpf"),
)
CACHED: Final = "local,path=/,mount_tag=cached,security_model=none,multidevs=remap"
"""The host's root once more, for inside.sh to mount with a cache."""
ENDS_WITH_US: Final = (
    "sh",
    "-c",
    'exec 3<&0; (read end <&3; kill -KILL 0) & exec "$@" </dev/null 3<&-',
    "sh",
)
"""Whatever ends us closes the pipe that this reads from, and that ends the machine."""
SLOWER: Final = 10
"""How much longer than the host an emulated machine may take; tests/live/run.py reads it."""
CLOCK: Final = 4
"""ns of a counting machine's clock per instruction, a power of two: so it goes about as fast as ours."""
LOOK: Final = 0.05


class Broken(Exception):
    """A machine did not come up, or did not come to its end; says why."""


def ready() -> None:
    """Raise Missing where this host cannot run a machine at all."""
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        raise Missing(f"{', '.join(missing)} not found: config/setup.sh vm")
    if os.geteuid() != 0:
        raise Missing("the machines share this host's root, and inside they are root: sudo")


@contextlib.contextmanager
def slot(folder: Path, slots: int = SLOTS) -> Iterator[Path]:
    """One of the host's places for a machine: a folder that is ours in here. First come, first served."""
    folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as files:
        locks = [files.enter_context((folder / f"slot-{n}.lock").open("wb")) for n in range(slots)]
        with (folder / "queue.lock").open("wb") as queue:
            if _lock([queue]) is None or (number := _lock(locks)) is None:
                print(f"vm: waiting for one of {slots} machines to end", file=sys.stderr, flush=True)
                fcntl.flock(queue, fcntl.LOCK_EX)
                while (number := _lock(locks)) is None:
                    time.sleep(LOOK)
        mine = folder / f"slot-{number}"
        shutil.rmtree(mine, ignore_errors=True)
        mine.mkdir()
        yield mine


def run(
    kernel: Kernel,
    command: Sequence[str],
    *,
    output: BinaryIO,
    options: Sequence[str] = (),
    timeout: float = 900,
    counted: bool = False,
    began: Callable[[], None] = lambda: None,
) -> int:
    """Boot a kernel with more kernel `options`, run a command in the project's folder as root; its status.

    `output` gets what it writes, as it comes; `began` is called when it is our turn. Raises Broken when the
    machine does not come up, or after `timeout` seconds.

    All processors of a machine take turns in one thread: with a thread each, two machines on two cores wait
    for one another's processors more than they work (a first attach took nine minutes in place of one).

    `counted`: for measuring. The machine's clock is the number of instructions that it executed, CLOCK ns for
    each, and leaps over all time in which nothing is to do. What a storm takes is then the same each time, to
    a tenth of a per cent, whatever this host does meanwhile; caches play no part in it.
    """
    ready()
    image = kernel.image
    with slot(STATE) as folder, (folder / "console").open("wb") as console:
        began()
        settings = f"export TESTS_SLOWER={SLOWER} CACHE_DIRECTORY={shlex.quote(str(KEPT))}\n"
        (folder / "command").write_text(f"{settings}exec {shlex.join(command)}\n")
        (folder / "output").touch()
        script = f"busybox sh {INSIDE} {folder} {HERE}"
        clock = ["-icount", f"shift={CLOCK.bit_length() - 1},sleep=off"] if counted else []
        emulator = ["--qemu-opts", "-virtfs", CACHED, "-accel", "tcg,thread=single", *clock]
        mine = ["--kimg", str(image), "--script-sh", script, *(f"--kopt={option}" for option in options)]
        with subprocess.Popen(
            [*ENDS_WITH_US, str(VIRTME), *FLAGS, *mine, *emulator],
            stdin=subprocess.PIPE,
            stdout=console,
            stderr=console,
            start_new_session=True,
        ) as machine:
            try:
                return _follow(machine, folder, output, timeout)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(machine.pid, signal.SIGKILL)


def _lock(files: Sequence[BinaryIO]) -> int | None:
    """Lock one of the files, whichever is free, and say which; it stays locked until it is closed."""
    for number, file in enumerate(files):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return number
    return None


def _follow(machine: subprocess.Popen[bytes], folder: Path, output: BinaryIO, timeout: float) -> int:
    """Pass on what the command writes until its status is there."""
    end = time.monotonic() + timeout
    status = folder / "status"
    with (folder / "output").open("rb") as written:
        while True:
            over, ended = status.exists(), machine.poll() is not None
            output.write(written.read())
            output.flush()
            if over:
                return int(status.read_text())
            if ended:
                console = (folder / "console").read_text(errors="replace")
                raise Broken(f"the machine did not come up; the end of its console:\n{console[-3000:]}")
            if time.monotonic() > end:
                raise Broken(f"the machine was stopped: {timeout:.0f} s were not enough for it")
            time.sleep(LOOK)
