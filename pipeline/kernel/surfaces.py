"""Where each kind of event comes from, over all generations of programs.

A live pipeline meets kinds that a hand-over added after it began. The manifest names them before their first
event; so one that is not known yet is looked up there once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pipeline.kernel.manifest import Manifest

__all__ = ["Surfaces"]


class Surfaces(Mapping[str, str]):
    """Kind → surface. A hand-over never changes one (loader.py)."""

    def __init__(self, manifest: Manifest, renew: Callable[[], Manifest]) -> None:
        """`renew` reads the manifest again."""
        self._known, self._renew = _known(manifest), renew

    def __getitem__(self, kind: str) -> str:
        if kind not in self._known:
            self._known = _known(self._renew())
        return self._known[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def _known(manifest: Manifest) -> dict[str, str]:
    return {**manifest.former, **manifest.surfaces}
