"""The checkpoint: the books and the rings' positions, kept where a SIGKILL cannot part them.

Sinks call the keeper batch by batch (sinks/sink.py). It writes the books into a small area of memory that
outlives the process (a pinned BPF array map), and only then moves the rings' positions: what the books count
is what the positions have passed. The area holds two slots, written in turn, and a word for the whole one:

    0   u64   the slot written last, 0 or 1
    8         slot 0: u64 number of the passage, u32 length, u32 CRC-32, then the books in msgpack
    8 + half  slot 1: the same

A slot that was torn fails its CRC and the other one counts.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

import msgpack

from pipeline.errors import UserError
from pipeline.event import Ints, Passage
from pipeline.ledger import Books, Tally, add

__all__ = ["Area", "BookKeeper", "restore"]

WORD: Final = struct.Struct("<Q")
SLOT: Final = struct.Struct("<QII")


class Area(Protocol):
    """Memory that outlives the process: a shared mmap, or a bytearray."""

    def __len__(self) -> int: ...
    def __getitem__(self, where: slice, /) -> bytes | bytearray: ...
    def __setitem__(self, where: slice, data: bytes, /) -> None: ...


class BookKeeper:
    """The keeper of sinks/sink.py."""

    def __init__(
        self,
        books: Books,
        area: Area,
        *,
        move: Callable[[int, int], None],
        pressure: Callable[[], float],
    ) -> None:
        """`books` is where the last run stopped (`restore`); `move(ring, position)` frees a ring up to there;
        `pressure()` is how full the fullest ring is, 0 to 1."""
        self._ahead = books
        self._packed = msgpack.packb(books.to_plain())
        self._area, self._move, self.pressure = area, move, pressure
        self._half = (len(area) - WORD.size) // 2
        self._slot = WORD.unpack(area[: WORD.size])[0] & 1
        self._open: dict[int, Passage] = {}
        self._positions: dict[int, int] = {}

    def open(self, passage: Passage) -> None:
        """A batch left assembly: until it is retired, what its stages book counts in `tally`."""
        self._open[passage.number] = passage

    def checkpoint(
        self, passage: Passage, acknowledged: Ints, *, spilled: Ints | None = None
    ) -> dict[str, Any]:
        """See Keeper. The books that others see (`books`) stand still until `release`."""
        self._ahead.retire(passage)
        self._ahead.acknowledged += acknowledged
        if spilled is not None:
            self._ahead.spilled += spilled
        for ring, (position, _) in passage.positions.items():
            self._positions[ring] = position
        return self._ahead.to_plain()

    def settled(self, left: Tally) -> None:
        """See Keeper."""
        add(self._ahead.left, left)

    def complete(self, until: int) -> None:
        """See Keeper."""
        self._ahead.complete = max(self._ahead.complete, until)

    def release(self) -> None:
        """See Keeper: the area first, then the rings."""
        self._packed = msgpack.packb(self._ahead.to_plain())
        self._write(self._ahead.number, self._packed)
        for ring, position in self._positions.items():
            self._move(ring, position)
        self._positions.clear()
        for number in [n for n in self._open if n <= self._ahead.number]:
            del self._open[number]

    def _write(self, number: int, body: bytes) -> None:
        if SLOT.size + len(body) > self._half:
            raise UserError(f"the books ({len(body)} bytes) outgrew their pinned area; detach, then attach")
        self._slot ^= 1
        at = WORD.size + self._slot * self._half
        data = SLOT.pack(number, len(body), zlib.crc32(body)) + body
        self._area[at : at + len(data)] = data
        self._area[: WORD.size] = WORD.pack(self._slot)

    @property
    def books(self) -> Books:
        """What is settled for good, as it is stored (a copy)."""
        return Books.from_plain(msgpack.unpackb(self._packed, strict_map_key=False))

    def tally(self) -> Tally:
        """What was filtered or lost, in the books and in batches that are under way."""
        tally = self.books.tally
        for passage in self._open.values():
            add(tally, passage.tally)
        return tally


def restore(area: Area, stored: Iterable[Mapping[str, Any] | None] = ()) -> Books:
    """The newest books of all: of the area's slots and of those that stores hold for the same attachment.

    New ones if there are none.
    """
    candidates = [plain for plain in (*_read(area), *stored) if plain]
    if not candidates:
        return Books()
    return Books.from_plain(max(candidates, key=lambda plain: plain["number"]))


def _read(area: Area) -> list[Mapping[str, Any]]:
    """The whole slots, the one written last first."""
    half = (len(area) - WORD.size) // 2
    newest = WORD.unpack(area[: WORD.size])[0] & 1
    found = []
    for slot in (newest, newest ^ 1):
        at = WORD.size + slot * half
        _, length, crc = SLOT.unpack(area[at : at + SLOT.size])
        body = bytes(area[at + SLOT.size : at + SLOT.size + length])
        if 0 < length == len(body) and zlib.crc32(body) == crc:
            found.append(msgpack.unpackb(body, strict_map_key=False))
    return found
