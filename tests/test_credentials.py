"""Secrets out of files; TLS and SCRAM with a real broker: one clear line for a trouble, no secret in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import credentials
from pipeline.config import Config
from pipeline.configure import load
from pipeline.errors import UserError
from pipeline.kafka import BrokerError, DistrustError, present
from pipeline.place import Kafka
from tests.secure import PASSWORD, Secure, secure


def test_what_is_in_files_stands_in_their_place(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(" with blanks \n")
    (tmp_path / "key").write_text("KEY\n")
    (tmp_path / "ca").write_text("ONE\nTWO\n")
    given = {
        "client.id": "mine",
        "sasl.password.file": str(tmp_path / "password"),
        "ssl.key.location": str(tmp_path / "key"),
        "ssl.ca.location": str(tmp_path / "ca"),
    }
    found = {
        "client.id": "mine",
        "sasl.password": " with blanks ",
        "ssl.key.pem": "KEY",
        "ssl.ca.pem": "ONE\nTWO",
    }
    assert credentials.read(given) == found
    assert credentials.read(found) == found
    assert len(given) == 4, "the caller's stay as they are"


@pytest.mark.parametrize("where", ["probe", "/etc/ssl/certs"])
def test_where_cas_are_looked_for_is_librdkafkas(where: str) -> None:
    assert credentials.read({"ssl.ca.location": where}) == {"ssl.ca.location": where}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, path, why in (
        ("sasl.password.file", "none", "No such file"),
        ("ssl.key.location", "binary", "it is no PEM"),
        ("sasl.password.file", "binary", "it is no text"),
    ):
        with pytest.raises(UserError, match=f"kafka.{name}: .*{path}: {why}") as caught:
            credentials.read({name: str(tmp_path / path)})
        assert caught.value.status == 2


def test_a_secret_is_in_no_text_about_the_configuration() -> None:
    config = Config(kafka={"sasl.password": PASSWORD})
    assert PASSWORD not in f"{config} {config!r}"
    with pytest.raises(UserError, match="wanted: a table") as caught:
        load(environ={"PROMISSORY_KAFKA": PASSWORD})
    assert PASSWORD not in str(caught.value)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    """One broker for all that is tried here."""
    with secure(tmp_path_factory.mktemp("secure")) as broker:
        yield broker


@pytest.mark.kafka
def test_who_is_trusted_and_trusts_gets_in(guarded: Secure, tmp_path: Path) -> None:
    place = Kafka(guarded.address(), "trusted")
    assert present(place, guarded.login())[1] == {}
    login = guarded.login()
    (tmp_path / "password").write_text(login.pop("sasl.password"))
    assert present(place, {**login, "sasl.password.file": str(tmp_path / "password")})[1] == {}


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("listener", "password", "ca", "says"),
    [
        ("GOOD", "wr0ng-0ne", "ca", "the broker refuses the credentials; check `kafka.sasl.*`"),
        ("GOOD", PASSWORD, "other", "not trusted: unable to get local issuer certificate; name the CA"),
        ("EXPIRED", PASSWORD, "ca", "not trusted: certificate has expired; renew it at the broker"),
        ("ELSEWHERE", PASSWORD, "ca", "certificate is not valid for '127.0.0.1'; reach the broker by a name"),
    ],
)
def test_distrust_is_one_clear_line(
    guarded: Secure, listener: str, password: str, ca: str, says: str
) -> None:
    place = Kafka(guarded.address(listener), "distrust")
    with pytest.raises(DistrustError) as caught:
        present(place, guarded.login(password, ca))
    text = str(caught.value)
    assert text.startswith(f"Kafka at {place.address}: ")
    assert says in text
    assert len(text.splitlines()) == 1
    assert password not in text


@pytest.mark.kafka
def test_a_mechanism_that_is_not_there_is_named(guarded: Secure) -> None:
    login = {**guarded.login(), "sasl.mechanism": "PLAIN"}
    with pytest.raises(DistrustError, match="supported mechanisms: SCRAM-SHA-512"):
        present(Kafka(guarded.address(), "x"), login)


@pytest.mark.kafka
def test_a_key_that_is_none_is_our_own_fault(guarded: Secure) -> None:
    login = {**guarded.login(), "ssl.key.pem": "n0-key"}
    with pytest.raises(BrokerError, match=r"ssl\.key\.pem failed: not in PEM format") as caught:
        present(Kafka(guarded.address(), "x"), login)
    assert not isinstance(caught.value, DistrustError)
    assert "n0-key" not in str(caught.value)
