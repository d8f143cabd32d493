"""Attach and detach, as a command does it. No bcc here: the loader is a process of its own (loader.py).

`attach` runs it, and hands over what is attached already; `detach` removes every pin, link and map of ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Final

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.kernel import pins
from pipeline.kernel.layout import Identity, start_ticks
from pipeline.kernel.manifest import FILE, PROC_FILE, Hook, Manifest
from pipeline.privilege import no_link

__all__ = ["BPFFS", "attach", "detach", "is_attached", "matrix", "ourselves", "probe"]

BPFFS: Final = Path("/sys/fs/bpf")


def attach(config: Config, pipeline: Identity | None = None) -> Manifest:
    """Run the loader: what is attached already is handed over. `pipeline` is the process whose own events are
    not reported.
    """
    _mount(config.pins)
    config.state.mkdir(parents=True, exist_ok=True)
    _loader("attach", config, pipeline)
    manifest = Manifest.read(config.state)
    if manifest is None:
        raise UserError(f"the loader left no manifest in {config.state}; see {config.state}/loader.log")
    return manifest


def probe(config: Config) -> list[Hook]:
    """Try every event's surfaces and leave nothing behind."""
    config.state.mkdir(parents=True, exist_ok=True)
    return [Hook(**hook) for hook in json.loads(_loader("probe", config, None))]


def matrix(config: Config) -> list[Hook]:
    """Try every surface of every event, save those that are attached and work, and leave nothing behind."""
    config.state.mkdir(parents=True, exist_ok=True)
    manifest = Manifest.read(config.state) if is_attached(config) else None
    known = manifest.hooks if manifest else ()
    return [Hook(**hook) for hook in json.loads(_loader("matrix", config, None, known))]


def is_attached(config: Config) -> bool:
    """Whether something of ours is pinned."""
    return pins.is_attached(config.pins)


def detach(config: Config) -> bool:
    """Remove every pin of ours, and with the last of them programs, links and maps. False: there was none."""
    there = is_attached(config)
    if config.pins.exists():  # also what a loader left that was killed
        with pins.alone(config.pins):
            pins.clear(config.pins)
    for name in (FILE, PROC_FILE):
        (config.state / name).unlink(missing_ok=True)
    return there


def ourselves() -> Identity:
    """This process, as the kernel's map keys it."""
    return Identity(os.getpid(), start_ticks(os.getpid()))


def _loader(what: str, config: Config, pipeline: Identity | None, known: Iterable[Hook] = ()) -> str:
    request = {
        # The table `kafka` may hold secrets, and is none of the loader's business.
        "config": config.model_dump(mode="json", exclude={"kafka"}),
        "pipeline": pipeline.plain() if pipeline else None,
        "known": [asdict(hook) for hook in known],
    }
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.kernel.loader", what],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        cwd=Path(__file__).resolve().parents[2],
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        log = config.state / "loader.log"
        with open(log, "a", opener=no_link) as file:
            file.write(done.stderr)
        text = said[-1] if said else f"the loader ended with {done.returncode}; see {log}"
        raise UserError(text, status=2 if done.returncode == 2 else 1)
    return done.stdout


def _mount(pins: Path) -> None:
    """bpffs is not mounted everywhere from the start."""
    if pins.is_relative_to(BPFFS) and not os.path.ismount(BPFFS):
        done = subprocess.run(
            ["mount", "-t", "bpf", "bpf", str(BPFFS)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise UserError(f"could not mount bpffs at {BPFFS}: {done.stderr.strip()}; are you root?")
