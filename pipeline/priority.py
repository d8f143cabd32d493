"""The pipeline's share of the processors: what keeps all of them busy must not keep it from its rings.

Measured (Linux 6.18, two cores, a storm of execs on each): as every process has it, the pipeline did not
run at all for 11 s, and of a million execs 945,111 were lost (booked, all of them). Processes that are new
go first, again and again, and who waits is moved from core to core. Its nice value alone changed nothing,
nor did a shorter slice: the scheduler weighs sessions (sched(7), autogroup) before what is in them. With
its session's value too it runs as soon as there is something to read: 19,212 of the million were lost.

Rejected: real-time scheduling. It does the same, and where there is one processor it lets nobody else run for
as long as there is much to read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

__all__ = ["take"]

AUTOGROUP: Final = Path("/proc/self/autogroup")


def take(nice: int, say: Callable[[str], None]) -> None:
    """Give this process the nice value, and its session where that is its own (a service; not from a shell,
    whose other commands would have it too). Before any other thread starts: each has what its maker had.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
        if (
            os.getsid(0) == os.getpid() and AUTOGROUP.exists() and AUTOGROUP.read_text()
        ):  # "": the root's group
            AUTOGROUP.write_text(str(nice))
    except OSError as error:
        say(
            f"nice = {nice} is refused ({error.strerror}; CAP_SYS_NICE gives it): a storm on all processors "
            "can keep this process from its rings until they are full"
        )
