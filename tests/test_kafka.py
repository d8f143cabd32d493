"""What the clients of Apache Kafka share: settings, topics, and errors in clear words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from config.kafka.broker import choose_port
from pipeline.kafka import (
    KEPT,
    OVERHEAD,
    AwayError,
    BrokerError,
    ensure,
    explain,
    present,
    producer,
    settings,
)
from pipeline.notices import topics as all_families
from pipeline.place import Kafka
from tests.broker import Broker

NOWHERE = Kafka("127.0.0.1:1")


@pytest.mark.parametrize("name", KEPT)
def test_properties_that_the_proof_rests_on_are_refused(name: str) -> None:
    with pytest.raises(BrokerError, match=f"kafka.{name} cannot be set") as caught:
        settings(NOWHERE, {name: "0"})
    assert caught.value.status == 2


def test_other_properties_are_the_users() -> None:
    found = settings(NOWHERE, {"client.id": "mine", "linger.ms": 50}, acks="all")
    assert (found["client.id"], found["linger.ms"], found["acks"]) == ("mine", 50, "all")
    assert found["bootstrap.servers"] == NOWHERE.address


@pytest.mark.parametrize(
    ("properties", "says"),
    [
        ({"no.such.thing": 1}, "No such configuration property"),
        ({"linger.ms": "long"}, "Invalid value"),
        ({"security.protocol": "sasl_plaintext", "sasl.mechanism": "PLAIN"}, "sasl.username"),
    ],
)
def test_what_librdkafka_refuses_is_one_line(properties: dict[str, object], says: str) -> None:
    with pytest.raises(BrokerError, match=says) as caught:
        producer(NOWHERE, properties, largest=1 << 20)
    assert "check the table `kafka`" in str(caught.value)


def test_a_broker_that_is_away_is_told_from_an_address_that_is_wrong() -> None:
    with pytest.raises(AwayError, match="refused"):
        present(NOWHERE, {})
    with pytest.raises(BrokerError, match="no such host"):
        present(Kafka("no-such-host.invalid:9092"), {})


def test_an_error_that_nobody_can_help_has_no_advice() -> None:
    assert explain(KafkaError(KafkaError._TRANSPORT, "gone"), "h:1") == "Kafka at h:1: gone"
    assert "check the address" in explain(KafkaError(KafkaError._RESOLVE, "gone"), "h:1")


@pytest.mark.kafka
def test_topics_are_made_once_and_taken_as_they_are(kafka: Broker) -> None:
    place = Kafka(kafka.address, "topics.made")
    limits = dict.fromkeys(all_families(), (2 << 20) + OVERHEAD)
    topics = {f"topics.made.{family}": [0, 1, 2] for family in all_families()}
    assert ensure(place, {}, partitions=3, largest=2 << 20) == limits
    assert present(place, {})[1] == topics
    assert ensure(place, {}, partitions=9, largest=5 << 20) == limits
    assert present(place, {})[1] == topics


@pytest.mark.kafka
def test_a_topic_of_others_keeps_its_limit(kafka: Broker) -> None:
    client = AdminClient({"bootstrap.servers": kafka.address, "log_level": 0})
    topic = NewTopic("of-others.process", 1, config={"max.message.bytes": "12345"})
    client.create_topics([topic])[topic.topic].result(20)
    limits = ensure(Kafka(kafka.address, "of-others"), {}, partitions=3, largest=1 << 20)
    assert limits == {**dict.fromkeys(all_families(), (1 << 20) + OVERHEAD), "process": 12345}


@pytest.fixture(scope="module")
def strict() -> Iterator[Kafka]:
    """A broker with a second listener: its user may log in, and do nothing else."""
    client, controller, guarded = choose_port(), choose_port(), choose_port()
    module = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    broker = Broker(
        {
            "listeners": f"PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller},"
            f"GUARDED://127.0.0.1:{guarded}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{client},GUARDED://127.0.0.1:{guarded}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,"
            "GUARDED:SASL_PLAINTEXT",
            "listener.name.guarded.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.guarded.plain.sasl.jaas.config": f'{module} user_reader="right";',
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        }
    )
    broker.ports = client, controller
    with broker:
        yield Kafka(f"127.0.0.1:{guarded}", "guarded")


def login(password: str) -> dict[str, str]:
    return {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "reader",
        "sasl.password": password,
    }


@pytest.mark.kafka
def test_refused_credentials_are_one_clear_line(strict: Kafka) -> None:
    with pytest.raises(BrokerError, match="refuses the credentials; check"):
        present(strict, login("wrong"))
    assert present(strict, login("right"))[1] == {}


@pytest.mark.kafka
def test_where_we_may_not_make_a_topic_the_command_is_shown(strict: Kafka) -> None:
    with pytest.raises(
        BrokerError, match=r"run: kafka-topics\.sh .* --topic guarded\.process --partitions 7"
    ):
        ensure(strict, login("right"), partitions=7, largest=1 << 20)


@pytest.mark.parametrize("silent", ["create_topics", "describe_configs"])
def test_a_broker_that_falls_silent_over_its_topics_is_away(
    monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    """A guess at a topic's limit would cut records that it takes."""

    class Client:
        def __getattr__(self, name: str) -> Callable[[list[Any]], dict[str, Future[None]]]:
            return lambda asked: {str(each): self.answer(name) for each in asked}

        def answer(self, name: str) -> Future[None]:
            future: Future[None] = Future()
            if name == silent:
                future.set_exception(KafkaException(KafkaError(KafkaError._TIMED_OUT)))
            else:
                future.set_result(None)
            return future

    monkeypatch.setattr("pipeline.kafka._ask", lambda *_: (Client(), SimpleNamespace(topics={})))
    with pytest.raises(AwayError, match=r"[Tt]imed out"):
        ensure(NOWHERE, {}, partitions=1, largest=1 << 20)
