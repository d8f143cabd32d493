"""Places as a person writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.place import Folder, Kafka, PlaceError, Stdout, parse


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("-", Stdout()),
        ("kafka://localhost:9092", Kafka("localhost:9092", "promissory")),
        ("kafka://localhost:9092/", Kafka("localhost:9092", "promissory")),
        ("kafka://a:1,b.example:65535/fleet.one", Kafka("a:1,b.example:65535", "fleet.one")),
        ("kafka://[::1]:9092", Kafka("[::1]:9092", "promissory")),
        ("/var/lib/promissory", Folder(Path("/var/lib/promissory"))),
    ],
)
def test_what_is_understood(text: str, place: object) -> None:
    assert parse(text) == place


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kafka:localhost", "write kafka://HOST:PORT"),
        ("kafka://localhost", "not HOST:PORT"),
        ("kafka://:9092", "not HOST:PORT"),
        ("kafka://me:secret@host:9092", r"no password, .*; set kafka\.sasl\.\*$"),
        ("kafka://h:1,", "not HOST:PORT"),
        ("kafka://h:0", "a port is a number"),
        ("kafka://h:65536", "a port is a number"),
        ("kafka://h:1/a b", "cannot begin a topic's name"),
        ("kafka://h:1/" + "x" * 201, "cannot begin a topic's name"),
        ("http://h:1", "no such kind of place"),
        ("", "must not be empty"),
        (__file__, "is a file"),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    with pytest.raises(PlaceError, match=says) as caught:
        parse(text)
    assert caught.value.status == 2


def test_a_family_has_its_topic() -> None:
    assert Kafka("h:1", "fleet").topic("process") == "fleet.process"
