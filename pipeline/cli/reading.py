"""`tail`: what was stored, for eyes or for programs."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import trio

from pipeline import place
from pipeline.config import Config
from pipeline.console import show
from pipeline.consume import source
from pipeline.jsonl import fields_to_json
from pipeline.notices import HEARTBEAT, NOTICES
from pipeline.sources.source import Record, Source, Window
from pipeline.tables import console
from pipeline.values import EVERY

__all__ = ["Chooser", "tail", "tail_place"]

LOOK: Final = 10_000
"""How many of the newest records are searched for those that are wanted, before all are."""

Fields = dict[str, Any]
Out = Callable[[Sequence[Fields]], None]
Say = Callable[[str], None]


def tail_place(
    config: Config,
    text: str | None,
    *,
    newest: int | None,
    follow: bool,
    heartbeats: bool,
    as_json: bool,
    say: Say,
) -> None:
    """Print a place's newest events (None: all), and go on with what comes if asked to.

    Without a text it is the place where `run` writes. Events and filter are the configuration's. Losses are
    shown whatever is asked for.
    """
    where = place.parse(text or config.to or str(config.state))
    chooser = Chooser(() if EVERY in config.events else config.events, config.filter, say)
    out = _print_json if as_json else _text_printer()
    without = () if heartbeats else (HEARTBEAT,)
    read = partial(tail, source(where, config.kafka), chooser, out)
    trio.run(partial(read, newest=newest, follow=follow, without=without))


class Chooser:
    """Which records are shown: those of the kinds asked for that pass the filter."""

    def __init__(self, kinds: Iterable[str], expression: str | None, say: Say) -> None:
        self._kinds = tuple(kinds)
        self._say = say
        self._judge = None
        if expression:
            from pipeline.stages.filter import Judge

            self._judge = Judge(expression, say)

    @property
    def takes_all(self) -> bool:
        """Whether nothing was asked for in particular."""
        return not self._kinds and self._judge is None

    def __call__(self, records: Iterable[Record]) -> list[Fields]:
        """The events to show, decoded, and all notices."""
        known = [r.fields for r in records if self._is_ours(r)]
        if self._kinds:
            known = [fields for fields in known if fields["kind"] in (*self._kinds, *NOTICES)]
        events = [fields for fields in known if fields["kind"] not in NOTICES]
        if self._judge and events:
            verdicts = iter(self._judge.keep(events))
            known = [fields for fields in known if fields["kind"] in NOTICES or next(verdicts)]
        return known

    def _is_ours(self, record: Record) -> bool:
        if {"kind", "time"} <= record.fields.keys() and (
            "process" in record.fields or record.fields["kind"] in NOTICES
        ):
            return True
        self._say(f"{record.place} holds no event; it is left out")
        return False


async def tail(
    source: Source,
    chooser: Chooser,
    out: Out,
    *,
    newest: int | None,
    follow: bool,
    without: tuple[str, ...] = (HEARTBEAT,),
) -> None:
    """Hand events to `out`: the newest so many of those chosen (None: all), then, if asked to, what comes.

    `without`: families to leave out.
    """
    window = Window(follow=follow, without=without)
    if newest is None or newest == 0 or chooser.takes_all:
        async with source.batches(replace(window, last=newest)) as batches:
            async for batch in batches:
                out(chooser(batch))
    elif not await _among_newest(source, chooser, out, newest, window):
        await _among_all(source, chooser, out, newest, window)


async def _among_newest(source: Source, chooser: Chooser, out: Out, newest: int, window: Window) -> bool:
    """Look through the newest records only. False: too few were chosen, and nothing was handed out."""
    is_first = True
    async with source.batches(replace(window, last=LOOK)) as batches:
        async for batch in batches:
            if not batch:
                continue
            chosen = chooser(batch)
            if is_first:
                # Of those that stand there, some may have been repeats.
                if len(chosen) < newest and len(batch) > LOOK // 2:
                    return False
                chosen = chosen[-newest:]
                is_first = False
            out(chosen)
    return True


async def _among_all(source: Source, chooser: Chooser, out: Out, newest: int, window: Window) -> None:
    """Look through everything, keeping the newest that were chosen. An empty batch ends what stood there."""
    kept: deque[Fields] | None = deque(maxlen=newest)
    async with source.batches(window) as batches:
        async for batch in batches:
            if kept is None:
                out(chooser(batch))
            elif batch:
                kept.extend(chooser(batch))
            else:
                out(list(kept))
                kept = None
    if kept:
        out(list(kept))


def _print_json(events: Sequence[Fields]) -> None:
    if events:
        sys.stdout.write("".join(f"{fields_to_json(event)}\n" for event in events))
        sys.stdout.flush()


def _text_printer() -> Out:
    terminal = console()

    def print_text(events: Sequence[Fields]) -> None:
        for event in events:
            show(terminal, event)
        terminal.file.flush()

    return print_text
