"""The command `promissory`: the top of the house.

commands.py reads the command line; reading.py, replaying.py and schemas.py do what has no better home. Here
is what every end of a command looks like: a status, and one line to a person.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, TextIO

import typer

from pipeline.cli.commands import app, state_folder
from pipeline.errors import UserError
from pipeline.privilege import no_link

__all__ = ["main"]

INTERRUPTED: Final = 130
"""Ctrl-C ended it: 128 + SIGINT, as shells say it."""
PIPE_CLOSED: Final = 141
"""The reader of our output went away: 128 + SIGPIPE."""
INTERNAL: Final = 70
"""We have a fault."""


def main() -> None:
    """Run the command line and end the process."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character must not end a run.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = command(sys.argv[1:])
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:
        status = _end(error)
    sys.exit(status)


def command(arguments: Sequence[str]) -> int:
    """Run one command; return its status. Everything that goes wrong is raised."""
    group = typer.main.get_command(app)
    try:
        with group.make_context("promissory", list(arguments)) as context:
            group.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return 0


def _end(error: BaseException) -> int:
    """Tell a person what happened; return the status."""
    if isinstance(error, typer.TyperException):
        _say(f"error: {error.format_message().replace('Value error, ', '')}")
        return error.exit_code
    leaves = list(_leaves(error))
    for leaf in leaves:
        if not isinstance(leaf, UserError | KeyboardInterrupt | BrokenPipeError):
            return _fault(error, leaf)
    for leaf in leaves:
        if isinstance(leaf, UserError):
            _say(f"error: {leaf}")
            return leaf.status
    if any(isinstance(leaf, BrokenPipeError) for leaf in leaves):
        _silence(sys.stdout)
        return PIPE_CLOSED
    return INTERRUPTED


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Nurseries raise groups."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _fault(error: BaseException, first: BaseException) -> int:
    """A fault of ours: one line for the person, the traceback for whoever mends it."""
    if os.environ.get("PROMISSORY_DEBUG"):
        traceback.print_exception(error)
        return INTERNAL
    what = f"{type(first).__name__}: {' '.join(str(first).split())}"[:300]
    log = state_folder() / "errors.log"
    hint = f"details in {log}" if _keep(log, error) else "set PROMISSORY_DEBUG=1 for details"
    _say(f"error: unexpected {what} ({hint})")
    return INTERNAL


def _keep(log: Path, error: BaseException) -> bool:
    """Append a traceback to the log of errors, if its folder is there to be written to."""
    try:
        with open(log, "a", errors="backslashreplace", opener=no_link) as file:
            file.write(f"\n{datetime.now().isoformat(timespec='seconds')} {sys.argv[1:]}\n")
            traceback.print_exception(error, file=file)
    except OSError:
        return False
    return True


def _say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(f"promissory: {text}", file=sys.stderr)


def _silence(stream: TextIO) -> None:
    """Nobody reads: what the interpreter flushes at its end must not fail."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
