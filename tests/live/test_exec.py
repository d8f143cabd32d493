"""exec: arguments and environment against what the test executed, byte for byte."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Callable

import pytest

from tests.live.run import Live
from tests.live.witness import Arguments, as_record, execute

ONE_ARGUMENT = 131_071

pytestmark = pytest.mark.kernel


def stack(size: int) -> Callable[[], None]:
    """A quarter of the stack's limit is what Linux takes for arguments and environment."""
    return lambda: resource.setrlimit(resource.RLIMIT_STACK, (size, resource.RLIM_INFINITY))


ARGV = {
    "plain": [b"acts", b"one", b"two words"],
    "100 KiB in one": [b"acts", bytes(33 + i % 90 for i in range(100 << 10))],
    "100 KiB in many": [b"acts", *(b"%05d:" % i * 10 for i in range(1700))],
    "the longest argument": [b"acts", b"a" * (ONE_ARGUMENT - 1) + b"z"],
    "2,000 arguments": [b"acts", *(b"%d" % i for i in range(1999))],
    "empty arguments": [b"acts", b"", b"", b"x", b""],
    "all empty": [b"", b"", b""],
    "argc 0": [],
    "newlines": [b"acts", b"a\nb", b"\n", b"\t\r\x01\x7f"],
    "UTF-8": [b"acts", "žluťoučký 🐎".encode()],
    "invalid UTF-8": [b"acts", b"\xff\xfe\x80", b"caf\xe9", b"\xc3", b"ok"],
    "near 2 MiB": [b"acts", *(b"%c" % (65 + i) * ONE_ARGUMENT for i in range(15)), b"end" * 30_000],
}
IN_ALL = {"100 KiB in one", "argc 0", "invalid UTF-8", "near 2 MiB"}
"""Of these, those that the virtual machines run too."""
ENVIRONMENT = [b"PATH=/usr/bin:/bin", b"LANG=C", b"MARK=hunter2"]
REDACTED = ["PATH=/usr/bin:/bin", "LANG=C", "MARK=***"]


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(argv, id=name, marks=pytest.mark.vm if name in IN_ALL else ())
        for name, argv in ARGV.items()
    ],
)
def test_argv_is_whole(live: Live, acts: bytes, argv: list[bytes]) -> None:
    record = live.exec_of(execute(acts, argv, ENVIRONMENT, stack(8 << 20)))
    wanted = [as_record(argument) for argument in argv or [b""]]
    assert record["argc"] == len(wanted)
    assert record["argv"] == wanted
    assert record["environment"] == REDACTED
    assert record["envc"] == 3
    assert record["path"] == acts.decode()
    assert "unsettled" not in record


@pytest.mark.parametrize("length", range(150, 420, 9))
def test_where_argv_ends_within_a_chunk_does_not_matter(live: Live, acts: bytes, length: int) -> None:
    argv = [b"acts", bytes(65 + i % 26 for i in range(length))]
    record = live.exec_of(execute(acts, argv, [b"LANG=" + b"x" * length]))
    assert record["argv"] == [a.decode() for a in argv]
    assert record["environment"] == ["LANG=" + "x" * length]


def test_argv_beyond_its_cap_is_capped_and_what_follows_is_right(live: Live, acts: bytes) -> None:
    argv = [b"acts", *(b"%c" % (65 + i) * ONE_ARGUMENT for i in range(24))]
    record = live.exec_of(execute(acts, argv, ENVIRONMENT, stack(64 << 20)))
    of = sum(len(a) + 1 for a in argv)
    assert record["unsettled"] == {"argv": {"state": "capped", "have": 2 << 20, "of": of, "chunks": []}}
    assert record["argc"] == len(argv)
    kept = b"\0".join(argv)[: 2 << 20].split(b"\0")
    assert record["argv"] == [k.decode() for k in kept]
    assert record["environment"] == REDACTED


def test_arguments_that_point_to_the_same_string(live: Live, acts: bytes) -> None:
    one = ctypes.create_string_buffer(b"same")
    array = (ctypes.c_void_p * 4)(ctypes.addressof(one), ctypes.addressof(one), ctypes.addressof(one), None)
    record = live.exec_of(execute(acts, ctypes.addressof(array), Arguments([b"LANG=C"]).address))
    assert record["argv"] == ["same"] * 3


@pytest.mark.vm
def test_environment_is_redacted_but_for_allowed_names(live: Live, acts: bytes) -> None:
    given = [
        b"SECRET=hunter2-SECRET",
        b"PATH=/bin",
        b"EMPTY=",
        b"LC_ALL=C",
        b"NOEQUALS-hunter2",
        b"A=b=c",
        b"=odd",
    ]
    record = live.exec_of(execute(acts, [b"acts"], given))
    assert record["environment"] == [
        "SECRET=***",
        "PATH=/bin",
        "EMPTY=***",
        "LC_ALL=C",
        "***",
        "A=***",
        "=***",
    ]


def test_no_secret_is_stored(live: Live, acts: bytes) -> None:
    live.exec_of(execute(acts, [b"acts"], [b"TOKEN=hunter2-in-store"] * 3))
    files = [path for path in live.state.iterdir() if path.is_file()]
    assert len(files) > 2
    assert not any(b"hunter2" in path.read_bytes() for path in files)


def test_a_large_environment(live: Live, acts: bytes) -> None:
    names = [b"LC_%04d" % i for i in range(1000)]
    record = live.exec_of(execute(acts, [b"acts"], [name + b"=" + name * 8 for name in names]))
    assert record["environment"] == [(name + b"=" + name * 8).decode() for name in names]
    assert "unsettled" not in record


def test_an_environment_beyond_its_cap(live: Live, acts: bytes) -> None:
    given = [b"LC_%d=" % i + b"v" * 100_000 for i in range(4)]
    record = live.exec_of(execute(acts, [b"acts", b"x"], given))
    of = sum(len(e) + 1 for e in given)
    assert record["unsettled"] == {
        "environment": {"state": "capped", "have": 256 << 10, "of": of, "chunks": []}
    }
    assert record["argv"] == ["acts", "x"]
    assert record["environment"][:2] == [e.decode() for e in given[:2]]


def test_no_environment(live: Live, acts: bytes) -> None:
    record = live.exec_of(execute(acts, [b"acts"], []))
    assert record["environment"] == []
    assert record["envc"] == 0


def test_a_32_bit_caller(live: Live, acts: bytes) -> None:
    record = live.execs_of(execute(acts, [b"acts", b"exec-32", acts, b"zero", b"", b"two"]))[-1]
    assert record["argv"] == ["zero", "", "two"]
    assert record["environment"] == ["A=***"]
