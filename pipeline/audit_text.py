"""The text of audit records, parsed: what a promise of type `audit` is in an event's record.

    type=1302 msg=audit(1795409857.274:81): item=0 name="/bin/cat" mode=0100755
    → {"type": "PATH", "fields": {"item": "0", "name": "/bin/cat", "mode": "0100755"}}

Values stay text as the kernel wrote them, numbers too. What programs can choose, the kernel quotes; what it
could not quote (spaces, quotes, control and non-ASCII characters) it writes as hexadecimal digits: these are
decoded, but only in fields that are written so. No input raises. Imports only leaves of ours.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from pipeline.audit_types import EXECVE, type_name
from pipeline.utf8 import text

__all__ = ["Fields", "Mask", "parse", "plain"]

Fields = dict[str, Any]
"""Key → text (bytes where it is no UTF-8), nil for `(null)`, a list of such, or a map. A key that came more
than once has a list of its values; words without a key are `text`."""
Mask = Callable[[bytes], bytes]

_RECORD: Final = re.compile(rb"type=(\d{1,5}) msg=audit\([^)]*\): ?")
_FIELD: Final = re.compile(rb"""\s*(?:([\w.\[\]-]+)=("[^"]*"?|'.*'|'.*|\S*)|(\S+))""", re.DOTALL)
_HEX: Final = re.compile(rb"(?:[0-9A-F]{2})+")
_ARGUMENT: Final = re.compile(rb"a(\d{1,9})(_len|\[\d+\])?")
_ENCODED: Final = frozenset(
    b"""acct cgroup cmd comm cwd data dev device dir exe file invalid_context key name new-disk new-fs new-net
    ocomm old-disk old-fs old-net path proctitle profile vm watch""".split()
)
"""Fields that the kernel writes by audit_log_untrustedstring, and user space by audit_encode_nv_string."""
_KEYS: Final = "\x01"
"""Between the keys of the rules that an event matched."""


def parse(data: bytes, mask: Mask = bytes) -> list[dict[str, Any]]:
    """Records, each `type=NUMBER msg=audit(TIME:SERIAL): …` with its NUL: [{"type": name, "fields": Fields}].

    The arguments of an execve, however many records they take, are one list, `argv`, in the first of these;
    one that did not come is nil. `mask` gets each argument, title and command, and returns what may be shown
    of it.
    """
    found: list[dict[str, Any]] = []
    arguments: dict[int, list[bytes]] = {}
    execve: Fields | None = None
    for line in data.split(b"\0"):
        if not line:
            continue
        record = _RECORD.match(line)
        number = int(record[1]) if record else 0
        pairs = list(_scan(line[record.end() :] if record else line))
        if number == EXECVE:
            pairs = [pair for pair in pairs if not _take(arguments, *pair, len(data))]
            if execve is not None and not pairs:
                continue
        fields = _fields(pairs, mask)
        found.append({"type": type_name(number), "fields": fields})
        if number == EXECVE and execve is None:
            execve = fields
    if execve is not None:
        execve["argv"] = _joined(arguments, mask)
    return found


def _scan(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    words = []
    for key, value, word in _FIELD.findall(body):
        if word:
            words.append(word)
        else:
            yield key, value
    if words:
        yield b"text", b'"' + b" ".join(words)


def _take(arguments: dict[int, list[bytes]], key: bytes, value: bytes, limit: int) -> bool:
    """Whether this is a part of an argument; it is taken then. (`_len` only says how many digits follow.)"""
    found = _ARGUMENT.fullmatch(key)
    if not found or int(found[1]) >= limit:
        return False
    if found[2] != b"_len":
        arguments.setdefault(int(found[1]), []).append(plain(value, encoded=True) or b"")
    return True


def _joined(arguments: dict[int, list[bytes]], mask: Mask) -> list[str | bytes | None]:
    whole = {number: text(mask(b"".join(parts))) for number, parts in arguments.items()}
    return [whole.get(number) for number in range(max(whole, default=-1) + 1)]


def _fields(pairs: Iterable[tuple[bytes, bytes]], mask: Mask, within: bytes = b"") -> Fields:
    values: dict[str, list[Any]] = {}
    for key, value in pairs:
        values.setdefault(key.decode(), []).append(_shown(key, value, mask, within))
    return {key: all_of[0] if len(all_of) == 1 else all_of for key, all_of in values.items()}


def _shown(key: bytes, value: bytes, mask: Mask, within: bytes) -> Any:
    if key == b"msg" and not within and value[:1] == b"'":
        # What a program in user space said of itself stays apart from what the kernel says of that program.
        return _fields(_scan(plain(value, encoded=False) or b""), mask, within=key)
    if key == b"saddr" and _HEX.fullmatch(value):
        return _address(bytes.fromhex(value.decode()))
    decoded = plain(value, encoded=key in _ENCODED)
    if decoded is None:
        return None
    if key == b"proctitle":
        return [text(mask(part)) for part in decoded.split(b"\0")]
    shown = text(mask(decoded) if key == b"cmd" else decoded)
    if key == b"key" and isinstance(shown, str) and _KEYS in shown:
        return shown.split(_KEYS)
    return shown


def plain(value: bytes, *, encoded: bool) -> bytes | None:
    """A value without its quotes, or decoded; None: the kernel had none."""
    quote = value[:1]
    if quote in (b'"', b"'"):
        return value[1:-1] if len(value) > 1 and value.endswith(quote) else value[1:]
    if value == b"(null)":
        return None
    if encoded and _HEX.fullmatch(value):
        return bytes.fromhex(value.decode())
    return value


def _address(data: bytes) -> Fields:
    """A sockaddr as a map: family, and address and port, or path (an abstract one begins with a NUL)."""
    number = int.from_bytes(data[:2], "little")
    port = int.from_bytes(data[2:4], "big")
    if number == socket.AF_INET and len(data) >= 8:
        return {"family": "inet", "address": socket.inet_ntop(number, data[4:8]), "port": port}
    if number == socket.AF_INET6 and len(data) >= 24:
        return {"family": "inet6", "address": socket.inet_ntop(number, data[8:24]), "port": port}
    if number == socket.AF_UNIX:
        path = data[2:]
        return {"family": "unix", "path": text(path if path[:1] == b"\0" else path.split(b"\0")[0])}
    return {"family": str(number), "data": data[2:]}
