"""What this host must be able to do before a kernel test can say anything, and what its kernel lacks."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

import pytest

from pipeline.kernel import bpf, btf
from tests.absent import absent

__all__ = ["FENTRY", "TRACED", "TRACING", "lacks", "load_tracing", "need_kernel", "need_tracing"]

TRACING, FENTRY = 26, 24
TRACED = "oom_badness"
"""A function of the kernel that nobody calls here."""
BPF_LOAD = 5


def need_kernel() -> None:
    """Where BPF cannot be had: fail in continuous integration, skip loudly elsewhere."""
    if os.geteuid() != 0:
        trouble = "needs root"
    elif not btf.VMLINUX.exists():
        trouble = f"needs BTF ({btf.VMLINUX})"
    else:
        return
    absent(f"the kernel side {trouble}")


def lacks(kind: str) -> bool:
    """Whether this kernel cannot give a kind of event, asked of the kernel and not of the pipeline."""
    if kind.startswith("module_") and not Path("/proc/modules").exists():
        return True
    if kind not in ("module_request", "kernel_text"):
        return False
    return not _traces()


def need_tracing() -> None:
    """Skip a test where this kernel lets nobody load programs for its functions."""
    if not _traces():
        pytest.skip("NOT TESTED: this host lets nobody load programs for functions of the kernel")


def _traces() -> bool:
    try:
        os.close(load_tracing())
    except PermissionError:
        return False
    return True


def load_tracing() -> int:
    """Load a program for the start of a function. Raises PermissionError where nobody may."""
    function = btf.running().function(TRACED)
    assert function
    code, license = ctypes.create_string_buffer(bpf.NOTHING), ctypes.create_string_buffer(b"GPL")
    head = struct.pack("=IIQQ", TRACING, 2, ctypes.addressof(code), ctypes.addressof(license))
    tail = struct.pack("=I", FENTRY).ljust(40, b"\0") + struct.pack("=I", function[0])
    return bpf._bpf(BPF_LOAD, (head.ljust(68, b"\0") + tail).ljust(128, b"\0"), TRACED)
