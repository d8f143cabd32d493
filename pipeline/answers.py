"""The one place where the pipeline asks the world: names of users, cgroup paths, the host's identity
(invariant I9).

Stages get an `Answers` and ask nothing else, so a capture can record what was answered and a replay can give
the same answers again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Answers", "Host"]


@dataclass(frozen=True, slots=True)
class Host:
    """`host` of every record."""

    id: str
    """A hash of the machine id that only this application uses, or what the configuration says."""
    name: str
    boot_id: str
    """32 hexadecimal digits."""
    labels: Mapping[str, str]


class Answers(Protocol):
    """What stages may ask. None is "unknown", never a guess."""

    @property
    def host(self) -> Host:
        """This machine, in this boot."""
        ...

    def user(self, uid: int) -> str | None:
        """Name of a user (local files only: nothing is asked over a network)."""
        ...

    def group(self, gid: int) -> str | None:
        """Name of a group."""
        ...

    def cgroup(self, id: int) -> str | None:
        """Path of a version-2 cgroup under its mount, by its inode number."""
        ...
