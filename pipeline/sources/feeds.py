"""Feeds: sources that the kernel serves by other ways than BPF, each into a ring of the pipeline's own.

perf (perf.py), audit (audit.py) → kernel/own_ring.py → rings.py, which asks them at every pass
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Feed"]


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

    def listen(self, on: bool) -> None:
        """The source goes to sleep (True) or is awake again (False): only a sleeper has to be woken."""
        ...

    def pump(self, now: int, *, last: bool = False) -> None:
        """Put what came and is older than `now` (ns since boot, read just before) into the ring, in order of
        time, and publish it. After the `last` call nobody asks again: nothing may be held back.
        """
        ...

    def close(self) -> None:
        """Give the descriptors back."""
        ...
