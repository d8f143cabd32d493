"""The parser of audit records, against a writer of our own, samples of real kernels, and noise."""

from __future__ import annotations

import ctypes
import ctypes.util
import socket
import struct

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline import audit_types
from pipeline.audit_text import parse
from pipeline.audit_types import EXECVE, type_name
from tests.absent import absent
from tests.audit_writer import PART, execve, joined, record, untrusted
from tests.live.witness import as_record

ENCODED = [b"name", b"comm", b"exe", b"cwd", b"path", b"acct", b"key", b"data", b"ocomm"]
PLAIN = [b"item", b"a0", b"a1", b"inode", b"mode", b"ses", b"old_pp", b"cap_fe", b"x.y", b"data-len", b"op"]
chosen = st.binary(max_size=60).filter(lambda value: b"\0" not in value and b"\x01" not in value)
words = st.text("abcdefgh0123456789ABCDEF:/+-?.", min_size=1).map(str.encode).filter(lambda w: w != b"(null)")


def only(data: bytes) -> dict[str, object]:
    """The fields of the one record."""
    (found,) = parse(data)
    fields: dict[str, object] = found["fields"]
    return fields


@given(
    st.dictionaries(st.sampled_from(ENCODED), chosen),
    st.dictionaries(st.sampled_from(PLAIN), words),
    st.integers(0, 99999),
    st.randoms(),
)
def test_what_was_written_is_read(
    encoded: dict[bytes, bytes], plain: dict[bytes, bytes], number: int, shuffle: st.DrawFn
) -> None:
    if number == EXECVE:
        number -= 1
    pairs = [(key, untrusted(value)) for key, value in encoded.items()] + list(plain.items())
    shuffle.shuffle(pairs)  # type: ignore[attr-defined]
    (found,) = parse(record(number, joined(pairs)))
    assert found == {
        "type": type_name(number),
        "fields": {
            **{key.decode(): as_record(value) for key, value in encoded.items()},
            **{key.decode(): value.decode() for key, value in plain.items()},
        },
    }


@given(
    st.lists(
        st.one_of(
            chosen, st.binary(min_size=PART + 1, max_size=4 * PART).map(lambda b: b.replace(b"\0", b""))
        )
    )
)
@example([b"x" * 1000, b"", b'"', b"\xc3\xa9" * PART, b"\xff"])
def test_arguments_of_an_execve_are_one_list(arguments: list[bytes]) -> None:
    data = b"".join(execve(arguments))
    assert parse(data) == [
        {
            "type": "EXECVE",
            "fields": {"argc": str(len(arguments)), "argv": [as_record(a) for a in arguments]},
        }
    ]


def test_an_argument_that_did_not_come_is_nil() -> None:
    records = [record(1309, b'argc=3 a0="x"'), record(1309, b'a2="z"')]
    assert only(b"".join(records))["argv"] == ["x", None, "z"]


def test_a_number_beyond_reason_is_a_key_like_others() -> None:
    fields = only(record(1309, b'argc=1 a0="x" a999999999="y" a99999999999="z"'))
    assert fields == {"argc": "1", "argv": ["x"], "a999999999": '"y"'.strip('"'), "a99999999999": "z"}


@given(st.binary(max_size=400))
@example(b"type=1300 msg=audit(1.0:1): msg='a=\"b\" c=d' \x80=\xff a=\x00'")
@example(b"type=99999 msg=audit(): ")
@example(b"type=1309 msg=audit(1.0:1): a0=\0type=1309 msg=audit(1.0:1): a0=4 a0[1]=44 a1_len=9")
@example(b"type=1306 msg=audit(1.0:1): saddr=\0type=1306 msg=audit(1.0:1): saddr=0A00")
def test_no_bytes_raise(noise: bytes) -> None:
    msgpack.packb(parse(noise))
    msgpack.packb(parse(record(1300, noise)))
    msgpack.packb(parse(record(1309, noise)))
    msgpack.packb(parse(record(1100, b"pid=1 msg='" + noise + b"'")))


@given(
    st.lists(
        st.sampled_from(
            [b"a0", b"a1[0]", b"saddr", b"=", b"'", b'"', b" ", b"msg", b"(null)", b"0A", b"A", b"\xff"]
        )
    ).map(b"".join)
)
def test_no_words_raise(noise: bytes) -> None:
    for number in (1300, 1306, 1309, 1327, 1100):
        msgpack.packb(parse(record(number, noise)))


@given(st.lists(words, min_size=2, max_size=5))
def test_no_value_of_a_repeated_key_is_lost(values: list[bytes]) -> None:
    fields = only(record(1305, joined((b"op", value) for value in values)))
    assert fields == {"op": [value.decode() for value in values]}


def test_only_fields_that_programs_choose_are_decoded() -> None:
    assert only(record(1300, b"a0=41 a1=DEADBEEF exit=42 pid=1234 comm=4142 key=(null)")) == {
        "a0": "41",
        "a1": "DEADBEEF",
        "exit": "42",
        "pid": "1234",
        "comm": "AB",
        "key": None,
    }


def test_a_quoted_value_is_literal() -> None:
    assert only(record(1302, b'name="4142" nametype=(null) x="(null)"')) == {
        "name": "4142",
        "nametype": None,
        "x": "(null)",
    }


def test_titles_and_keys_are_lists() -> None:
    assert only(record(1327, b"proctitle=" + untrusted(b"/bin/cat\0a b\0\0\xff"))) == {
        "proctitle": ["/bin/cat", "a b", "", b"\xff"]
    }
    assert only(record(1327, b'proctitle="bash"')) == {"proctitle": ["bash"]}
    assert only(record(1327, b"proctitle=(null)")) == {"proctitle": None}
    assert only(record(1300, b"key=" + untrusted(b"one\x01two"))) == {"key": ["one", "two"]}


def test_what_user_space_says_stays_apart() -> None:
    body = (
        b"pid=9 uid=0 auid=1000 ses=3 msg='op=PAM:session_open pid=1 cmd=6C73202F grantors=pam_unix "
        b'acct="root" exe="/usr/bin/su" '
        b"hostname=? addr=? terminal=pts/0 it's res=success'"
    )
    assert only(record(1105, body)) == {
        "pid": "9",
        "uid": "0",
        "auid": "1000",
        "ses": "3",
        "msg": {
            "op": "PAM:session_open",
            "pid": "1",
            "cmd": "ls /",
            "grantors": "pam_unix",
            "acct": "root",
            "exe": "/usr/bin/su",
            "hostname": "?",
            "addr": "?",
            "terminal": "pts/0",
            "text": "it's",
            "res": "success",
        },
    }


def test_words_without_a_key_are_kept() -> None:
    body = b'avc:  denied  { read write } for  pid=1 comm="x" dev="sda1" tcontext=system_u:object_r:etc_t:s0'
    assert only(record(1400, body)) == {
        "text": "avc: denied { read write } for",
        "pid": "1",
        "comm": "x",
        "dev": "sda1",
        "tcontext": "system_u:object_r:etc_t:s0",
    }


@pytest.mark.parametrize(
    ("packed", "shown"),
    [
        (
            struct.pack("=H", socket.AF_INET) + struct.pack(">H", 443) + bytes([127, 0, 0, 1]) + bytes(8),
            {"family": "inet", "address": "127.0.0.1", "port": 443},
        ),
        (
            struct.pack("=H", socket.AF_INET6) + struct.pack(">HI", 80, 0) + bytes(15) + b"\x01" + bytes(4),
            {"family": "inet6", "address": "::1", "port": 80},
        ),
        (struct.pack("=H", socket.AF_UNIX) + b"/run/x\0junk", {"family": "unix", "path": "/run/x"}),
        (struct.pack("=H", socket.AF_UNIX) + b"\0ab\0c", {"family": "unix", "path": "\0ab\0c"}),
        (struct.pack("=H", socket.AF_UNIX), {"family": "unix", "path": ""}),
        (
            struct.pack("=HHII", socket.AF_NETLINK, 0, 7, 1),
            {"family": "16", "data": struct.pack("=HII", 0, 7, 1)},
        ),
        (struct.pack("=HH", socket.AF_INET, 1), {"family": "2", "data": b"\1\0"}),
        (b"", {"saddr": ""}),
    ],
)
def test_addresses(packed: bytes, shown: dict[str, object]) -> None:
    fields = only(record(1306, b"saddr=" + packed.hex().upper().encode()))
    assert fields == (shown if "saddr" in shown else {"saddr": shown})


def test_what_a_pattern_matches_is_masked() -> None:
    data = b"".join(execve([b"x", b"hunter2"])) + record(1327, b"proctitle=" + untrusted(b"x\0hunter2"))
    data += record(1123, b"msg='cmd=" + untrusted(b"x hunter2") + b"'")
    (one, two, three) = parse(data, lambda value: value.replace(b"hunter2", b"***"))
    assert one["fields"]["argv"] == two["fields"]["proctitle"] == ["x", "***"]
    assert three["fields"]["msg"]["cmd"] == "x ***"


def test_names_are_those_of_libaudit() -> None:
    """libaudit is not ours. It may be older than our table, and then knows fewer."""
    name = ctypes.util.find_library("audit")
    if not name:
        absent("no libaudit here")
    told = ctypes.CDLL(name).audit_msg_type_to_name
    told.restype = ctypes.c_char_p
    theirs = {number: found.decode() for number in range(1000, 3000) if (found := told(number))}
    assert len(theirs) > 150
    assert {number: type_name(number) for number in theirs} == theirs
    assert (type_name(audit_types.SYSCALL), type_name(audit_types.EOE), type_name(1)) == (
        "SYSCALL",
        "EOE",
        "UNKNOWN[1]",
    )
