"""The commands as a person types them: flags, help, and one call into the house each.

What a command needs is imported when it runs: `--help` must not wait for libraries.
"""

from __future__ import annotations

import json
import os
import sys
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from pipeline import __version__
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.config import Config

__all__ = ["app", "state_folder"]

app = typer.Typer(
    name="promissory",
    help="Kernel audit events as one stream that can prove what it delivered.\n\n"
    "A PLACE is kafka://HOST:PORT[/PREFIX], a state folder (its local log), or - (JSON lines). "
    "Flags win over environment variables (PROMISSORY_…), these over the configuration file.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
schemas = typer.Typer(help="What events say: their kinds and fields.", rich_markup_mode=None)
app.add_typer(schemas, name="schema")

File = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Configuration file (TOML).")]
State = Annotated[
    Path | None,
    typer.Option(
        "--state", metavar="DIR", help="State folder: local log, outbox, books. [/var/lib/promissory]"
    ),
]
To = Annotated[
    str | None, typer.Option("--to", metavar="PLACE", help="Where events go. [the local log in DIR]")
]
Events = Annotated[
    str | None, typer.Option("--events", metavar="LIST", help="Kinds, joined by commas: exec,exit; or all.")
]
Surface = Annotated[
    str | None,
    typer.Option("--surface", metavar="NAME", help="Where the kernel is tapped: auto, or one surface."),
]
Filter = Annotated[
    str | None,
    typer.Option(
        "--filter", metavar="EXPR", help="SQL expression: \"uid >= 1000 AND executable LIKE '/tmp/%'\"."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]

_state: Final = ContextVar("state", default=Path("/var/lib/promissory"))


def state_folder() -> Path:
    """The state folder of this command, as far as it got to know it: where its log of errors belongs."""
    return _state.get()


def configure(file: Path | None, **flags: object) -> Config:
    """The configuration of this command."""
    from pipeline.configure import load

    config = load(flags, file)
    _state.set(config.state)
    return config


def say(text: str) -> None:
    """One line to the person beside the data."""
    print(f"promissory: {text}", file=sys.stderr, flush=True)


def need_root(what: str) -> None:
    """Only root may load programs into the kernel."""
    if os.geteuid() != 0:
        raise UserError(f"{what} taps the kernel and needs root; try: sudo promissory {what}")


def need_folder(folder: Path) -> None:
    """The state folder is made where it is missing."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to ({error.strerror}); name another with --state"
        ) from None


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if version:
        print(f"promissory {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


@app.command()
def check(
    to: To = None,
    state: State = None,
    config: File = None,
    events: Events = None,
    surface: Surface = None,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Only the events: try every surface, not just the first.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what this host allows. The exit status is 0 if `run` can work.

    Looks at BTF, bcc, every event's surfaces (each is tried, and the kernel's own answer shown), the broker,
    the disk and the memory of the rings. Attaches nothing that stays.
    """
    from pipeline.check import can_run, look, print_findings

    settings = configure(config, to=to, state=state, events=events, surface=surface)
    if matrix:
        need_root("check --matrix")
        _matrix(settings, as_json)
        return
    findings = look(settings)
    if as_json:
        print(json.dumps([finding.to_plain() for finding in findings], indent=2))
    else:
        print_findings(findings)
    raise typer.Exit(not can_run(findings))


def _matrix(config: Config, as_json: bool) -> None:
    from pipeline.kernel import attaching
    from pipeline.sheet import print_sheet, sheet

    made = sheet(attaching.matrix(config))
    if as_json:
        print(json.dumps(made, indent=1, ensure_ascii=False))
    else:
        print_sheet(made)


@app.command()
def run(
    to: To = None,
    state: State = None,
    config: File = None,
    events: Events = None,
    surface: Surface = None,
    filter: Filter = None,
    duration: Annotated[
        str | None, typer.Option("--duration", metavar="S", help="End by itself after so many seconds.")
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No live events: warnings and the ledger only.")
    ] = False,
) -> None:
    """Take events from the kernel to their place, and show them live.

    Attaches what is not attached yet, and detaches at a clean end (Ctrl-C, SIGTERM, --duration). Probes that
    were attached before (by `attach`, or left by a run that was killed) stay, and are taken up where the last
    run stopped. Ends with the ledger.
    """
    settings = configure(
        config,
        to=to,
        state=state,
        events=events,
        surface=surface,
        filter=filter,
        duration=duration,
        quiet=quiet or None,
    )
    need_root("run")
    need_folder(settings.state)
    import trio

    from pipeline.session import run as run_session

    raise typer.Exit(trio.run(partial(run_session, settings, say=say)))


@app.command()
def tail(
    place: Annotated[
        str | None, typer.Argument(metavar="[PLACE]", help="Where to read. [where `run` writes]")
    ] = None,
    newest: Annotated[
        int | None, typer.Option("-n", metavar="N", min=0, help="The newest N events. [10]")
    ] = None,
    from_start: Annotated[bool, typer.Option("--from-start", help="From the oldest event there is.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as events come, until Ctrl-C.")
    ] = False,
    events: Events = None,
    filter: Filter = None,
    heartbeats: Annotated[
        bool, typer.Option("--heartbeat", help="Show heartbeats too; losses are shown in any case.")
    ] = False,
    form: Annotated[
        Literal["text", "json"], typer.Option("--format", help="text for eyes, json for programs.")
    ] = "text",
    config: File = None,
) -> None:
    """Show events that were stored.

    Without --follow it stops at the end it saw when it started. Ctrl-C ends it with status 130.
    """
    if from_start and newest is not None:
        raise UserError("-n and --from-start exclude each other; give one of them", status=2)
    # Events and filter of the file and the environment are for `run`: here only the flags count.
    settings = configure(config, events=events or "", filter=filter or "")
    from pipeline.cli.reading import tail_place

    tail_place(
        settings,
        place,
        newest=None if from_start else 10 if newest is None else newest,
        follow=follow,
        heartbeats=heartbeats,
        as_json=form == "json",
        say=say,
    )


@app.command()
def replay(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The PLACE to read.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="The PLACE to write.")],
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Not before: 2026-01-31T12:00 or ns since the epoch."),
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before this time.")] = None,
    filter: Filter = None,
    config: File = None,
) -> None:
    """Publish stored events again, in order and unchanged to the byte.

    Stops at the ends it saw when it started, and shows its progress on a terminal. Ctrl-C ends it with
    status 130.
    """
    settings = configure(config, filter=filter or "")
    from pipeline.cli.replaying import replay_places

    replay_places(settings, source, target, since=since, until=until, say=say)


@app.command()
def ledger(state: State = None, config: File = None, as_json: Json = False) -> None:
    """Print the books: attempted = acknowledged + filtered + lost + in outbox + in flight, per kind and ring.

    Can be read while `run` is live and after it ended. The exit status is 0 if they balance.
    """
    settings = configure(config, state=state)
    from pipeline.books import of_state
    from pipeline.tables import console, print_ledger

    books = of_state(settings.state)
    if as_json:
        print(json.dumps(books, indent=2))
    else:
        print_ledger(console(), books, rings=True)
    raise typer.Exit(not books["balanced"])


@app.command()
def attach(state: State = None, config: File = None, events: Events = None, surface: Surface = None) -> None:
    """Attach probes that stay when this command ends: rings fill until a `run` takes what is in them.

    What is attached already is handed over, without a hole, also under a `run` that is live.
    """
    settings = configure(config, state=state, events=events, surface=surface)
    need_root("attach")
    need_folder(settings.state)
    from pipeline.session import attach as attach_probes

    manifest = attach_probes(settings)
    done = "attached" if manifest.generation == 1 else f"handed over, generation {manifest.generation}"
    print(f"{done}: {', '.join(f'{event} ({name})' for event, name in manifest.surfaces.items())}")
    if late := manifest.late:
        print(f"begin with the next run: {', '.join(late)}")


@app.command()
def detach(state: State = None, config: File = None) -> None:
    """Remove every pin, link and map of ours from the kernel."""
    settings = configure(config, state=state)
    need_root("detach")
    from pipeline.session import detach as detach_probes

    print("detached" if detach_probes(settings, say) else f"nothing was attached in {settings.pins}")


@schemas.command("list")
def schema_list() -> None:
    """Name every kind of event."""
    from pipeline.cli.schemas import print_list

    print_list()


@schemas.command("show")
def schema_show(name: str) -> None:
    """Explain every field of one kind."""
    from pipeline.cli.schemas import find, print_one

    print_one(find(name))


@schemas.command("json")
def schema_json(name: str) -> None:
    """Print the JSON Schema of one kind's records; also of `loss` and `heartbeat`, which are no events."""
    from pipeline.cli.schemas import print_json

    print_json(name)
