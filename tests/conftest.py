"""What tests of several modules share."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.absent import absent
from tests.broker import Broker

# Who is started in the background by a script ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# An example that takes long says something of the machine's other work, not of ours.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


@pytest.fixture(scope="session")
def kafka() -> Iterator[Broker]:
    """A real Apache Kafka that nobody stops; each test takes a prefix of its own."""
    with Broker() as broker:
        yield broker


@pytest.fixture
def root() -> None:
    """For tests that only root can do."""
    if os.geteuid() != 0:
        absent("what takes root")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        absent("mounting needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
