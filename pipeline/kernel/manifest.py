"""The manifest: what the loader attached, for the pipeline that comes after it. A JSON file in the state
folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

__all__ = ["FILE", "PROC_FILE", "Hook", "Manifest", "boot_id"]

FILE: Final = "attached.json"
PROC_FILE: Final = "processes.chunks"
"""The first look at /proc, as chunks."""


def boot_id() -> str:
    """This boot, 32 hexadecimal digits."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")


@dataclass(frozen=True, slots=True)
class Hook:
    """One event's tap, as the loader tried it."""

    event: str
    surface: str
    hooks: Mapping[str, str]
    """TYPE/HOOK → pin of the program that makes events there."""
    works: bool
    answer: str
    """What the kernel said, or "proven": our own act came through."""
    cost: str = ""


@dataclass(frozen=True)
class Manifest:
    """One attachment."""

    boot_id: str
    attached: int
    """ns since the epoch."""
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

    @property
    def id(self) -> str:
        """Names this attachment for ever."""
        return f"{self.boot_id}-{self.attached}"

    @property
    def surfaces(self) -> dict[str, str]:
        """Kind → the surface it comes from."""
        return {hook.event: hook.surface for hook in self.hooks if hook.works}

    def write(self) -> None:
        """Put it into its state folder, whole or not at all."""
        path = Path(self.state) / FILE
        draft = path.with_suffix(".new")
        with draft.open("w") as file:
            json.dump(asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)

    @classmethod
    def read(cls, state: Path) -> Manifest | None:
        """The manifest of a state folder, if it is of this boot and its pins are there."""
        try:
            plain = json.loads((state / FILE).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        plain["rings"] = {int(ring): size for ring, size in plain["rings"].items()}
        plain["hooks"] = [Hook(**hook) for hook in plain["hooks"]]
        manifest = cls(**plain)
        there = (Path(manifest.pins) / "map_books").exists()
        return manifest if there and manifest.boot_id == boot_id() else None
