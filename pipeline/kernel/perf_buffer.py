"""What the kernel writes perf records into: a buffer per CPU, and a bell beside it.

    perf_event_open → Buffer → perf_record.decode          perf_event.py has what is asked for

A buffer that wakes its reader at each record costs 7 µs a record, one that wakes nobody 1. So each CPU has a
second, small one, the bell: it wakes, and rings only while the reader sleeps. What is in it is never looked
at.

A bell that is kept from ringing still costs each record 85 ns: a fifth of what a mapping pays. One that is
switched off costs nothing, but its CPU is interrupted for it. So bells are switched off only when the reader
has been awake for long, as it is where many records come.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from collections.abc import Collection, Iterable
from typing import Final

import numpy as np

__all__ = ["Bells", "Buffer"]

BELL: Final = 4
"""Pages of its bell: more than the longest record takes."""
LONG: Final = 250_000_000
"""ns that a reader is awake before its bells are switched off."""
_ATTR: Final = struct.Struct("=IIQQQQQIIQQQQIiQIHH")
"""struct perf_event_attr, its first 112 bytes."""
_SOFTWARE, _DUMMY = 1, 9
_TID, _TIME, _CPU = 2, 4, 128
_LOST: Final = 16
"""PERF_FORMAT_LOST: reading an event also gives how many records found no space (since Linux 6.0)."""
_CLOEXEC: Final = 8
_ENABLE: Final = 0x2400
_DISABLE: Final = 0x2401
_PAUSE: Final = 0x40042409
_SYSCALL: Final = {"x86_64": 298, "aarch64": 241, "riscv64": 241}.get(os.uname().machine, 298)
_HEADS: Final = 1024
"""Where a buffer's first page has its positions: head, tail."""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_ALWAYS: Final = (14, 18, 25)
"""Bits of the event: watermark, sample_id_all, use_clockid."""


class Buffer:
    """An event on one CPU, and what the kernel writes its records into."""

    def __init__(self, cpu: int, bits: Iterable[int], pages: int, watermark: int) -> None:
        flags = sum(1 << bit for bit in {*_ALWAYS, *bits})
        attr = _ATTR.pack(
            *(_SOFTWARE, _ATTR.size, _DUMMY, 0, _TID | _TIME | _CPU, _LOST, flags, watermark, 0),
            *(0, 0, 0, 0, 0, 7, 0, 0, 0, 0),  # 7: CLOCK_BOOTTIME
        )
        buffer = ctypes.create_string_buffer(attr, len(attr))
        self.fd = int(_libc.syscall(_SYSCALL, buffer, -1, cpu, -1, _CLOEXEC))
        if self.fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "perf_event_open")
        self._size = pages * mmap.PAGESIZE
        try:
            self._memory = mmap.mmap(self.fd, self._size + mmap.PAGESIZE)
        except OSError:
            os.close(self.fd)
            raise
        self._positions = np.frombuffer(self._memory, np.int64, 2, _HEADS)

    @property
    def waits(self) -> bool:
        """Something is in the buffer."""
        return bool(self._positions[0] != self._positions[1])

    def data(self) -> bytes:
        """What is in the buffer."""
        head, tail = self._positions.tolist()
        first, last = tail % self._size, head % self._size
        page = mmap.PAGESIZE
        if last > first or head == tail:
            return self._memory[page + first : page + last]
        return self._memory[page + first :] + self._memory[page : page + last]

    def skip(self, size: int | None = None) -> None:
        """Give so many bytes back; None: all."""
        self._positions[1] = self._positions[0] if size is None else self._positions[1] + size

    def lost(self) -> int:
        """Records that found no space, since it was opened."""
        return int(struct.unpack("=QQ", os.read(self.fd, 16))[1])

    def pause(self, on: bool) -> None:
        """Whether records are kept out."""
        fcntl.ioctl(self.fd, _PAUSE, int(on))

    def switch(self, on: bool) -> None:
        """Whether there are records at all. It interrupts the event's CPU."""
        fcntl.ioctl(self.fd, _ENABLE if on else _DISABLE, 0)

    def close(self) -> None:
        """Give all back."""
        del self._positions
        self._memory.close()
        os.close(self.fd)


class Bells:
    """One per CPU; see the file's head."""

    def __init__(self) -> None:
        self._bells: list[Buffer] = []
        self._listening = False
        self._on = True
        self._since: int | None = None
        """ns since boot: the first look since the reader woke up; None: there was none yet."""

    @property
    def descriptors(self) -> list[int]:
        """To be waited on."""
        return [bell.fd for bell in self._bells]

    def add(self, cpu: int, bits: Collection[int]) -> None:
        """A bell that does not ring yet."""
        self._bells.append(Buffer(cpu, bits, BELL, 1))
        self._bells[-1].pause(True)

    def listen(self, on: bool) -> None:
        """Whether they ring."""
        self._listening, self._since = on, None
        if on:
            self._switch(True)
        for bell in self._bells:
            bell.skip()
            bell.pause(not on)

    def looked(self, now: int) -> None:
        """The reader takes a look."""
        if self._since is None:
            self._since = now
        elif not self._listening and now - self._since > LONG:
            self._switch(False)

    def close(self) -> None:
        """Give all descriptors back."""
        for bell in self._bells:
            bell.close()
        self._bells = []

    def _switch(self, on: bool) -> None:
        if on != self._on:
            self._on = on
            for bell in self._bells:
                bell.switch(on)
