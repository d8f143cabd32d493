"""One CPU that floods its BPF ring: the kernel's side of F1 and F2, by bcc and the project's own chunk
writer."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from ctypes import c_int
from pathlib import Path
from typing import Any, Final

from pipeline.chunk import STRIDE
from pipeline.kernel import bpf, btf, source
from pipeline.kernel.layout import BOOKS, OWN_ROWS, books_view
from pipeline.kernel.ring import Ring, RingMemory
from pipeline.ledger import RingBooks
from tests.bench.loads import Loads

__all__ = ["CPU", "SIZE", "Flood"]

SIZE: Final = 16 << 20
"""Bytes of the ring."""
CPU: Final = 0
"""Where the flood comes from."""


class Flood:
    """The program, attached; the ring of one CPU; and what fills it."""

    def __init__(self, loads: Loads) -> None:
        from bcc import BPF

        os.environ["BCC_KERNEL_SOURCE"] = str(source.BPF)
        headers = (source.BPF / name for name in ("read.h", "chunk.h", "budget.h"))
        files = [*headers, Path(__file__).with_name("flood.c")]
        text = "\n".join(path.read_text() for path in files)
        kernel = btf.running()
        unit = source.generate(kernel, text, source.uses(kernel, text), {})
        rings = CPU + 1
        self._loads = loads
        self._bcc = BPF(text=unit, cflags=[f"-DRINGS={rings}", f"-DPAGES={SIZE // 4096}"])
        ring = int(self._bcc["flooded"].map_fd)
        bpf.update(self._bcc["rings"].map_fd, CPU.to_bytes(4, "little"), ring.to_bytes(4, "little"))
        books = bpf.map_memory(self._bcc["books"].map_fd, (rings + OWN_ROWS) * BOOKS.itemsize)
        self._books = books_view(books, rings)
        self.memory = RingMemory.of_map(ring, SIZE)
        self._bcc.attach_raw_tracepoint("sys_enter", "on_enter")

    def __enter__(self) -> Flood:
        return self

    def __exit__(self, *_: object) -> None:
        self._bcc.cleanup()

    def callback(self, called: Callable[[Any, Any, int], None]) -> Callable[[], None]:
        """bcc's own reader: it calls `called` for each chunk. Returns what empties the ring that way."""
        self._bcc["flooded"].open_ring_buffer(called)
        return lambda: self._bcc.ring_buffer_consume()

    def start(self, calls: int) -> subprocess.Popen[str]:
        """Begin to flood with so many system calls, and some more."""
        load = self._loads.load("call", cpu=CPU).start(calls)
        self._bcc["marked"][c_int(0)] = c_int(load.pid)
        return load

    def fill(self) -> None:
        """Fill the ring with chunks of a process that has ended; it was empty before."""
        self.start(4 * SIZE // STRIDE).communicate()  # the first ones come before it is marked

    def reader(self) -> Ring:
        """A reader of all that comes from now on; the ring is empty."""
        position = int(self.memory.consumer[0])
        return Ring(CPU, self.memory, RingBooks(position, int(self._books["sequence"][CPU])))

    @property
    def drops(self) -> int:
        """Chunks that found no space, ever."""
        return int(self._books["drops"][CPU])

    @property
    def attempted(self) -> int:
        """Chunks that were attempted, ever."""
        return int(self._books["sequence"][CPU])
