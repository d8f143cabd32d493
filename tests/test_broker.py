"""The broker that every other Kafka test stands on: it stops, hangs, dies and comes back with its data."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from config.kafka import broker
from tests.broker import Broker

BIG = 8 << 20


@pytest.fixture(scope="module")
def kafka() -> Iterator[Broker]:
    with Broker() as one:
        yield one


def end_offset(address: str, topic: str) -> int:
    consumer = Consumer({"bootstrap.servers": address, "group.id": "test"})
    try:
        return int(consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=20)[1])
    finally:
        consumer.close()


def produce(address: str, topic: str, value: bytes) -> list[str]:
    """The errors of delivering one record."""
    errors: list[str] = []
    producer = Producer(
        {"bootstrap.servers": address, "acks": "all", "message.max.bytes": 9 << 20, "log_level": 0}
    )
    producer.produce(topic, value, callback=lambda error, _: errors.append(str(error)) if error else None)
    producer.flush(20)
    return errors


def create(address: str, topic: str) -> None:
    settings = {"max.message.bytes": str(9 << 20)}
    new = NewTopic(topic, num_partitions=1, replication_factor=1, config=settings)
    client = AdminClient({"bootstrap.servers": address})
    client.create_topics([new])[topic].result(20)


def test_packages_are_named_when_java_and_maven_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "HOME", tmp_path)
    monkeypatch.setattr(broker, "find_java", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert broker.missing_packages() == ["openjdk-17-jre-headless", "maven"]
    with pytest.raises(broker.UnavailableError, match="Maven"):
        broker.fetch()
    with pytest.raises(broker.UnavailableError, match="Java 17"):
        broker.Broker(tmp_path).start()


def test_an_old_java_is_no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = tmp_path / "java"
    java.write_text("""#!/bin/sh\necho 'openjdk version "11.0.2" 2019-01-15' >&2\n""")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert broker.find_java() != str(java)


def test_a_foreign_process_is_never_ours(tmp_path: Path) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "input()", "kafka.Kafka"], stdin=subprocess.PIPE)
    try:
        (tmp_path / "pid").write_text(str(bystander.pid))
        one = broker.Broker(tmp_path)
        assert one.pid is None
        assert not one.stop()
        assert bystander.poll() is None
        assert not (tmp_path / "pid").exists()
    finally:
        bystander.communicate(b"\n")


@pytest.mark.kafka
def test_it_holds_records_of_8_mib_and_creates_no_topic_by_itself(kafka: Broker) -> None:
    create(kafka.address, "big")
    assert produce(kafka.address, "big", os.urandom(BIG)) == []
    assert end_offset(kafka.address, "big") == 1
    metadata = AdminClient({"bootstrap.servers": kafka.address}).list_topics("never-made", timeout=10)
    assert metadata.topics["never-made"].error is not None


@pytest.mark.kafka
@pytest.mark.parametrize("end", [Broker.stop, Broker.kill])
def test_data_and_port_survive(kafka: Broker, end: Callable[[Broker], bool]) -> None:
    topic = getattr(end, "__name__", "topic")
    create(kafka.address, topic)
    assert produce(kafka.address, topic, b"kept") == []
    address, before = kafka.address, kafka.pid
    assert end(kafka)
    assert kafka.pid is None
    assert not kafka.stop()
    assert kafka.start() == address
    assert kafka.pid != before
    assert end_offset(address, topic) == 1


@pytest.mark.kafka
def test_a_paused_broker_answers_again_when_resumed(kafka: Broker) -> None:
    client = AdminClient({"bootstrap.servers": kafka.address, "log_level": 0})
    client.list_topics(timeout=10)
    kafka.pause()
    try:
        with pytest.raises(KafkaException):
            client.list_topics(timeout=0.5)
    finally:
        kafka.resume()
    assert client.list_topics(timeout=20).brokers


@pytest.mark.kafka
def test_starting_twice_gives_one_broker(kafka: Broker) -> None:
    before = kafka.pid
    again = broker.Broker(kafka.folder)
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(again.start())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [kafka.address] * 2
    assert kafka.pid == before


@pytest.mark.kafka
def test_a_stale_process_id_is_no_hindrance(kafka: Broker) -> None:
    kafka.kill()
    (kafka.folder / "pid").write_text(str(os.getpid()))
    kafka.start()
    assert kafka.pid not in (None, os.getpid())


@pytest.mark.kafka
def test_a_broker_that_cannot_start_says_why() -> None:
    one = Broker({"num.io.threads": "none"})
    try:
        with pytest.raises(broker.BrokerError, match=r"num\.io\.threads"):
            one.start()
        assert one.pid is None
    finally:
        one.remove()


def test_a_paused_broker_can_be_stopped(tmp_path: Path) -> None:
    """Any process with the right command line will do: a stopped one must get its SIGTERM."""
    one = broker.Broker(tmp_path)
    stand_in = subprocess.Popen([sys.executable, "-c", "input()", "kafka.Kafka", str(one.settings)], stdin=-1)
    try:
        (tmp_path / "pid").write_text(str(stand_in.pid))
        one.child = stand_in
        while one.pid is None:
            time.sleep(0.01)
        one.pause()
        assert one.stop()
        assert stand_in.wait(5) == -signal.SIGTERM
    finally:
        if stand_in.stdin:
            stand_in.stdin.close()
