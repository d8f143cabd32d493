"""A broker that wants TLS and SCRAM, with certificates by a CA of its own: good, expired, another host's."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives import serialization

from config.kafka.broker import choose_port
from tests.broker import Broker

__all__ = ["PASSWORD", "USER", "Secure", "guarded", "secure"]

USER = "promissory"
PASSWORD = "n0b0dy-kn0ws"
LISTENERS = ("GOOD", "EXPIRED", "ELSEWHERE")
"""What is wrong with their certificates."""


@dataclass(frozen=True)
class Secure:
    """The broker, where its listeners are, and files for its clients."""

    broker: Broker
    ports: dict[str, int]
    folder: Path

    def address(self, listener: str = "GOOD") -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.ports[listener]}"

    def login(self, password: str = PASSWORD, ca: str = "ca") -> dict[str, str]:
        """Properties of librdkafka."""
        return {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": USER,
            "sasl.password": password,
            "ssl.ca.location": str(self.folder / f"{ca}.pem"),
        }

    def settings(self, file: Path) -> dict[str, str]:
        """Keys of our configuration, joined by two lines; `file` takes the password."""
        login = self.login()
        file.write_text(login.pop("sasl.password"))
        login["sasl.password.file"] = str(file)
        return {f"kafka__{name.replace('.', '_')}": value for name, value in login.items()}

    def let_in(self, password: str) -> None:
        """Set the user's password, over the listener that asks nobody."""
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        change = UserScramCredentialUpsertion(USER, info, password.encode())
        client = AdminClient({"bootstrap.servers": self.broker.address, "log_level": 0})
        client.alter_user_scram_credentials([change])[USER].result(20)


@contextmanager
def secure(folder: Path) -> Iterator[Secure]:
    """Start one; `folder` takes its files. USER may log in with PASSWORD."""
    ca, other = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    other.cert_pem.write_to_path(folder / "other.pem")
    now = datetime.datetime.now(datetime.UTC)
    certificates = (
        ca.issue_cert("127.0.0.1"),
        ca.issue_cert(
            "127.0.0.1", not_before=now - datetime.timedelta(2), not_after=now - datetime.timedelta(1)
        ),
        ca.issue_cert("elsewhere.example"),
    )
    ports = {name: choose_port() for name in ("PLAINTEXT", "CONTROLLER", *LISTENERS)}
    at = {name: f"{name}://127.0.0.1:{port}" for name, port in ports.items()}
    properties = {
        "listeners": ",".join(at.values()),
        "advertised.listeners": ",".join(place for name, place in at.items() if name != "CONTROLLER"),
        "listener.security.protocol.map": ",".join(
            f"{name}:{'SASL_SSL' if name in LISTENERS else 'PLAINTEXT'}" for name in ports
        ),
    }
    for name, certificate in zip(LISTENERS, certificates, strict=True):
        store = folder / f"{name}.pem"
        store.write_bytes(_key(certificate) + b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
        properties |= {
            f"listener.name.{name.lower()}.{key}": value
            for key, value in {
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(store),
                "sasl.enabled.mechanisms": "SCRAM-SHA-512",
                "scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule"
                " required;",
            }.items()
        }
    broker = Broker(properties)
    broker.ports = ports["PLAINTEXT"], ports["CONTROLLER"]
    with broker:
        made = Secure(broker, ports, folder)
        made.let_in(PASSWORD)
        yield made


@pytest.fixture
def guarded(ground: Path) -> Iterator[Secure]:
    """A broker that wants TLS and SCRAM; nobody but root can read its certificates and keys."""
    folder = ground / "secure"
    folder.mkdir(mode=0o700)
    with secure(folder) as broker:
        yield broker


def _key(certificate: trustme.LeafCert) -> bytes:
    """Its key as Java reads it."""
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
