"""What `enrich` says of a process: names for its numbers, its program, its ancestors.

Each thing here is made once and shared by many events. It holds both its values, for filters, and their
bytes in a record, for encode: the map `process` ends with an `Origin`'s bytes and a `Program`'s.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

import msgpack

from pipeline.answers import Answers
from pipeline.promises import text
from pipeline.texts import word

__all__ = [
    "BLOCK",
    "HIDDEN",
    "TOP",
    "UNKNOWN",
    "Lineage",
    "Origin",
    "Owner",
    "Program",
    "container_of",
    "origin",
    "pack",
    "packed_executable",
    "unit_of",
]

pack = msgpack.Packer().pack
"""One value as msgpack; a Packer that is kept is twice as fast as packb."""

BLOCK: Final = ("comm", "user", "group", "container", "unit", "ancestry", "executable")
"""Keys of `process` whose values vary in length: they end the map, in this order, after `parent`."""


class Owner(NamedTuple):
    """Whose a process is: what its uid, gid and cgroup mean."""

    user: str | None
    group: str | None
    container: str | None
    unit: str | None
    packed: bytes

    @classmethod
    def ask(cls, answers: Answers, uid: int, gid: int, cgroup: int) -> Owner:
        """Ask for the names; None is unknown, or none."""
        path = answers.cgroup(cgroup) if cgroup else None
        found = {
            "user": answers.user(uid),
            "group": answers.group(gid),
            "container": container_of(path) if path else None,
            "unit": unit_of(path) if path else None,
        }
        return cls(**found, packed=b"".join(pack(item) for pair in found.items() for item in pair))


class Program(NamedTuple):
    """What one exec started."""

    executable: str | bytes | None
    packed: bytes
    """The executable's key and value."""
    parent: int
    """exec_id of what the parent ran then; 0: unknown."""
    top: bool
    """The parent was the kernel: nothing stands above."""


class Lineage(NamedTuple):
    """A parent's program, and the ancestry from it upwards."""

    executable: str | bytes | None
    opening: bytes
    """The executable: the value of parent.executable; nothing where there is no parent."""
    ancestry: bytes
    """Key and value."""


class Origin(NamedTuple):
    """Whose a process is and where it comes from; the same object for all events that have the same."""

    owner: Owner
    lineage: Lineage
    packed: bytes
    """The value of parent.executable (where there is a parent), then BLOCK but for its end."""


def origin(owner: Owner, lineage: Lineage, comm: bytes) -> Origin:
    """Put together what is known; `comm` as the kernel has it, NUL-padded."""
    short = pack("comm") + pack(word("comm", comm))
    return Origin(owner, lineage, lineage.opening + short + owner.packed + lineage.ancestry)


@lru_cache(4096)
def packed_executable(path: bytes) -> tuple[str | bytes, bytes]:
    """An executable's path as text, and with its key, packed."""
    executable = text(path)
    return executable, pack("executable") + pack(executable)


UNKNOWN: Final = Program(None, pack("executable") + pack(None), 0, False)
"""The program of an exec that is not, or no longer, in the table."""
TOP: Final = Lineage(None, b"", pack("ancestry") + pack([]))
"""The lineage of a process that the kernel started."""
HIDDEN: Final = Lineage(None, b"", pack("ancestry") + pack([None]))
"""The lineage of a process whose parent is unknown."""


# docker-ID.scope, cri-containerd-ID.scope, crio-ID.scope, libpod-ID.scope, docker/ID, kubepods/…/ID: but
# not the monitor beside a container (libpod-conmon-ID.scope), which is the host's.
_CONTAINER: Final = re.compile(r"(?:[a-z-]+[-:])?([0-9a-f]{64})(?:\.scope)?")
_LXC: Final = re.compile(r"lxc\.payload[./](.+)")
_UNIT: Final = re.compile(r".+\.(?:service|scope|socket|mount|swap)")


def container_of(path: str) -> str | None:
    """The innermost container that a cgroup's path names: its 64 hexadecimal digits, or the name of an LXC
    one."""
    parts = path.split("/")
    for at in range(len(parts) - 1, 0, -1):
        part = parts[at]
        if (found := _CONTAINER.fullmatch(part)) and "conmon" not in part:
            return found[1]
        if found := _LXC.fullmatch(part):
            return found[1]
        if parts[at - 1] == "lxc":
            return part
    return None


def unit_of(path: str) -> str | None:
    """The innermost systemd unit (slices aside) that a cgroup's path names."""
    return next((part for part in reversed(path.split("/")) if _UNIT.fullmatch(part)), None)
