"""The live tests inside each kernel of the matrix. Reports and the kernels' sheets come to .vm/results."""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Final

from tests.vm.kernels import HERE, MATRIX, STATE, Kernel, Missing, fetch
from tests.vm.machine import KEPT, SLOTS, Broken, ready, run
from tests.vm.report import Result, read, table, troubles

__all__ = ["JOBS", "Job", "run_all"]

RESULTS: Final = STATE / "results"
TIMEOUT: Final = 1200
"""Seconds after which a machine hangs. It takes some five minutes."""
ONE_TEST: Final = 600
"""Seconds that one test may take there; the first attaches."""


@dataclass(frozen=True, slots=True)
class Job:
    """One machine: its kernel, and the marker of the tests that run in it."""

    name: str
    kernel: Kernel
    marker: str
    options: tuple[str, ...] = ()


JOBS: Final = (
    *(Job(name, kernel, "vm") for name, kernel in reversed(MATRIX.items())),  # the newest takes longest
    Job("6.12-preempt", MATRIX["6.12"], "preempt", ("preempt=full",)),
    Job("6.12-lsm", MATRIX["6.12"], "lsm", ("lsm=lockdown,capability,landlock,yama",)),
)


def run_all(names: Sequence[str], arguments: Sequence[str] = ()) -> int:
    """Run the jobs of these names (none: all), with more arguments for pytest; returns an exit status."""
    jobs = [job for job in JOBS if not names or job.name in names]
    try:
        ready()
        for kernel in {job.kernel for job in jobs}:
            fetch(kernel)
    except Missing as reason:
        print(f"NOT TESTED in virtual machines ({', '.join(job.name for job in jobs)}): {reason}")
        return int(os.environ.get("CI") == "true")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for folder in ("pipeline", "tests"):  # here it takes a moment, in a machine each process would do it
        compileall.compile_dir(HERE / folder, quiet=2)
    with ThreadPoolExecutor(SLOTS) as pool:
        results = [*pool.map(lambda job: _one(job, arguments), jobs)]
    print(table(results))
    wrong = troubles(results)
    for line in wrong:
        print(line)
    return int(bool(wrong))


def _one(job: Job, arguments: Sequence[str]) -> Result:
    files = {kind: RESULTS / f"{job.name}.{kind}" for kind in ("log", "xml", "json")}
    for file in files.values():
        file.unlink(missing_ok=True)
    _compile(job)
    pytest = [
        *(sys.executable, "-m", "pytest", *_files(job.marker), "-m", job.marker, "--tb=short"),
        *("-p", "no:cacheprovider", "-o", f"timeout={ONE_TEST}", f"--junitxml={files['xml']}", *arguments),
    ]
    began, trouble = time.monotonic(), ""
    with files["log"].open("wb") as log:
        try:
            run(
                job.kernel,
                ["env", f"TESTS_SHEET={files['json']}", *pytest],
                output=log,
                options=job.options,
                timeout=TIMEOUT,
                began=lambda: _say(job, "boots"),
            )
        except (Missing, Broken) as error:
            trouble = str(error)
    result = read(job.name, files["xml"], time.monotonic() - began, trouble)
    _say(job, f"{result.tests} tests, {len(result.failed)} failed; all of it is in {files['log']}")
    return result


@cache
def _files(marker: str) -> tuple[str, ...]:
    """The files that have such tests; pytest, asked for their names, compiles them too."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/live",
        "tests/kernel",
        "tests/faults",
        "--collect-only",
        "-q",
        "-m",
        marker,
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    said = subprocess.run(
        command, cwd=HERE, env=environment, capture_output=True, text=True, check=True
    ).stdout
    return tuple(sorted({line.partition("::")[0] for line in said.splitlines() if "::" in line}))


def _compile(job: Job) -> None:
    """Have LLVM do here what takes minutes in there; what fails here is tried there again."""
    command = [sys.executable, "-m", "tests.vm.programs", job.kernel.name, job.marker]
    environment = {**os.environ, "CACHE_DIRECTORY": str(KEPT)}
    if subprocess.run(command, cwd=HERE, env=environment, check=False).returncode:
        _say(job, "its programs could not be compiled here")


def _say(job: Job, what: str) -> None:
    print(f"vm {job.name}: {what}", file=sys.stderr, flush=True)
