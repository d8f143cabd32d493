"""Rules of the audit system for a test: added by netlink, and taken away again with all that was changed."""

from __future__ import annotations

import contextlib
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence

from pipeline.kernel import netlink

__all__ = ["KEY", "X86_64", "auditing", "rule"]

KEY = b"promissory test"
X86_64 = 0xC000003E
_SET, _ADD, _DELETE = 1001, 1011, 1012
_EXIT, _ALWAYS = 4, 2
_EQUAL = 0x40000000
ARCH, PPID, WATCH, PERM, FILTERKEY = 11, 18, 105, 106, 210
_FIELDS, _WORDS = 64, 64
_NO_CONTEXT = ("never,task",)


def rule(fields: Sequence[tuple[int, int | bytes]], calls: Sequence[int] = ()) -> bytes:
    """struct audit_rule_data: report these system calls at their end, where all fields are equal."""
    mask = [0] * _WORDS
    for call in calls:
        mask[call // 32] |= 1 << call % 32
    texts = [value for _, value in fields if isinstance(value, bytes)]
    values = [len(value) if isinstance(value, bytes) else value for _, value in fields]
    columns = ([number for number, _ in fields], values, [_EQUAL] * len(fields))
    padded = [number for column in columns for number in [*column, *[0] * (_FIELDS - len(column))]]
    text = b"".join(texts)
    return (
        struct.pack(
            f"={3 + _WORDS + 3 * _FIELDS + 1}I", _EXIT, _ALWAYS, len(fields), *mask, *padded, len(text)
        )
        + text
    )


@contextlib.contextmanager
def auditing(*rules: bytes) -> Iterator[None]:
    """These rules hold, and auditing is on, for processes that begin now."""
    before = netlink.status().enabled
    with contextlib.ExitStack() as stack:
        if _quiet("-d"):  # Debian's own rule for hosts that want no system calls audited
            stack.callback(_quiet, "-a")
        _enable(1)
        stack.callback(_enable, before)
        for each in rules:
            netlink.request(_ADD, each)
            stack.callback(netlink.request, _DELETE, each)
        yield


def _enable(on: int) -> None:
    netlink.request(_SET, struct.pack("=11I", 1, on, *[0] * 9))


def _quiet(how: str) -> bool:
    auditctl = shutil.which("auditctl")
    return (
        bool(auditctl)
        and not subprocess.run(
            [str(auditctl), how, *_NO_CONTEXT], capture_output=True, check=False
        ).returncode
    )
