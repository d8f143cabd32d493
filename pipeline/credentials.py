"""How we and the broker come to trust each other: secrets out of files, and why a certificate is refused.

The table `kafka` may name files that only root can read: `read` puts what is in them in their place, before
privileges are dropped. Nothing here puts a secret into a text.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pipeline.errors import UserError

__all__ = ["distrust", "read"]

FILES: Final = {
    "sasl.password.file": "sasl.password",
    "ssl.key.password.file": "ssl.key.password",
    "ssl.key.location": "ssl.key.pem",
    "ssl.ca.location": "ssl.ca.pem",
}
"""A property that names a file → the one that holds what is in it. The first two are ours."""
PATIENCE: Final = 3.0
"""Seconds for the broker to show its certificate."""
# By OpenSSL's numbers (X509_V_ERR_…).
ADVICE: Final = {
    **dict.fromkeys((9, 10), "renew it at the broker, or set this host's clock"),
    **dict.fromkeys((62, 64), "reach the broker by a name that the certificate has"),
    **dict.fromkeys((2, 18, 19, 20, 21), "name the CA that signed it: `kafka.ssl.ca.location`"),
}
CHECK: Final = "check `kafka.ssl.*`"


def read(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Properties of librdkafka, with what is in files instead of their names. UserError: there is none."""
    found = dict(properties)
    for name, instead in FILES.items():
        # Of CAs there may be a folder, or `probe`: librdkafka looks for itself.
        if name in found and not (name == "ssl.ca.location" and not Path(found[name]).is_file()):
            found[instead] = _text(name, Path(found.pop(name)))
    return found


def _text(name: str, path: Path) -> str:
    try:
        return path.read_text("ascii" if name.endswith("location") else "utf-8").rstrip("\r\n")
    except OSError as error:
        why = error.strerror
    except UnicodeDecodeError:
        why = "it is no PEM" if name.endswith("location") else "it is no text"
    raise UserError(f"kafka.{name}: {path}: {why}; name a file that can be read", status=2)


def distrust(address: str, properties: Mapping[str, Any]) -> str | None:
    """Why a broker's certificate is not trusted, and what to do; None: it is, or cannot be seen. Blocks."""
    host, _, port = address.partition(",")[0].rpartition(":")
    host = host.strip("[]")
    try:
        context = ssl.create_default_context(cadata=read(properties).get("ssl.ca.pem"))
        with (
            socket.create_connection((host, int(port)), PATIENCE) as connection,
            context.wrap_socket(connection, server_hostname=host),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        advice = ADVICE.get(error.verify_code, CHECK)
        return f"its certificate is not trusted: {error.verify_message.rstrip('.')}; {advice}"
    except OSError:
        return None
