"""What /proc says of a process: CPU, and memory besides the rings."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["cpu_seconds", "resident_mb"]


def cpu_seconds(pid: int) -> float:
    """CPU that a process has used, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Resident MB (10^6 bytes) of a process's own memory and of files, but not the rings: these are
    shared memory, or of the kernel."""
    total, ring = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ring = bool(re.search(r"memfd:ring_|bpf-map", line))
        elif line.startswith("Rss:") and not ring:
            total += int(line.split()[1])
    return total * 1024 / 1e6
