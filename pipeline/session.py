"""One `promissory run` from beginning to end: what is attached, who else runs, the pipeline, the last
statement.

    attach → privileges dropped (privilege.py) → pipeline (app.py) → last statement

A run that found nothing attached attaches, and detaches at a clean end; one that found probes attached takes
up where the last one stopped, and leaves them attached. What is attached is handed over where this run asks
for other events, or its programs are others.
"""

from __future__ import annotations

import fcntl
import os
import re
import resource
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pipeline import books, credentials, folder, place, priority, privilege
from pipeline.app import Pipeline, Say
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.kernel import attaching
from pipeline.kernel.attaching import ourselves
from pipeline.kernel.attachment import Attachment
from pipeline.kernel.likeness import differing, is_current
from pipeline.kernel.manifest import Manifest
from pipeline.schema import by_name
from pipeline.sources.privileged import Feeds
from pipeline.stages.filter import Judge
from pipeline.tables import console, print_ledger, summary

__all__ = ["absent", "attach", "detach", "more_files", "run"]

HOOK: Final = re.compile(r"^\w+/\w+: ")
"""What an answer begins with."""


async def run(config: Config, *, say: Say) -> int:
    """Run until the duration is over or a signal comes; print the ledger; return the exit status."""
    target = place.parse(config.to) if config.to else place.Folder(config.state)
    config = config.model_copy(update={"kafka": credentials.read(config.kafka)})
    user = privilege.find(config.user)
    privilege.libraries()
    more_files()
    folders = {config.state, target.path} if isinstance(target, place.Folder) else {config.state}
    for each in folders:
        privilege.own(each, user)
    with _alone(config.state), ExitStack() as stack:
        manifest, ours = _attached(config, say)
        for text in absent(manifest):
            say(text)
        try:
            privilege.give(user, config.pins, folders)
            config = config.model_copy(update={"pins": privilege.reach(config.pins)})
            manifest = replace(manifest, pins=str(config.pins))
            opened = Attachment(manifest)
            opened.know(ourselves())
            if config.realtime:
                priority.take(say)
            feeds = stack.enter_context(closing(Feeds(config, opened, user, say)))
            privilege.keep_modules(user)
            privilege.drop(user)
            judge = Judge(config.filter, say) if config.filter else None
            pipeline = Pipeline(config, target, opened, feeds.all, judge, say)
            await pipeline.open()
        except BaseException:
            if ours:  # nothing half-attached is left behind
                _remove(config, manifest)
            raise
        try:
            finished = await pipeline.run(detaching=ours)
        except* BrokenPipeError:
            if ours:  # nobody reads standard output any more
                _remove(config, manifest)
            raise
        plain = _remove(config, manifest) if ours and finished else books.left_behind(manifest)
    _tell(config, plain, say)
    if waiting := plain["in_outbox"]:
        say(f"{waiting:,} events wait in the outbox: the next run to Kafka over this state folder sends them")
    if not finished:
        say("ended before everything was safe: probes stay attached, the next run goes on from here")
    return 0 if finished and plain["balanced"] else 1


def attach(config: Config) -> Manifest:
    """Attach probes that stay, or hand over what is attached; a pipeline that runs goes on."""
    os.umask(0o077)
    more_files()
    return attaching.attach(config)


def detach(config: Config, say: Say) -> bool:
    """Remove every pin of ours; what nobody took from the rings is booked as lost. False: nothing was
    attached.
    """
    with _alone(config.state):
        manifest = Manifest.read(config.state)
        if manifest is None:
            return attaching.detach(config)
        if differing(manifest):
            say("these probes are another version's: what was in their rings is lost, and in no books")
            return attaching.detach(config)
        plain = _remove(config, manifest)
    unread = sum(row["count"] for row in plain["losses"] if row["reason"] == "detached")
    if unread:
        say(f"{unread:,} events were still in the rings and are lost; a `run` before `detach` takes them")
    return True


def more_files() -> None:
    """Let this process and the loader have as many files open as they may. What a process begins with (1,024)
    is for those that wait by select; perf's buffers of some hundred processors are more.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def absent(manifest: Manifest) -> Iterator[str]:
    """What is not collected though nobody left it out, and why: a line for all events of one reason."""
    reasons: dict[str, list[str]] = {}
    for name, schema in by_name().items():
        price = next((surface.cost for surface in schema.surfaces if surface.cost), "")
        answers = [h.answer for h in manifest.hooks if h.event == name and not h.works]
        if name in manifest.surfaces or not (price or answers):
            continue
        # `check` says which hook it was; here events are to share a line.
        refused = "; ".join(dict.fromkeys(HOOK.sub("", answer) for answer in answers))
        why = f"only at a price: it {price}; --events turns it on" if price else refused
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        yield f"not collected here: {', '.join(names)} ({why})"


def _remove(config: Config, manifest: Manifest) -> dict[str, Any]:
    """Close the books and detach; returns the last statement."""
    try:
        return books.close(manifest)
    finally:
        attaching.detach(config)


def _attached(config: Config, say: Say) -> tuple[Manifest, bool]:
    """What is attached, and whether that was done just now and for this run alone. In this thread: another
    one would keep capabilities (privilege.py).
    """
    manifest = Manifest.read(config.state)
    if manifest is None:
        if attaching.is_attached(config):
            raise UserError(
                f"probes are attached for another state folder (pins in {config.pins}): "
                "name it with --state, or remove them with `promissory detach`"
            )
        say("attaching …")
        return attaching.attach(config, ourselves()), True
    if manifest.pins != str(config.pins):
        raise UserError(f"probes are attached with pins in {manifest.pins}, not {config.pins}: name those")
    if not is_current(manifest, config):
        say("what is attached is handed over to the programs and events of this run …")
        manifest = attaching.attach(config, ourselves())
    return manifest, False


def _tell(config: Config, plain: dict[str, Any], say: Say) -> None:
    """The last statement, and counters that should have stayed 0."""
    out = console(beside=config.to == "-")
    if config.quiet:
        out.print(summary(plain))
    else:
        print_ledger(out, plain, rings=True)
    for what, count in plain["troubles"].items():
        if count:
            say(f"the kernel counted {what.replace('_', ' ')}: {count:,}; see docs/operating.md")


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Only one command may work over a state folder. What is made there holds command lines: for its owner
    alone.
    """
    os.umask(0o077)
    try:
        state.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(privilege.no_link(str(state / folder.LOCK), os.O_WRONLY | os.O_CREAT), "w")
    except OSError as error:
        raise UserError(
            f"{state}: {error.strerror}; name a folder that can be written with --state"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another `promissory run` works over {state}; stop it, or use another --state"
            ) from None
        yield
