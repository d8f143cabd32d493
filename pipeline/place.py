"""A PLACE: where records go to and come from, as a person writes it.

kafka://HOST:PORT[,HOST:PORT][/PREFIX]    topics PREFIX.FAMILY of an Apache Kafka
FOLDER                                    the local log in a state folder
-                                         JSON lines on standard output
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.errors import UserError

__all__ = ["PREFIX", "Folder", "Kafka", "Place", "PlaceError", "Stdout", "parse"]

PREFIX: Final = "promissory"
"""What topics are called unless a place says otherwise."""
LONGEST_PREFIX: Final = 200
"""Kafka takes names of 249 bytes; a family is added to it."""


class PlaceError(UserError):
    """A PLACE that says nothing that could be used."""

    def __init__(self, text: str) -> None:
        super().__init__(text, status=2)


@dataclass(frozen=True, slots=True)
class Kafka:
    """Topics of a broker."""

    address: str
    """HOST:PORT[,HOST:PORT]."""
    prefix: str = PREFIX

    def topic(self, family: str) -> str:
        """The topic of a family of events."""
        return f"{self.prefix}.{family}"

    def __str__(self) -> str:
        return f"kafka://{self.address}/{self.prefix}"


@dataclass(frozen=True, slots=True)
class Folder:
    """The local log in a state folder."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class Stdout:
    """JSON lines on standard output."""

    def __str__(self) -> str:
        return "-"


Place = Kafka | Folder | Stdout


def parse(text: str) -> Place:
    """Read a PLACE; PlaceError says what is wrong with it."""
    if text == "-":
        return Stdout()
    if text.startswith("kafka:"):
        return _kafka(text)
    if "://" in text:
        raise PlaceError(f"{text}: no such kind of place; write kafka://HOST:PORT, a folder, or -")
    if not text.strip():
        raise PlaceError("a place must not be empty; write kafka://HOST:PORT, a folder, or -")
    path = Path(text).expanduser()
    if path.exists() and not path.is_dir():
        raise PlaceError(f"{text} is a file; name the state folder that holds the local log")
    return Folder(path)


def _kafka(text: str) -> Kafka:
    rest = text.removeprefix("kafka:")
    if not rest.startswith("//"):
        raise PlaceError(f"{text}: write kafka://HOST:PORT or kafka://HOST:PORT/PREFIX")
    hosts, slash, prefix = rest[2:].partition("/")
    if "@" in hosts:
        # Not to be repeated: it may be a password.
        raise PlaceError("a place holds no user and no password, others would see them; set kafka.sasl.*")
    for host in hosts.split(","):
        name, _, port = host.rpartition(":")
        if not re.fullmatch(r"[^\s:/@\[\]]+|\[[0-9A-Fa-f:.]+\]", name):
            raise PlaceError(f"{text}: {host!r} is not HOST:PORT; write for example kafka://127.0.0.1:9092")
        if not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 1 << 16:
            raise PlaceError(f"{text}: {port!r} is no port; a port is a number from 1 to 65535")
    prefix = prefix if slash and prefix else PREFIX
    if not re.fullmatch(r"[A-Za-z0-9._-]+", prefix) or len(prefix) > LONGEST_PREFIX:
        raise PlaceError(
            f"{text}: {prefix!r} cannot begin a topic's name; "
            f"take at most {LONGEST_PREFIX} letters, digits, dots, dashes and underscores"
        )
    return Kafka(hosts, prefix)
