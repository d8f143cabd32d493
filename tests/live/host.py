"""What this host must be able to do before a kernel test can say anything."""

from __future__ import annotations

import os

import pytest

from pipeline.kernel.btf import VMLINUX

__all__ = ["need_kernel"]


def need_kernel() -> None:
    """Where BPF cannot be had: fail in continuous integration, skip loudly elsewhere."""
    if os.geteuid() != 0:
        trouble = "needs root"
    elif not VMLINUX.exists():
        trouble = f"needs BTF ({VMLINUX})"
    else:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"no kernel test can run here: {trouble}")
    pytest.skip(f"NOT TESTED: the kernel side {trouble}")
