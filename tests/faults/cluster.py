"""Several real Apache Kafka brokers that are one: each votes, and all of them have every record."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from config.kafka.broker import UnavailableError, choose_port, fetch, new_cluster
from tests.absent import absent
from tests.broker import Broker

__all__ = ["address", "cluster"]


def address(brokers: list[Broker]) -> str:
    """HOST:PORT of all, as a place has it."""
    return ",".join(broker.address for broker in brokers)


@contextmanager
def cluster(brokers: int = 3) -> Iterator[list[Broker]]:
    """Start so many; what is written is safe when all but one have it."""
    try:
        fetch()
    except UnavailableError as error:
        absent(f"no Apache Kafka: {error}")
    ports = [(choose_port(), choose_port()) for _ in range(brokers)]
    voters = ",".join(f"{node}@127.0.0.1:{port}" for node, (_, port) in enumerate(ports, 1))
    alike = {
        "controller.quorum.voters": voters,
        "default.replication.factor": str(brokers),
        "min.insync.replicas": str(brokers - 1),
        "replica.lag.time.max.ms": "3000",
    }
    id, made = new_cluster(), []
    with ExitStack() as stack:
        for node, pair in enumerate(ports, 1):
            broker = Broker(alike | {"node.id": str(node)}, id)
            stack.callback(broker.remove)
            broker.ports = pair
            made.append(broker)
        with ThreadPoolExecutor(brokers) as starting:  # none of them answers before most are there
            list(starting.map(Broker.start, made))
        yield made
