"""The answers of this machine, now: the only module that asks it for names (answers.py says why there is
but one).

Users and groups come from /etc/passwd and /etc/group alone: no name service is asked, so nothing goes over
a network.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pipeline.answers import Host

__all__ = ["LiveAnswers", "app_specific_id"]

APPLICATION: Final = bytes.fromhex("6f2c4e0d1b7a4c59a3f18d5e90b2c764")
"""This application among all that hash the machine id; it never changes."""
RESCAN: Final = 1.0
"""Seconds between two walks through the cgroups: an unknown one is looked for, but not all the time."""
CGROUPS: Final = 65_536
"""Cgroups that are kept in mind, those included that are gone: their last events may still be on the way."""


class _Names:
    """The names of a file like /etc/passwd by number; read again when the file has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._names: dict[int, str] = {}

    def get(self, number: int) -> str | None:
        """The name, or None."""
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if stamp != self._stamp:
                self._names, self._stamp = self._read(), stamp
        except OSError:
            self._names, self._stamp = {}, None
        return self._names.get(number)

    def _read(self) -> dict[int, str]:
        names: dict[int, str] = {}
        for line in self._path.read_text("utf-8", "replace").splitlines():
            name, _, rest = line.partition(":")
            number = rest.split(":")[1] if rest.count(":") >= 1 else ""
            if name and number.isdecimal():
                names.setdefault(int(number), name)
        return names


class _Cgroups:
    """Paths of version-2 cgroups by inode number."""

    def __init__(self, root: Path | None) -> None:
        self._root = root
        self._paths: dict[int, str] = {}
        self._walked = float("-inf")

    def get(self, inode: int) -> str | None:
        """The path under the mount, or None."""
        if inode not in self._paths and self._root is not None:
            now = time.monotonic()
            if now - self._walked >= RESCAN:
                self._walked = now
                self._walk(self._root)
        return self._paths.get(inode)

    def _walk(self, root: Path) -> None:
        if len(self._paths) >= CGROUPS:
            self._paths.clear()
        for folder, _, _ in os.walk(root):
            try:
                inode = os.stat(folder).st_ino
            except OSError:
                continue  # gone since it was listed
            self._paths[inode] = "/" + os.path.relpath(folder, root) if folder != str(root) else "/"


class LiveAnswers:
    """An `Answers`. `id` and `name` win over what the machine says of itself; the folders can be others,
    for tests."""

    def __init__(
        self,
        id: str | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        etc: Path = Path("/etc"),
        cgroups: Path | None = None,
    ) -> None:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
        # Without a machine id the boot's stands in: unique, but another one after each boot.
        own = id or app_specific_id(_machine_id(etc) or boot)
        self._host = Host(own, name or os.uname().nodename, boot, dict(labels or {}))
        self._users = _Names(etc / "passwd")
        self._groups = _Names(etc / "group")
        self._cgroups = _Cgroups(cgroups or _cgroup2())

    @property
    def host(self) -> Host:
        """This machine, in this boot."""
        return self._host

    def user(self, uid: int) -> str | None:
        """Name of a user, by /etc/passwd."""
        return self._users.get(uid)

    def group(self, gid: int) -> str | None:
        """Name of a group, by /etc/group."""
        return self._groups.get(gid)

    def cgroup(self, id: int) -> str | None:
        """Path of a version-2 cgroup under its mount. A walk through all of them costs a few ms."""
        return self._cgroups.get(id)


def app_specific_id(machine: str) -> str:
    """32 hexadecimal digits that tell nothing of the machine id, made as
    sd_id128_get_machine_app_specific(3) does."""
    digest = bytearray(hmac.digest(bytes.fromhex(machine), APPLICATION, hashlib.sha256)[:16])
    digest[6] = digest[6] & 0x0F | 0x40
    digest[8] = digest[8] & 0x3F | 0x80
    return digest.hex()


def _machine_id(etc: Path) -> str | None:
    for path in (etc / "machine-id", Path("/var/lib/dbus/machine-id")):
        try:
            text = path.read_text().strip()
            if len(bytes.fromhex(text)) == 16:
                return text
        except (OSError, ValueError):
            continue  # not there, or "uninitialized"
    return None


def _cgroup2() -> Path | None:
    """Where version-2 cgroups are mounted, if they are."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            # Spaces in a mount point are written \040.
            return Path(mount.split(" ")[4].encode().decode("unicode_escape"))
    return None
