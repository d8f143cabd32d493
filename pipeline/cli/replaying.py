"""`replay`: stored records from one place to another, with its progress for the one who waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import trio
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from pipeline import place
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.replay import Progress, replay
from pipeline.tables import console

__all__ = ["moment", "replay_places"]

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
NS_DIGITS: Final = 15
"""A bare number of so many digits is ns since the epoch; shorter ones are dates."""


def replay_places(
    config: Config,
    origin: str,
    target: str,
    *,
    since: str | None,
    until: str | None,
    say: Callable[[str], None],
) -> None:
    """Replay what lies between two times and passes the configuration's filter."""
    keep = None
    if config.filter:
        from pipeline.stages.filter import Judge

        keep = Judge(config.filter, say).keep
    with _bar() as show:
        done = trio.run(
            partial(
                replay,
                place.parse(origin),
                place.parse(target),
                since=moment("--since", since),
                until=moment("--until", until),
                keep=keep,
                kafka=config.kafka,
                partitions=config.topic.partitions,
                largest=config.topic.max_record,
                progress=show,
            )
        )
    say(f"replayed {done.written:,} of {done.read:,} events from {origin} to {target}")


def moment(flag: str, text: str | None) -> int | None:
    """A time as people write it, in ns since the epoch; without a zone it is local."""
    if text is None:
        return None
    if text.isdecimal() and len(text) >= NS_DIGITS:
        return int(text)
    try:
        when = datetime.fromisoformat(text).astimezone()
    except ValueError:
        wanted = "a time such as 2026-01-31T12:00, 2026-01-31T12:00:05.5Z, or ns since the epoch"
        raise UserError(f"{flag} is {text!r}, wanted: {wanted}", status=2) from None
    return (when - EPOCH) // timedelta(microseconds=1) * 1000


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None] | None]:
    """Progress on standard error where that is a terminal."""
    terminal = console(beside=True)
    if not terminal.is_terminal:
        yield None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bar(*columns, console=terminal, transient=True) as bar:
        task = bar.add_task("reading")

        def show(progress: Progress) -> None:
            when = datetime.fromtimestamp(progress.time // 10**9)
            bar.update(
                task,
                description=f"{when:%Y-%m-%d %H:%M:%S}  read {progress.read:,}  written {progress.written:,}",
            )

        yield show
