"""Apache Kafka's clients, as sink, source and replay make them: settings, errors in clear words, topics.

Everything here that asks the broker blocks: callers under trio use a thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec, ResourceType
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from pipeline.credentials import distrust, read
from pipeline.errors import UserError
from pipeline.notices import topics as all_families
from pipeline.place import Kafka

__all__ = [
    "OVERHEAD",
    "REMEDIES",
    "AwayError",
    "BrokerError",
    "DistrustError",
    "clear",
    "ensure",
    "explain",
    "is_committed",
    "patiently",
    "present",
    "producer",
    "settings",
]

PATIENCE: Final = 3.0
"""Seconds until a broker that does not answer is away."""
OVERHEAD: Final = 1024
"""Bytes that Kafka wraps around a record alone in its batch, key included, rounded up."""
USUAL_LIMIT: Final = 1_048_588
"""max.message.bytes of a topic that does not say, where we may not ask."""
SETTLING: Final = (
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
)
SILENCE: Final = (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN)
"""Errors of librdkafka's own: nobody answered."""
KEPT: Final = (
    "acks",
    "request.required.acks",
    "enable.idempotence",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "partitioner",
    "bootstrap.servers",
    "metadata.broker.list",
    "transactional.id",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "allow.auto.create.topics",
)
"""Properties that are ours alone: the proof of delivery rests on them, or the place says them."""

# What a person can do about it. Errors that are not here pass by themselves: the broker is away.
REMEDIES: Final[Mapping[int, str]] = {
    KafkaError._RESOLVE: "no such host; check the address",
    KafkaError._AUTHENTICATION: "the broker refuses the credentials; check `kafka.sasl.*`",
    KafkaError.SASL_AUTHENTICATION_FAILED: "the broker refuses the credentials; check `kafka.sasl.*`",
    KafkaError.UNSUPPORTED_SASL_MECHANISM: "the broker does not know this `kafka.sasl.mechanism`",
    KafkaError._UNSUPPORTED_FEATURE: "broker or client lack a feature; see the text",
    KafkaError._SSL: "TLS failed; check `kafka.security.protocol` and `kafka.ssl.*`",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "this user may not use the topics; grant Write and Create",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "this user lacks a right; grant IdempotentWrite",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "this user may not use transactions; grant it",
    KafkaError._INVALID_ARG: "check the table `kafka` of the configuration",
    KafkaError.INVALID_CONFIG: "the broker refuses a topic's settings; check `topic`",
    KafkaError.INVALID_REPLICATION_FACTOR: "too few brokers for its replication; start more",
    KafkaError.POLICY_VIOLATION: "the cluster's policy refuses the topic; create it by hand",
    KafkaError._FATAL: "the producer cannot go on",
}
TRUST: Final = (
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError._SSL,
)
"""Errors that a change at the broker can mend."""


class BrokerError(UserError):
    """The broker or its settings need a person."""


class DistrustError(BrokerError):
    """The broker refuses us, or we its certificate; that may be mended where it is."""


class AwayError(Exception):
    """The broker does not answer now; it may later."""


def explain(error: KafkaError, address: str) -> str:
    """One line: who said what, and what to do."""
    remedy = REMEDIES.get(error.code())
    return f"Kafka at {address}: {error.str()}" + (f"; {remedy}" if remedy else "")


@contextmanager
def clear(address: str) -> Iterator[None]:
    """Turn librdkafka's exceptions into BrokerError where a person can help, else AwayError."""
    try:
        yield
    except KafkaException as exception:
        error = exception.args[0]
        raise _trouble(error, explain(error, address)) from None


def _trouble(error: KafkaError, text: str) -> Exception:
    if error.code() in TRUST:
        return DistrustError(text)
    return BrokerError(text) if error.code() in REMEDIES else AwayError(text)


def _is_settling(exception: BaseException) -> bool:
    return isinstance(exception, KafkaException) and exception.args[0].code() in SETTLING


patiently: Final = Retrying(
    retry=retry_if_exception(_is_settling),
    wait=wait_fixed(0.05),
    stop=stop_after_delay(PATIENCE),
    reraise=True,
)
"""Calls a function that asks about a topic. One that was made just now is not known to every broker yet, or
has no leader: then it is asked again, for a while.
"""


def settings(place: Kafka, properties: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    """librdkafka's configuration: the user's, then ours. Raises BrokerError."""
    for name in properties:
        if name in KEPT:
            raise BrokerError(
                f"kafka.{name} cannot be set: what promissory promises rests on its own value; remove it",
                status=2,
            )
    return {
        "client.id": "promissory",
        "reconnect.backoff.max.ms": 1000,
        "log_level": 0,
        **read(properties),
        "bootstrap.servers": place.address,
        **{name.replace("_", "."): value for name, value in own.items()},
    }


def producer(
    place: Kafka,
    properties: Mapping[str, Any],
    *,
    largest: int,
    heard: Callable[[KafkaError], None] | None = None,
    **own: Any,
) -> Producer:
    """A producer that loses nothing and keeps order. `largest`: bytes of the largest batch it may send."""
    options: dict[str, Any] = settings(
        place,
        {"linger.ms": 2, "compression.type": "lz4", "queue.buffering.max.kbytes": 16384, **properties},
        enable_idempotence=True,
        acks="all",
        # A partition whose leader begins just now can refuse one batch and take the next: a broker that
        # knows nothing of a producer takes any number as its first (KAFKA-15591), and librdkafka then holds
        # the one that it sends again for a double. So none is under way behind another.
        max_in_flight=1,
        # A record whose time ran out would be lost with a broker that comes back.
        message_timeout_ms=0,
        partitioner="murmur2_random",
        message_max_bytes=largest,
        # The broker's limit is on a batch: so no batch of several records can ever be over it.
        batch_size=min(1_000_000, largest - OVERHEAD),
        queue_buffering_max_messages=1_000_000,
        allow_auto_create_topics=False,
        # Topics were made sure of: one that cannot be found is gone, and is made again.
        topic_metadata_propagation_max_ms=5000,
        **own,
    )
    with clear(place.address):
        return Producer(options | ({"error_cb": heard} if heard else {}))


def _ask(place: Kafka, properties: Mapping[str, Any]) -> tuple[AdminClient, Any]:
    """A client and the cluster's metadata. Raises BrokerError, AwayError."""
    heard: list[KafkaError] = []
    with clear(place.address):
        client = AdminClient(settings(place, properties) | {"error_cb": heard.append})
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return client, client.list_topics(timeout=0.5)
        except KafkaException as exception:
            client.poll(0)
            for error in heard:
                if error.code() in REMEDIES:
                    raise _trouble(error, _why(error, place, properties)) from None
            if time.monotonic() > deadline:
                error = heard[0] if heard else exception.args[0]
                raise AwayError(explain(error, place.address)) from None


def _why(error: KafkaError, place: Kafka, properties: Mapping[str, Any]) -> str:
    """As `explain` says it; of a certificate, librdkafka does not tell what is wrong with it."""
    refused = distrust(place.address, properties) if error.code() == KafkaError._SSL else None
    return f"Kafka at {place.address}: {refused}" if refused else explain(error, place.address)


def present(place: Kafka, properties: Mapping[str, Any]) -> tuple[str, dict[str, list[int]]]:
    """The cluster's id, and the place's topics with their partitions. Raises BrokerError, AwayError."""
    _, metadata = _ask(place, properties)
    known = {place.topic(family) for family in all_families()}
    topics = {name: sorted(t.partitions) for name, t in metadata.topics.items() if name in known}
    return metadata.cluster_id, topics


def ensure(place: Kafka, properties: Mapping[str, Any], *, partitions: int, largest: int) -> dict[str, int]:
    """Make the topics that are missing; family → max.message.bytes of its topic.

    `partitions` and `largest` (bytes of a record) are for those. Raises BrokerError, AwayError.
    """
    client, metadata = _ask(place, properties)
    topics = {family: place.topic(family) for family in all_families()}
    missing = [name for name in topics.values() if name not in metadata.topics]
    config = {"max.message.bytes": str(largest + OVERHEAD)}
    new = [NewTopic(name, num_partitions=partitions, config=config) for name in missing]
    for name, future in (client.create_topics(new) if new else {}).items():
        try:
            future.result(timeout=30)
        except KafkaException as exception:
            if exception.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise _no_topic(place, name, partitions, config, exception.args[0]) from None
    limits = _limits(client, topics.values(), place)
    return {family: limits[name] for family, name in topics.items()}


def is_committed(place: Kafka, properties: Mapping[str, Any]) -> bool:
    """Whether no transaction is open on the place's topics. Raises BrokerError, AwayError."""
    client, metadata = _ask(place, properties)
    topics = [metadata.topics[name] for name in map(place.topic, all_families()) if name in metadata.topics]
    end = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    latest = {TopicPartition(t.topic, n): end for t in topics for n in t.partitions}
    ends = []
    for isolation in (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED):
        with clear(place.address):
            ends.append(patiently(_ends, client, latest, isolation))
    return ends[0] == ends[1]


def _ends(
    client: AdminClient, asked: dict[TopicPartition, OffsetSpec], isolation: IsolationLevel
) -> list[int]:
    futures = client.list_offsets(asked, isolation_level=isolation)
    return [future.result(timeout=30).offset for future in futures.values()]


def _no_topic(
    place: Kafka, name: str, partitions: int, config: Mapping[str, str], error: KafkaError
) -> Exception:
    if _is_away(error):
        return AwayError(explain(error, place.address))
    setting = ",".join(f"{key}={value}" for key, value in config.items())
    return BrokerError(
        f"Kafka at {place.address} does not let us create the topic {name} ({error.str()}); run: "
        f"kafka-topics.sh --bootstrap-server {place.address} --create --topic {name} "
        f"--partitions {partitions} --config {setting}"
    )


def _is_away(error: KafkaError) -> bool:
    """Whether nobody answered, or not yet."""
    return error.retriable() or error.code() in SILENCE


def _limits(client: AdminClient, topics: Iterable[str], place: Kafka) -> dict[str, int]:
    """Topic → the largest batch it takes, in bytes. Raises AwayError."""
    limits = {}
    for name in topics:
        try:
            limits[name] = patiently(_limit, client, name)
        except KafkaException as exception:
            if _is_away(exception.args[0]):  # a guess would cut records that the topic takes
                raise AwayError(explain(exception.args[0], place.address)) from None
            # We may write to it and not look at it.
            limits[name] = USUAL_LIMIT
    return limits


def _limit(client: AdminClient, topic: str) -> int:
    (future,) = client.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
    return int(future.result(timeout=30)["max.message.bytes"].value)
