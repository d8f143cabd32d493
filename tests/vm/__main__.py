"""Virtual machines with Debian's kernels, by hand.

    python -m tests.vm fetch [KERNEL...]
    python -m tests.vm run 6.12 [--append preempt=full] [--timeout SECONDS] -- COMMAND...
"""

from __future__ import annotations

import argparse
import sys

from tests.vm.kernels import MATRIX, Missing, fetch
from tests.vm.machine import run


def main() -> int:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    fetching = commands.add_parser("fetch", help="have kernels ready")
    fetching.add_argument("kernels", nargs="*", metavar="KERNEL", choices=[*MATRIX, []])
    running = commands.add_parser("run", help="a command inside")
    running.add_argument("kernel", choices=list(MATRIX))
    running.add_argument("--append", action="append", default=[], help="a kernel option")
    running.add_argument("--timeout", type=float, default=900, help="seconds")
    running.add_argument("command", nargs="+")
    asked = parser.parse_args()
    try:
        if asked.what == "fetch":
            for name in asked.kernels or MATRIX:
                fetch(MATRIX[name])
                print(f"{name}: {MATRIX[name].release}")
            return 0
        fetch(MATRIX[asked.kernel])
        return run(
            MATRIX[asked.kernel],
            asked.command,
            output=sys.stdout.buffer,
            options=asked.append,
            timeout=asked.timeout,
        )
    except (Missing, TimeoutError) as error:
        print(f"vm: {error}", file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main())
