"""System calls by name: their numbers, for hooks of type `sys_exit` (bpf/sys_exit.c, x86-64)."""

from __future__ import annotations

from typing import Final

__all__ = ["COMPAT", "NUMBERS", "TABLE"]

COMPAT: Final = 512
"""Added to the number of a 32-bit program's call."""
TABLE: Final = 2 * COMPAT
"""Places in the table of handlers."""

# name -> (64-bit, 32-bit)
_CALLS: Final = {
    "accept": (43, None),
    "accept4": (288, 364),
    "bind": (49, 361),
    "bpf": (321, 357),
    "connect": (42, 362),
    "execve": (59, 11),
    "execveat": (322, 358),
    "listen": (50, 363),
    "mmap": (9, 192),
    "mprotect": (10, 125),
    "pkey_mprotect": (329, 380),
    "setns": (308, 346),
    "unshare": (272, 310),
}
NUMBERS: Final = {
    name: tuple(
        number + offset for number, offset in zip(pair, (0, COMPAT), strict=True) if number is not None
    )
    for name, pair in _CALLS.items()
}
"""Name → its places in the table."""
