"""Audit records as the kernel writes them: a writer of the tests' own, from the kernel's rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["PART", "execve", "record", "stamp", "untrusted"]

PART = 40
"""Characters of an argument that go into one record here; the kernel's 7,500 would make slow tests."""


def stamp(serial: int, ms: int = 1_795_409_857_274) -> bytes:
    """The time and the serial that each record begins with."""
    return b"audit(%d.%03d:%d): " % (*divmod(ms, 1000), serial)


def record(number: int, body: bytes, serial: int = 1) -> bytes:
    """One record of a promise `records`."""
    return b"type=%d msg=%s%s\0" % (number, stamp(serial), body)


def untrusted(value: bytes) -> bytes:
    """A text that a program chose (audit_log_n_untrustedstring)."""
    odd = any(byte == 0x22 or byte < 0x21 or byte > 0x7E for byte in value)
    return value.hex().upper().encode() if odd else b'"' + value + b'"'


def execve(arguments: Sequence[bytes], serial: int = 1) -> list[bytes]:
    """The records of an execve: long arguments in parts, over several records."""
    records = [b"argc=%d" % len(arguments)]
    for number, argument in enumerate(arguments):
        if len(argument) <= PART:
            records[-1] += b" a%d=%s" % (number, untrusted(argument))
            continue
        digits = argument.hex().upper().encode()
        parts = [digits[at : at + PART] for at in range(0, len(digits), PART)]
        records[-1] += b" a%d_len=%d" % (number, len(digits))
        for part, piece in enumerate(parts):
            records.append(b"a%d[%d]=%s" % (number, part, piece))
    return [record(1309, body, serial) for body in records]


def joined(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """key=value, one after another."""
    return b" ".join(key + b"=" + value for key, value in pairs)
