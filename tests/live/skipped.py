"""What the kernel does now and then, made to happen: a run of a hook that does not come."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.kernel import bpf, compiler, pins
from pipeline.kernel.manifest import Manifest
from tests.live.run import Live

__all__ = ["expired", "without"]


@contextmanager
def without(live: Live, kind: str, hook: str) -> Iterator[None]:
    """Meanwhile nothing runs at one hook of a kind (or of what stands for several: source.SHARED)."""
    manifest = Manifest.read(live.state)
    assert manifest
    name = f"{kind}-{hook.replace('/', '-')}"
    slot = bpf.get(live.pins / f"slot_{name}")
    usual = bpf.get(pins.generation(live.pins, manifest.generation) / f"program_{name}")
    nothing = compiler.nothing(hook, Path(os.devnull))
    try:
        bpf.update(slot, bytes(4), nothing.to_bytes(4, "little"))
        yield
    finally:
        bpf.update(slot, bytes(4), usual.to_bytes(4, "little"))
        for fd in (slot, usual, nothing):
            os.close(fd)


def expired(live: Live, kind: str) -> int:
    """Events of a kind that began and never ended, by the kernel's books."""
    return sum(
        row["count"] for row in live.ledger()["losses"] if (row["kind"], row["reason"]) == (kind, "expired")
    )
