"""What a user relies on around make: set-up is done once, and Ctrl-C is the command's own affair."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

from tests.absent import absent

ROOT = Path(__file__).parent.parent

PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit({status}))
print("ready", flush=True)
time.sleep(30)
"""


def read_until(terminal: int, word: bytes) -> bytes:
    text = b""
    while word not in text:
        try:
            piece = os.read(terminal, 1024)
        except OSError:  # the other side is gone
            piece = b""
        if not piece:
            break
        text += piece
    return text


def interrupted(folder: Path, status: int) -> tuple[int, bytes]:
    """Run a program by make in a terminal, press Ctrl-C; make's exit status and what was seen after that."""
    (folder / "program.py").write_text(PROGRAM.format(status=status))
    recipe = f"@exec {sys.executable} {ROOT}/config/foreground.py {sys.executable} program.py"
    (folder / "Makefile").write_text(f"run:\n\t{recipe}\n")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvp("make", ["make", "run"])
    assert b"ready" in read_until(terminal, b"ready")
    os.write(terminal, b"\x03")
    rest = read_until(terminal, b"never said")
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), rest


def test_a_clean_end_by_ctrl_c_is_a_success_of_make(tmp_path: Path) -> None:
    status, seen = interrupted(tmp_path, 0)
    assert status == 0
    assert b"make:" not in seen


def test_a_failure_after_ctrl_c_is_a_failure_of_make(tmp_path: Path) -> None:
    assert interrupted(tmp_path, 3)[0] == 2


def test_without_a_terminal_the_command_takes_the_place_of_the_launcher(tmp_path: Path) -> None:
    launch = [sys.executable, f"{ROOT}/config/foreground.py", "sh", "-c", "echo $$; exit 5"]
    done = subprocess.Popen(launch, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert int(done.communicate()[0]) == done.pid
    assert done.returncode == 5


def test_a_second_setup_only_looks() -> None:
    stamp = ROOT / ".venv/stamp"
    if not stamp.exists():
        absent("a second set-up: this environment was not made by make setup")
    subprocess.run(["make", "setup"], cwd=ROOT, check=True, capture_output=True)
    before, began = stamp.stat().st_mtime_ns, time.monotonic()
    done = subprocess.run(["make", "setup"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert time.monotonic() - began < 5
    assert stamp.stat().st_mtime_ns == before
    assert done.stderr == ""
