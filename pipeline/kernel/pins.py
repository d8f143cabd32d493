"""The folder of pins: what stands there, who may change it, and how nothing half-made stays.

ring_N  map_*              what outlives every generation. map_books is pinned last and goes first:
                           without it nothing is attached, and the rest is half-made
link_*  entry_*  slot_*    one of each per hook, the link pinned last
gen-N/  program_*  map_*   a generation; one beside the manifest's: a hand-over did not come to its end
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pipeline.errors import UserError
from pipeline.kernel import bpf

__all__ = ["MARK", "alone", "clear", "generation", "generations", "is_attached", "put", "remove"]

MARK: Final = "map_books"
OURS: Final = ("link_*", "entry_*", "slot_*", "program_*", "ring_*", "map_*")
"""Patterns of our names; links first: a slot that goes before its link's end is a loss."""
PIPELINE_ONLY: Final = 0o700
GENERATION: Final = "gen-"


def is_attached(folder: Path) -> bool:
    """Whether something whole of ours is pinned."""
    return (folder / MARK).exists()


def generation(folder: Path, number: int) -> Path:
    """Where the pins of a generation are."""
    return folder / f"{GENERATION}{number}"


def generations(folder: Path) -> set[int]:
    """Numbers of those that are pinned."""
    return {int(path.name.removeprefix(GENERATION)) for path in folder.glob(f"{GENERATION}*")}


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Change what is pinned, as the only one; the lock ends with the process. The folder is made, and goes
    again if it is empty in the end. UserError: somebody else is at it.
    """
    folder.mkdir(PIPELINE_ONLY, parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_same = os.path.samestat(os.fstat(lock), folder.stat())
        except OSError:
            is_same = False
        if not is_same:
            raise UserError(f"probes are being attached or detached already (pins in {folder}); try again")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # something is in it, or bpffs is root's alone
                folder.resolve().rmdir()
    finally:
        os.close(lock)


def put(folder: Path, pins: Mapping[str, int]) -> None:
    """Pin descriptors by their names, in that order, in a folder that is made if need be; its owner's, as all
    in it.
    """
    parent = folder if folder.exists() else folder.parent
    owner = parent.stat()
    if parent != folder:
        folder.mkdir(PIPELINE_ONLY)
        os.chown(folder, owner.st_uid, owner.st_gid)
    for name, fd in pins.items():
        bpf.pin(fd, folder / name)
        os.chown(folder / name, owner.st_uid, owner.st_gid)


def remove(folder: Path) -> None:
    """Remove a generation, whole or not."""
    for path in _ours(folder):
        path.unlink(missing_ok=True)
    folder.rmdir()


def clear(folder: Path) -> None:
    """Remove every pin of ours, and with the last of them programs, links and maps. The folder stays."""
    (folder / MARK).unlink(missing_ok=True)
    for path in _ours(folder):
        path.unlink(missing_ok=True)
    for number in generations(folder):
        remove(generation(folder, number))


def _ours(folder: Path) -> list[Path]:
    return [path for pattern in OURS for path in folder.glob(pattern)]
