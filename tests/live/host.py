"""What this host must be able to do before a kernel test can say anything."""

from __future__ import annotations

import os

from pipeline.kernel.btf import VMLINUX
from tests.absent import absent

__all__ = ["need_kernel"]


def need_kernel() -> None:
    """Where BPF cannot be had: fail in continuous integration, skip loudly elsewhere."""
    if os.geteuid() != 0:
        trouble = "needs root"
    elif not VMLINUX.exists():
        trouble = f"needs BTF ({VMLINUX})"
    else:
        return
    absent(f"the kernel side {trouble}")
