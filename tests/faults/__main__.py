"""`python -m tests.faults`: whether docs/faults.md is as its results are; `--write` takes the last runs'."""

from __future__ import annotations

import argparse
import sys

from tests.faults.results import KEPT, PAGE, fresh, keep, kept, page

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Returns an exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {KEPT.name} and {PAGE.name}")
    if parser.parse_args(arguments).write:
        keep(fresh())
        print(f"written: {KEPT}, {PAGE}")
        return 0
    return int(not PAGE.exists() or PAGE.read_text() != page(kept()))


if __name__ == "__main__":
    sys.exit(main())
