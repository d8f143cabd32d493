"""Feeds: sources that the kernel serves by other ways than BPF, each into a ring of the pipeline's own.

perf (perf.py), audit (audit.py) → kernel/own_ring.py → rings.py, which asks them at every pass
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, Literal, Protocol

__all__ = ["Feed", "unwanted"]

_NOBODY: Final = 0xFFFFFFFF


def unwanted(
    known: Mapping[str, int | bytes] | None, uids: Collection[int], cgroups: Collection[int]
) -> Literal["self", "uid", "cgroup"] | None:
    """Why an event is not wanted, by what is known of its process (kernel/who.py). `uids`, `cgroups`: those
    asked for; empty: all. Whose is unknown is reported all the same.
    """
    if known is None:
        return "self"
    if uids and known.get("uid", _NOBODY) not in (*uids, _NOBODY):
        return "uid"
    if cgroups and known.get("cgroup", 0) not in (*cgroups, 0):
        return "cgroup"
    return None


class Feed(Protocol):
    """A reader of something that the kernel offers; it fills one own ring.

    It is never awaited: a pass asks it for what is there, and while all is quiet its descriptors are waited
    on, one task for each.
    """

    @property
    def descriptors(self) -> Sequence[int]:
        """What becomes readable when something comes."""
        ...

    @property
    def waits(self) -> bool:
        """Something came and was not put yet: look again soon."""
        ...

    @property
    def oldest(self) -> int | None:
        """ns since boot: nothing that came and was not put yet is earlier; None: there is no such thing. No
        heartbeat vouches for what is later.
        """
        ...

    def listen(self, on: bool) -> None:
        """The source goes to sleep (True) or is awake again (False): only a sleeper has to be woken."""
        ...

    def pump(self, now: int, *, beat: bool = False, last: bool = False) -> None:
        """Put what came and is older than `now` (ns since boot, read just before) into the ring, in order of
        time, and publish it. `beat`: a heartbeat is going to vouch for the time before; all its losses are to
        be booked. After the `last` call nobody asks again: nothing may be held back.
        """
        ...

    def close(self) -> None:
        """Give the descriptors back."""
        ...
