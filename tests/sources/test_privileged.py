"""What is opened before privileges are dropped: what cannot be opened is said, and what nobody can tell is
not vouched for.
"""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.chunk import AUDIT_RING, STRIDE
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.kernel.layout import OWN
from pipeline.kernel.own_ring import OwnMemory, OwnRing
from pipeline.kernel.ring import PAGE
from pipeline.privilege import User
from pipeline.sources import privileged
from pipeline.sources.privileged import Feeds, GivenUp


@pytest.mark.parametrize(
    ("answers", "sums", "unknown"),
    [
        ([500, 500, 503, 503], [0, 0, 3, 3], 0),
        ([500, None, None, 504], [0, 0, 0, 4], 2),
        ([None, 500, 501], [0, 0, 1], 0),
        ([None, None, 500], [0, 0, 0], 1),
        ([500, 0, 2], [0, 0, 2], 0),
    ],
    ids=["told", "late", "not at first", "not for long", "set back by somebody"],
)
def test_what_the_kernel_gave_up(answers: list[int | None], sums: list[int], unknown: int) -> None:
    """Losses from before the first answer are not this run's; times without one are booked."""
    row: Any = np.zeros(1, OWN)
    fd = os.memfd_create("ring")
    os.ftruncate(fd, 2 * PAGE + 64 * STRIDE)
    ring = OwnRing(AUDIT_RING, OwnMemory(fd, 64 * STRIDE), row, {})
    coming = iter(answers)
    given_up = GivenUp(lambda: next(coming), ring)
    assert [given_up() for _ in answers] == sums
    ring.publish(1)
    os.close(fd)
    assert int(row["away"][0]) == unknown


class Opened:
    """A feed, or a deputy, that can be opened."""

    def __init__(self, *_: object) -> None:
        self.closed = False

    def lost(self) -> int:
        return 0

    program = lost

    def close(self) -> None:
        self.closed = True


class Attachment:
    """One whose kinds come by perf and audit."""

    def __init__(self) -> None:
        surfaces = {"mmap": "perf", "bpf_load": "perf", "audit": "audit", "exec": "tracepoint"}
        self.manifest = SimpleNamespace(surfaces=surfaces, kinds=list(surfaces), rings={AUDIT_RING: 1})

    def own_ring(self, *_: object) -> None: ...

    def records(self) -> None: ...

    def who(self) -> None: ...

    def source_books(self, ring: int) -> dict[str, int]:
        return {"lost": 0}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Opened]:
    """Everything can be opened, without a kernel."""
    made: list[Opened] = []

    def make(*_: object) -> Opened:
        made.append(Opened())
        return made[-1]

    for name in ("Deputy", "Audit", "Perf", "Multicast"):
        monkeypatch.setattr(privileged, name, make)
    return made


def feeds() -> Feeds:
    attachment: Any = Attachment()
    return Feeds(Config(), attachment, User("nobody", 1, 1), lambda text: None)


PERF = OSError(errno.EMFILE, "Too many open files", "perf_event_open")
AUDIT = PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        (
            "Audit",
            OSError("something else"),
            "audit's socket cannot be opened: something else; name --events without audit",
        ),
        (
            "Perf",
            PERF,
            "perf's buffers (two for each processor) cannot be opened: perf_event_open: Too many open files; "
            "allow more open files (LimitNOFILE= of a service, `ulimit -Hn`); "
            "or name --events without mmap, bpf_load",
        ),
        (
            "Multicast",
            AUDIT,
            "audit's socket cannot be opened: Operation not permitted; "
            "it takes CAP_AUDIT_READ (CapabilityBoundingSet= of a service); or name --events without audit",
        ),
        (
            "Deputy",
            OSError(errno.EMFILE, "Too many open files", "/dev/null"),
            "the deputy cannot be started: /dev/null: Too many open files; "
            "allow more open files (LimitNOFILE= of a service, `ulimit -Hn`); "
            "or name --events without audit, bpf_load, bpf_unload",
        ),
    ],
)
def test_what_cannot_be_opened_is_said(
    opened: list[Opened], monkeypatch: pytest.MonkeyPatch, name: str, error: OSError, said: str
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(privileged, name, refuse)
    with pytest.raises(UserError) as raised:
        feeds()
    assert str(raised.value) == said
    assert [each.closed for each in opened] == {
        "Perf": [True, False, True],  # the wire is the feed's to close
        "Multicast": [True],
        "Deputy": [],
        "Audit": [True, False],
    }[name]


def test_all_is_closed_in_the_end(opened: list[Opened]) -> None:
    found = feeds()
    deputy, wire, *others = opened
    assert len(found.all) == len(others) == 2
    found.close()
    assert deputy.closed
    assert all(each.closed for each in others)
    assert not wire.closed
