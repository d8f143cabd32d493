"""Harmless acts of the loader's own, one per kind: what comes of them proves a hook.

That a program is attached does not mean that it runs. Each act is done by a child process of the loader,
whose events are booked as `self-test`. A kind that is not here has no harmless act (modules, the kernel's
text).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Final

from pipeline.kernel import netlink

__all__ = ["ACTS", "act"]


def _exec() -> None:
    os.execv("/bin/true", ["true"])


def _fail_to_exec() -> None:
    nothing = "/nonexistent/promissory-self-test"
    os.execv(nothing, [nothing])


ACTS: Final[dict[str, Callable[[], None]]] = {
    "exec": _exec,
    "exec_failed": _fail_to_exec,
    "fork": lambda: None,
    "exit": lambda: None,
    "audit": lambda: netlink.say(b"promissory: self-test"),
}
"""Kind → what a child does; that there is a child at all is fork's and exit's."""


def act(kinds: Iterable[str]) -> None:
    """Do the acts of these kinds."""
    for kind in kinds:
        if kind in ACTS:
            _in_a_child(ACTS[kind])


def _in_a_child(deed: Callable[[], None]) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            deed()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
