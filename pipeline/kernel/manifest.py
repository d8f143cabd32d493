"""The manifest: what the loader attached, for the pipeline that comes after it. A JSON file in the state
folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Final

from pipeline.kernel.pins import is_attached
from pipeline.schema import by_name

__all__ = ["FILE", "PROC_FILE", "Hook", "Manifest", "boot_id", "charged"]

FILE: Final = "attached.json"
PROC_FILE: Final = "processes.chunks"
"""The first look at /proc, as chunks."""
CHARGED: Final = {"sock_state": "connect_done", "sys_exit": "exec_failed"}
"""Entries that serve several kinds (source.SHARED) → one of these, whichever of them are chosen."""
FED: Final = ("perf", "audit")
"""Surfaces that are sources of the pipeline's own."""


def boot_id() -> str:
    """This boot, 32 hexadecimal digits."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")


def charged(pin: str) -> str | None:
    """The kind to which runs that the kernel skipped at an entry are charged; None: nobody knows it. Also of
    an entry that only remembers for another: what that one says, or whether it does, may be lost with it.
    """
    kind = pin.removeprefix("entry_").partition("-")[0]
    return CHARGED.get(kind, kind if kind in by_name() else None)


@dataclass(frozen=True, slots=True)
class Hook:
    """One event's tap, as the loader tried it."""

    event: str
    surface: str
    hooks: Mapping[str, str]
    """TYPE/HOOK → pin of its entry: where its events come in, and where others learn what these will say."""
    works: bool
    answer: str
    """What the kernel said, or "proven": our own act came through."""
    cost: str = ""
    idle: tuple[str, ...] = ()
    """Of a surface that is proven: its hooks that none of our own acts went by."""


@dataclass(frozen=True)
class Manifest:
    """One attachment."""

    boot_id: str
    attached: int
    """Since when every process's program is known, ns since the epoch."""
    pins: str
    state: str
    rings: dict[int, int]
    """Ring → bytes."""
    entries: int
    """Rows of the kernel's books (highest ring + 1)."""
    kinds: list[str]
    """Kinds that are reported."""
    hooks: list[Hook]
    processes: int = 0
    """`process` events in PROC_FILE."""
    generation: int = 0
    """Counts hand-overs, from 1 on."""
    made: str = ""
    """What it was made from (likeness.py)."""
    layout: dict[str, str] = field(default_factory=dict)
    """How what is in the rings lies in memory (likeness.py)."""
    maps: dict[str, str] = field(default_factory=dict)
    """Map that outlives generations → what it is made of."""
    former: dict[str, str] = field(default_factory=dict)
    """Kinds that an earlier generation had → surface: events of theirs may still be in the rings."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Kind → runs that the kernel skipped at hooks that are no more."""

    @property
    def id(self) -> str:
        """Names this attachment for ever."""
        return f"{self.boot_id}-{self.attached}"

    @property
    def surfaces(self) -> dict[str, str]:
        """Kind → the surface it comes from."""
        return {hook.event: hook.surface for hook in self.hooks if hook.works}

    @property
    def late(self) -> list[str]:
        """Kinds that the last hand-over added and that a pipeline which runs does not collect: it opens their
        sources when it begins.
        """
        new = [kind for kind in self.kinds if kind not in self.former] if self.generation > 1 else []
        return [
            hook.event
            for hook in self.hooks
            if hook.works and hook.event in new and (hook.event == "audit" or hook.surface in FED)
        ]

    def renewed(self) -> Manifest:
        """What stands in the state folder by now of the same attachment, reached by the same path."""
        found = _read(Path(self.state))
        return replace(found, pins=self.pins) if found and found.id == self.id else self

    def write(self) -> None:
        """Put it into its state folder, whole or not at all; it is for that folder's owner."""
        path = Path(self.state) / FILE
        draft, owner = path.with_suffix(".new"), path.parent.stat()
        draft.unlink(missing_ok=True)
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            json.dump(asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)

    @classmethod
    def read(cls, state: Path) -> Manifest | None:
        """The manifest of a state folder, if it is of this boot and its pins are there."""
        manifest = _read(state)
        there = manifest is not None and is_attached(Path(manifest.pins))
        return manifest if there else None


def _read(state: Path) -> Manifest | None:
    """A manifest of this boot. Of what another version wrote, what this one knows."""
    try:
        plain = json.loads((state / FILE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    known = {each.name for each in fields(Manifest)}
    plain = {name: value for name, value in plain.items() if name in known}
    plain["rings"] = {int(ring): size for ring, size in plain["rings"].items()}
    plain["hooks"] = [Hook(**{**hook, "idle": tuple(hook.get("idle", ()))}) for hook in plain["hooks"]]
    manifest = Manifest(**plain)
    return manifest if manifest.boot_id == boot_id() else None
