"""The pipeline's share of the processors: what keeps all of them busy must not keep it from its rings.

Measured (Linux 6.18, two cores, 80,000 execs on each as fast as they go): the scheduler for ordinary
processes forgets what a group of them used when its members end within microseconds, and lets them go first
again and again. Who waits, the kernel's own threads too, waits for up to three seconds; a ring of 16 MiB is
full after one and a half.

    as every process has it            11 s of 11 without the pipeline, nine tenths of the events lost
    nice -10, its session's too        a quarter to a third lost
    real time (SCHED_RR, priority 1)   none lost; the storm itself takes a third longer

Others still run: the kernel keeps a twentieth of each processor for ordinary processes, and who reads has
only as much to read as they do.

Rejected: real time only while much comes. It takes a right that the pipeline has given up by then
(CAP_SYS_NICE), or a limit (RLIMIT_RTPRIO) that root cannot raise everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["take"]


def take(say: Callable[[str], None]) -> None:
    """Make this process one of real time. Before any other thread starts: each has what its maker had."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError as error:
        say(
            f"real time is refused ({error.strerror}; CAP_SYS_NICE gives it, RestrictRealtime= takes it): a "
            "storm on all processors can keep this process from its rings until they are full"
        )
