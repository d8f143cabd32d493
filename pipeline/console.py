"""The live view of `run`: a look at what goes by, beside the sink, that never holds back a batch.

The pipeline offers each encoded batch as it goes to the sink. The view keeps the newest few records until
it paints, at most ten times a second and from a thread (a terminal may stand still). It counts the rest, and
says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from typing import Final

import msgpack
import trio
from rich.console import Console
from rich.text import Text

from pipeline.event import Encoded
from pipeline.notices import HEARTBEAT
from pipeline.render import line, plain

__all__ = ["View", "show"]

SHOWN: Final = 20
"""Lines of one painting."""
PAUSE: Final = 0.1
"""Seconds between two paintings."""
FAREWELL: Final = 1.0
"""Seconds that the last painting may take."""


class View:
    """Shows events on a console while they pass."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._newest: deque[bytes] = deque(maxlen=SHOWN)
        self._offered = 0
        self._wake = trio.Event()
        self._scope = trio.CancelScope()
        self._is_closed = False
        self._is_broken = False

    def offer(self, encoded: Encoded) -> None:
        """Take note of a batch; returns at once."""
        shown = [records for family, records in encoded.records.items() if family != HEARTBEAT]
        ends = chain.from_iterable(zip(r.times[-SHOWN:], r.values[-SHOWN:], strict=True) for r in shown)
        self._newest.extend(value for _, value in sorted(ends, key=itemgetter(0))[-SHOWN:])
        self._offered += sum(len(records.values) for records in shown)
        if shown:
            self._wake.set()

    def close(self) -> None:
        """No more will be offered: `run` ends when it has painted what it has, or soon, if it cannot."""
        self._is_closed = True
        self._scope.shield = True  # whoever cancels all the rest now waits for the last painting
        self._scope.deadline = trio.current_time() + FAREWELL
        self._wake.set()

    async def run(self) -> None:
        """Paint until the view is closed. When nothing is offered, nothing ticks."""
        with self._scope:
            while not self._is_closed:
                await self._wake.wait()
                self._wake = trio.Event()
                values, offered = list(self._newest), self._offered
                self._newest.clear()
                self._offered = 0
                await trio.to_thread.run_sync(self._paint, values, offered, abandon_on_cancel=True)
                if not self._is_closed:
                    await trio.sleep(PAUSE)
            # A batch that came while the last painting was under way.
            await trio.to_thread.run_sync(
                self._paint, list(self._newest), self._offered, abandon_on_cancel=True
            )

    def _paint(self, values: Sequence[bytes], offered: int) -> None:
        if self._is_broken:
            return
        try:
            if offered > len(values):
                skipped = f"… {offered - len(values):,} events not shown (all go to their place)"
                self._console.print(Text(skipped, style="dim"), soft_wrap=True)
            # To the nanosecond: what was chosen by milliseconds stands family by family in each.
            for record in sorted(map(msgpack.unpackb, values), key=itemgetter("time")):
                show(self._console, record, dated=False)
            self._console.file.flush()
        except BrokenPipeError:
            self._is_broken = True


def show(console: Console, record: dict[str, object], *, dated: bool = True) -> None:
    """Print one record as one line: cut and coloured on a terminal, whole and plain elsewhere."""
    if console.is_terminal:
        console.print(Text.assemble(*line(record, console.width, dated=dated)), soft_wrap=True)
    else:
        console.file.write(plain(line(record, dated=dated)) + "\n")
