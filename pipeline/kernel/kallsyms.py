"""Names of the kernel's code, by /proc/kallsyms: read when first asked, and again when that was long ago."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import numpy as np

__all__ = ["Kallsyms"]

FILE: Final = Path("/proc/kallsyms")
STALE: Final = 60.0
"""Seconds after which it is read again: modules and BPF programs come and go. It takes about 0.1 s."""


class Kallsyms:
    """Symbols of code, sorted by address."""

    def __init__(self, file: Path = FILE) -> None:
        # Open from the beginning: addresses are for who was allowed to see them then.
        self._file = os.open(file, os.O_RDONLY) if file.exists() else None
        self._read = float("-inf")
        self._addresses = np.empty(0, np.uint64)
        self._names: list[bytes] = []

    def at(self, address: int) -> bytes | None:
        """The symbol around an address, how far behind its start, its size (`vfs_read+0x5/0x3a0`); None:
        unknown.
        """
        if time.monotonic() - self._read > STALE:
            self._load()
            self._read = time.monotonic()
        place = int(np.searchsorted(self._addresses, np.uint64(address), side="right"))
        if not 0 < place < len(self._addresses):
            return None
        first, following = int(self._addresses[place - 1]), int(self._addresses[place])
        name, _, module = self._names[place - 1].partition(b"\t")
        where = name + f"+{address - first:#x}/{following - first:#x}".encode()
        return where + b" " + module if module else where

    def close(self) -> None:
        """Read no more."""
        if self._file is not None:
            os.close(self._file)

    def _load(self) -> None:
        lines: list[bytes] = []
        if self._file is not None:
            with open(self._file, "rb", closefd=False) as file:
                file.seek(0)
                lines = file.read().splitlines()
        # ffffffff81000000 T name [module]: the first of several names for one address stands.
        code = {int(line[:16], 16): line[19:] for line in reversed(lines) if line[17:18] in b"tTwW"}
        code.pop(0, None)  # an address that is hidden from us
        self._addresses = np.array(sorted(code), np.uint64)
        self._names = [code[address] for address in self._addresses.tolist()]
