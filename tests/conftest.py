"""What tests of several modules share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.broker import Broker


@pytest.fixture(scope="session")
def kafka() -> Iterator[Broker]:
    """A real Apache Kafka that nobody stops; each test takes a prefix of its own."""
    with Broker() as broker:
        yield broker
