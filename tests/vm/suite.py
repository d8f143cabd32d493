"""The live tests inside each kernel of the matrix. Reports and the kernels' sheets come to .vm/results."""

from __future__ import annotations

import compileall
import os
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from tests.vm.kernels import HERE, MATRIX, STATE, Kernel, Missing, fetch
from tests.vm.machine import SLOTS, Broken, ready, run
from tests.vm.report import Result, read, table, troubles

__all__ = ["JOBS", "Job", "run_all"]

RESULTS: Final = STATE / "results"
TIMEOUT: Final = 600
"""Seconds that one machine may take; two run at a time, and all must be over in twelve minutes."""
ONE_TEST: Final = 300
"""Seconds that one test may take there; the first attaches."""


@dataclass(frozen=True, slots=True)
class Job:
    """One machine: its kernel, and the marker of the tests that run in it."""

    name: str
    kernel: Kernel
    marker: str
    options: tuple[str, ...] = ()
    sheet: bool = True
    """Whether the kernel's sheet is made there too."""


JOBS: Final = (
    *(Job(name, kernel, "vm") for name, kernel in MATRIX.items()),
    Job("6.12-preempt", MATRIX["6.12"], "preempt", ("preempt=full",), sheet=False),
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
    pytest = [
        *(sys.executable, "-m", "pytest", "tests/live", "tests/kernel", "-m", job.marker, "--tb=short"),
        *("-p", "no:cacheprovider", "-o", f"timeout={ONE_TEST}", f"--junitxml={files['xml']}", *arguments),
    ]
    script = [shlex.join(pytest), "status=$?"]
    if job.sheet:
        sheet = [sys.executable, "-m", "pipeline.cli", "check", "--matrix", "--json"]
        script.append(f"{shlex.join(sheet)} >{shlex.quote(str(files['json']))}")
    script.append("exit $status")
    began, trouble = time.monotonic(), ""
    with files["log"].open("wb") as log:
        try:
            run(
                job.kernel,
                ["sh", "-c", "; ".join(script)],
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


def _say(job: Job, what: str) -> None:
    print(f"vm {job.name}: {what}", file=sys.stderr, flush=True)
