"""Virtual machines with Debian's kernels, under software emulation (docs/testing.md).

fetch has kernels ready; run runs a command inside one; test runs the tests inside all of them.
"""

from __future__ import annotations

import argparse
import sys

from tests.vm.kernels import MATRIX, Missing, fetch
from tests.vm.machine import Broken, run
from tests.vm.suite import JOBS, run_all

NOT_RUN = 125
"""Exit status when the command itself did not run, as of env and timeout."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    commands = top.add_subparsers(dest="what", required=True)
    fetching = commands.add_parser("fetch", help="have kernels ready to boot")
    fetching.add_argument("kernels", nargs="*", metavar="KERNEL", help=", ".join(MATRIX))
    running = commands.add_parser("run", help="run a command inside one machine, as root, in this folder")
    running.add_argument("kernel", choices=[*MATRIX])
    running.add_argument("--append", action="append", default=[], metavar="OPTION", help="a kernel option")
    running.add_argument("--timeout", type=float, default=900, help="seconds")
    running.add_argument(
        "--counted", action="store_true", help="its clock counts instructions: for measuring"
    )
    running.add_argument("command", nargs="+")
    testing = commands.add_parser("test", help="run the tests inside each")
    testing.add_argument("machines", nargs="*", metavar="MACHINE", help=", ".join(job.name for job in JOBS))
    testing.add_argument("--pytest", default="", help="more arguments for pytest")
    return top


def main() -> int:
    """Do what the command line asks for."""
    asked = parser().parse_args()
    try:
        if asked.what == "test":
            return run_all(asked.machines, asked.pytest.split())
        if asked.what == "fetch":
            for name in asked.kernels or MATRIX:
                fetch(MATRIX[name])
                print(f"{name}: {MATRIX[name].release}")
            return 0
        kernel = MATRIX[asked.kernel]
        fetch(kernel)
        output = sys.stdout.buffer
        return run(
            kernel,
            asked.command,
            output=output,
            options=asked.append,
            timeout=asked.timeout,
            counted=asked.counted,
        )
    except (Missing, Broken) as error:
        print(f"vm: {error}", file=sys.stderr)
        return NOT_RUN


if __name__ == "__main__":
    sys.exit(main())
