"""What any collector by BPF would pay at least, of what the goals speak of: least.c, and nobody who reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pipeline.kernel import bpf, btf, source
from pipeline.kernel.ring import RingMemory

__all__ = ["HOOKS", "Least"]

SIZE: Final = 64 << 20
"""Bytes of the ring: nobody reads while a storm lasts."""
HOOKS: Final = {"inet_sock_set_state": "on_state", "ma_write": "on_mapping"}
"""Raw tracepoint → program."""


class Least:
    """The programs, compiled."""

    def __init__(self, cpu: int) -> None:
        """For storms on one CPU."""
        from bcc import BPF

        os.environ["BCC_KERNEL_SOURCE"] = str(source.BPF)
        headers = (source.BPF / name for name in ("read.h", "chunk.h", "budget.h"))
        text = "\n".join(path.read_text() for path in (*headers, Path(__file__).with_name("least.c")))
        kernel = btf.running()
        unit = source.generate(kernel, text, source.uses(kernel, text), {})
        self._bcc: Any = BPF(text=unit, cflags=[f"-DRINGS={cpu + 1}", f"-DPAGES={SIZE // 4096}"])
        ring = int(self._bcc["least"].map_fd)
        bpf.update(self._bcc["rings"].map_fd, cpu.to_bytes(4, "little"), ring.to_bytes(4, "little"))
        self._memory = RingMemory.of_map(ring, SIZE)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Attached while inside."""
        for hook, program in HOOKS.items():
            self._bcc.attach_raw_tracepoint(hook, program)
        try:
            yield
        finally:
            for hook in HOOKS:
                self._bcc.detach_raw_tracepoint(hook)
        assert self._memory.producer[0] > self._memory.consumer[0], "nothing was written"
        self._memory.consumer[0] = self._memory.producer[0]

    def close(self) -> None:
        """Let go of all."""
        self._bcc.cleanup()
