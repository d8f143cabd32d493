"""bcc, and with it LLVM: only the loader's process imports this.

Compiles bpf/programs.c for the running kernel, checks the result against BTF, loads and attaches single
programs.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pipeline.errors import UserError
from pipeline.kernel import btf, offsets, source

__all__ = ["Compiled"]

CALLS: Final = {
    "exec_walk": 0,
    "exec_emit": 1,
    "exec_stream": 2,
    "failed_strings": 3,
    "failed_walk": 4,
    "failed_emit": 5,
    "failed_stream": 6,
}
"""Program → its place in `calls`, as bpf/chunk.h numbers them."""
PARTS: Final = {
    "on_exec": ("exec_walk", "exec_emit", "exec_stream"),
    "on_sys_exit": ("failed_strings", "failed_walk", "failed_emit", "failed_stream"),
}
"""Hook's program → the programs that it goes on to by tail calls."""


class Compiled:
    """The compiled unit: programs by name, maps by name."""

    def __init__(self, *, rings: int, processes: int, arguments: int, log: Path, optional: set[str]) -> None:
        """`rings`: rows of everything per CPU. `arguments`: bytes for the arguments of a failed exec. `log`
        takes what LLVM and the verifier have to say, which can be megabytes.
        """
        # bcc looks here for kernel headers; with ours it needs none.
        os.environ["BCC_KERNEL_SOURCE"] = str(source.BPF)
        try:
            from bcc import BPF
        except ImportError:
            raise UserError(
                "bcc is missing: apt-get install python3-bpfcc (not PyPI's bcc), then make setup"
            ) from None
        self._bcc, self._log = BPF, log
        kernel = btf.running()
        flags = [
            f"-DRINGS={rings}",
            f"-DPROCESSES={processes}",
            f"-DARGUMENTS={arguments}",
            *(f"-DWITH_{name}" for name in optional),
            *(["-DGROUP_DEAD"] if kernel.arguments("sched_process_exit") > 1 else []),
        ]
        with self._quiet():
            try:
                self._module = BPF(text=source.unit(kernel).encode(), cflags=flags)
            except Exception as error:  # bcc knows no other class
                raise UserError(f"bcc could not compile the programs ({error}); see {log}") from None
        self._uses = source.uses(kernel)
        self._fds: dict[str, int] = {}

    def code(self, name: str) -> bytes:
        """A program's instructions, as they were compiled."""
        found: bytes = self._module.dump_func(name.encode())
        return found

    def load(self, hook: str) -> dict[str, int]:
        """Load a hook's program and those it goes on to; name → descriptor. OSError carries the kernel's
        answer.
        """
        return {name: self._load(name) for name in (*PARTS.get(hook, ()), hook)}

    def attach(self, hook: str, tracepoint: str) -> int:
        """Attach a loaded program to a raw tracepoint; the link's descriptor. OSError carries the kernel's
        answer.
        """
        with self._quiet():
            link = int(self._bcc_library().bpf_attach_raw_tracepoint(self._fds[hook], tracepoint.encode()))
        if link < 0:
            raise OSError(-link, os.strerror(-link))
        return link

    def map(self, name: str) -> int:
        """Descriptor of a map."""
        return int(self._module[name.encode()].map_fd)

    def _load(self, name: str) -> int:
        if name not in self._fds:
            offsets.check([(name, self.code(name))], self._uses)
            ctypes.set_errno(0)
            with self._quiet():
                try:
                    function = self._module.load_func(name.encode(), self._bcc.RAW_TRACEPOINT)
                except Exception as error:  # bcc knows no other class
                    raise _refusal(str(error)) from None
            self._fds[name] = int(function.fd)
            if name in CALLS:
                table = self._module[b"calls"]
                table[ctypes.c_int(CALLS[name])] = ctypes.c_int(function.fd)
        return self._fds[name]

    def _bcc_library(self) -> Any:
        from bcc.libbcc import lib

        return lib

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """LLVM and libbpf write to descriptor 2; that goes into the log."""
        sys.stderr.flush()
        keep = os.dup(2)
        with self._log.open("ab") as file:
            os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(keep, 2)
            os.close(keep)


def _refusal(text: str) -> OSError:
    """bcc says the kernel's answer as text at the end of a sentence; make an OSError of it again."""
    said = re.sub(r".*: ", "", text)
    number = next((n for n in errno.errorcode if os.strerror(n) == said), errno.EINVAL)
    return OSError(number, os.strerror(number))
