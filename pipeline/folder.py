"""The state folder of a live run, where somebody removes it, or files in it: what can be made again is.

Beside app.py. A run needs no file of its folder to go on, but others find it by them: the manifest says what
is attached, the lock keeps a second run away, and `promissory ledger` asks at the socket (books.py). Stores
look after themselves (store.py).
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final, TextIO

import trio

from pipeline.kernel.manifest import FILE

__all__ = ["LOCK", "LOOK", "keep"]

LOCK: Final = "lock"
LOOK: Final = 5.0
"""Seconds between two looks."""


async def keep(state: Path, warn: Callable[[str], None]) -> None:
    """Look after the folder, until cancelled."""
    with closing(_Folder(state, warn)) as folder:
        while True:
            folder.look()
            await trio.sleep(LOOK)


class _Folder:
    def __init__(self, state: Path, warn: Callable[[str], None]) -> None:
        self._state, self._warn = state, warn
        self._manifest: bytes | None = None
        self._lock: TextIO | None = None
        self._said = False

    def close(self) -> None:
        """Nobody needs to be kept away any more."""
        if self._lock:
            self._lock.close()

    def look(self) -> None:
        """Note what stands there; what stood there and does not is written again."""
        try:
            self._manifest = (self._state / FILE).read_bytes()
            self._said = False
        except OSError:
            if self._manifest is not None:
                self._restore(self._manifest)

    def _restore(self, manifest: bytes) -> None:
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            if not (self._state / LOCK).exists():
                self.close()
                self._lock = (self._state / LOCK).open("w")
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft = self._state / f"{FILE}.new"
            draft.write_bytes(manifest)
            draft.replace(self._state / FILE)
            self._warn(f"{self._state} was emptied under a live run: its files are made again")
        except OSError as error:
            if not self._said:
                self._warn(
                    f"{self._state} was taken away and cannot be made again ({error.strerror}): make it, for "
                    "the user that this runs as; until then events stay in the rings when the broker is away"
                )
            self._said = True
