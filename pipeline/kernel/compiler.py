"""bcc, and with it LLVM: only the loader's process imports this.

Compiles bpf/programs.c for the running kernel, checks the result against BTF, loads and attaches single
programs; and asks the kernel what it would say to a hook.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pipeline.errors import UserError
from pipeline.kernel import bpf, btf, offsets, programs, source
from pipeline.kernel.programs import Programs
from pipeline.kernel.source import Choice
from pipeline.privilege import no_link

__all__ = ["HOOKS", "Compiled", "attach", "nothing", "refusal", "signature"]


class _Options(ctypes.Structure):
    """libbpf's struct bpf_prog_load_opts, as far as bcc wants it: all zero but its size."""

    _fields_ = (("size", ctypes.c_size_t), ("rest", ctypes.c_uint8 * 96))


# Type of a hook → the kernel's type of program, and what bcc wants before the hook's name to know the rest.
HOOKS: Final = {
    "raw_tp": (17, ""),
    "sys_exit": (17, ""),
    "fentry": (26, "kfunc__"),
    "fexit": (26, "kretfunc__"),
    "lsm": (29, "lsm__"),
}


OPENED: Final = "lsm/file_open"
"""An LSM hook that any process can be made to pass."""
MEMORIES: Final = {1, 5, 9, 10, 29}
"""Types of maps that remember from one run of a program to the next: hashes, and tasks' storage."""
ALSO: Final = {"books", "rings"}
NOT: Final = {"uids", "cgroups"}
"""What the configuration says, which is a generation's own."""


def refusal(hook: str, log: Path) -> str:
    """Why this kernel refuses a hook (TYPE/NAME); empty: it does not. Nothing is attached."""
    kind, _, name = hook.partition("/")
    if kind == "raw_tp":
        return "" if btf.running().arguments(name) else "this kernel has no such tracepoint"
    if kind == "sys_exit":
        return ""
    if btf.running().function(_function(hook)) is None:
        return "this kernel has no such hook" if kind == "lsm" else "this kernel has no such function"
    try:
        os.close(nothing(hook, log))  # any program of the type gets the same answer
    except OSError as error:
        return f"refused: {error.strerror}"
    if kind == "lsm" and not _are_called(log):
        return "BPF is not among this kernel's active security modules (boot option lsm=): it would never run"
    return ""


@functools.cache
def _are_called(log: Path) -> bool:
    """Whether the kernel calls LSM programs: it attaches them also where BPF is no active security module."""
    program = nothing(OPENED, log)
    link = attach(OPENED, program, log)
    try:
        with bpf.statistics():
            os.close(os.open(os.devnull, os.O_RDONLY))
        return bpf.program_runs(program) > 0
    finally:
        os.close(link)
        os.close(program)


def nothing(hook: str, log: Path) -> int:
    """A program for a hook that does nothing."""
    return _load(hook, bpf.NOTHING, log)


def signature(hook: str) -> int:
    """Hooks of programs that share a table of tail calls have the same (since Linux 6.12, 28ead3eaabc1)."""
    return btf.running().prototype(_function(hook)) if hook.startswith(("lsm/", "fentry/", "fexit/")) else 0


class Compiled:
    """Programs for this kernel by name, and their maps; LLVM runs only for what it has not made before."""

    def __init__(self, *, rings: int, processes: int, arguments: int, log: Path, choice: Choice) -> None:
        """`rings`: rows of everything per CPU. `arguments`: bytes for the arguments of a failed exec. `log`
        takes what LLVM and the verifier have to say, which can be megabytes. `choice`: what is compiled.
        """
        self._log = log
        kernel = btf.running()
        flags = [
            f"-DRINGS={rings}",
            f"-DPROCESSES={processes}",
            f"-DARGUMENTS={arguments}",
            *(["-DGROUP_DEAD"] if kernel.arguments("sched_process_exit") > 1 else []),
        ]
        text, self._uses = source.unit(kernel, choice)
        self._programs = _made(text, flags, log)
        self._maps = programs.make_maps(self._programs.maps)
        weakref.finalize(self, _close, self._maps.values())
        self._descriptors = {place: self._maps[name] for place, name in enumerate(self._programs.maps)}
        self._checked: dict[str, bytes] = {}

    def code(self, name: str) -> bytes:
        """A program's instructions, as they were compiled, with this unit's maps."""
        return programs.renamed(self._programs.code[name], self._descriptors)

    def load(self, hook: str, program: str, tables: Mapping[int, int]) -> int:
        """Load a program as one for a hook; its descriptor. OSError carries the kernel's answer. `tables`:
        map → the one to use in its place.
        """
        if program not in self._checked:
            code = self.code(program)
            offsets.check([(program, code)], self._uses)
            self._checked[program] = code
        return _load(hook, programs.renamed(self._checked[program], tables), self._log)

    def memories(self) -> dict[str, tuple[int, str]]:
        """Maps that outlive a generation: name → its descriptor, and a digest of what its keys and values are
        made of.
        """
        return {
            name: (self._maps[name], self._programs.types[name])
            for name, shape in self._programs.maps.items()
            if (shape.type in MEMORIES and name not in NOT) or name in ALSO
        }

    def map(self, name: str) -> int:
        """Descriptor of a map, which is closed when nobody has this unit any more."""
        return self._maps[name]


def _close(descriptors: Iterable[int]) -> None:
    for fd in descriptors:
        os.close(fd)


def _made(text: str, flags: list[str], log: Path) -> Programs:
    """What LLVM makes of a text with these flags: kept from an earlier time, or now."""
    name = programs.key(text, *flags, _bcc().__version__)
    found = programs.kept(name)
    if found is None:
        found = _compiled(text, flags, log)
        programs.store(name, found)
    return found


def _compiled(text: str, flags: list[str], log: Path) -> Programs:
    bcc = _bcc()
    with _quiet(log):
        try:
            module = bcc.BPF(text=text.encode(), cflags=flags)
        except Exception as error:  # bcc knows no other class
            raise UserError(f"bcc could not compile the programs ({error}); see {log}") from None
    library, unit = _tables(), module.module
    maps = [library.bpf_table_name(unit, at) for at in range(library.bpf_num_tables(unit))]
    fds = {name: library.bpf_table_fd(unit, name) for name in maps}
    places = {fds[name]: place for place, name in enumerate(maps)}
    names = [library.bpf_function_name(unit, at) for at in range(library.bpf_num_functions(unit))]
    shapes = {name.decode(): bpf.shape_of(fds[name]) for name in maps}
    types = {
        name.decode(): _digest(
            shapes[name.decode()].type,
            library.bpf_table_key_desc(unit, name),
            library.bpf_table_leaf_desc(unit, name),
        )
        for name in maps
    }
    return Programs(
        shapes, types, {name.decode(): programs.renamed(module.dump_func(name), places) for name in names}
    )


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def attach(hook: str, program: int, log: Path) -> int:
    """Attach a loaded program (its descriptor); the link's descriptor. OSError is the kernel's answer."""
    kind, _, name = hook.partition("/")
    library = _bcc().libbcc.lib
    with _quiet(log):
        if kind == "lsm":
            link = int(library.bpf_attach_lsm(program))
        elif kind in ("fentry", "fexit"):
            link = int(library.bpf_attach_kfunc(program))
        else:
            link = int(library.bpf_attach_raw_tracepoint(program, name.encode()))
    if link < 0:
        raise OSError(-link, os.strerror(-link))
    return link


def _function(hook: str) -> str:
    """The kernel's function at which a hook is."""
    kind, _, name = hook.partition("/")
    return f"bpf_lsm_{name}" if kind == "lsm" else name


def _bcc() -> Any:
    # bcc looks here for kernel headers; with ours it needs none.
    os.environ["BCC_KERNEL_SOURCE"] = str(source.BPF)
    try:
        import bcc
    except ImportError:
        raise UserError(
            "bcc is missing: apt-get install python3-bpfcc (not PyPI's bcc), then make setup"
        ) from None
    return bcc


def _tables() -> Any:
    """libbcc, with what bcc's Python part does not declare."""
    library = _bcc().libbcc.lib
    library.bpf_num_tables.restype, library.bpf_num_tables.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
    library.bpf_table_name.restype = ctypes.c_char_p
    library.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return library


def _load(hook: str, code: bytes, log: Path) -> int:
    """bcc's loader, which takes the function that a program is for from the name that it is given: so one
    compiled program can serve several.
    """
    kind, _, name = hook.partition("/")
    number, prefix = HOOKS[kind]
    options = _Options(ctypes.sizeof(_Options))
    ctypes.set_errno(0)
    with _quiet(log):
        fd = int(
            _bcc().libbcc.lib.bcc_prog_load_xattr(
                number,
                f"{prefix}{name}".encode(),
                b"GPL",
                code,
                ctypes.byref(options),
                len(code),
                None,
                0,
                True,
            )
        )
    if fd < 0:
        number = ctypes.get_errno() or -fd  # for a program that is too complex bcc returns -1
        raise OSError(number, os.strerror(number))
    return fd


@contextlib.contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """LLVM and libbpf write to descriptor 2; that goes into the log."""
    sys.stderr.flush()
    keep = os.dup(2)
    with open(log, "ab", opener=no_link) as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(keep, 2)
        os.close(keep)
