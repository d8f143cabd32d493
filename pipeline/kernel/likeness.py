"""Whether what is attached is what would be attached now, and whether this version understands it.

Programs and configuration may differ: a hand-over (handover.py) puts others into the same slots. What lies in
rings and maps must not: whoever reads it knows one layout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from pipeline.chunk import HEADER
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.kernel import pins
from pipeline.kernel.layout import BOOKS, IDENTITY, IDENTITY_KEY, OWN, settings, wanted
from pipeline.kernel.manifest import Manifest
from pipeline.kernel.source import BPF
from pipeline.schema import FOLDER, by_name

__all__ = ["differing", "is_current", "laid_out", "made_from", "need_same"]

COMMON: Final = "every event"


def made_from(config: Config) -> str:
    """A digest of programs, schemas, and what of a configuration goes into the kernel."""
    files = sorted([*BPF.rglob("*.[ch]"), *FOLDER.glob("*.toml")])
    parts: list[object] = [path.read_bytes() for path in files]
    parts += [settings(config, wanted(config)), config.surface, sorted(config.events)]
    parts += [sorted(config.kernel.uids), sorted(config.kernel.cgroups)]
    return _digest(parts)


def laid_out(kinds: Collection[str]) -> dict[str, str]:
    """Kind → a digest of how its heads lie in memory; and of what all have in common."""
    common = (HEADER.descr, BOOKS.descr, OWN.descr, IDENTITY.format, IDENTITY_KEY.format)
    found = {COMMON: _digest(common)}
    for name in kinds:
        schema = by_name()[name]
        found[name] = _digest((schema.number, schema.dtype.descr, [p.name for p in schema.promises]))
    return found


def differing(manifest: Manifest) -> list[str]:
    """What this version lays out in another way than the one that attached."""
    known = [kind for kind in manifest.layout if kind in by_name()]
    ours = laid_out(known)
    return [name for name, digest in manifest.layout.items() if ours.get(name) != digest] or (
        [] if manifest.layout else [COMMON]
    )


def need_same(differing: Iterable[str]) -> None:
    """UserError: this version cannot read what another one left."""
    if names := ", ".join(differing):
        raise UserError(
            f"probes were attached by a version that lays out {names} in another way: let that version's "
            "`run` take what is in the rings, then `promissory detach`, and attach again"
        )


def is_current(manifest: Manifest, config: Config) -> bool:
    """Whether a loader would attach just this, and nothing stopped the last one on its way."""
    folder = Path(manifest.pins)
    entries = (pin for hook in manifest.hooks if hook.works for pin in hook.hooks.values())
    return (
        manifest.made == made_from(config)
        and pins.generations(folder) == {manifest.generation}
        and all((folder / pin.replace("entry_", "link_", 1)).exists() for pin in entries)
    )


def _digest(parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
