"""Redaction: what may be seen of an environment and of a command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.redact import RedactError, Redaction

SECRET = b"s3cret"


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"", b""),
        (b"A=s3cret\0", b"A=***\0"),
        (b"A=\0", b"A=***\0"),
        (b"A=x=s3cret\0", b"A=***\0"),
        (b"PATH=/bin:/usr/bin\0A=s3cret\0", b"PATH=/bin:/usr/bin\0A=***\0"),
        (b"LC_ALL=C\0LC=s3cret\0", b"LC_ALL=C\0LC=***\0"),
        (b"path=s3cret\0XPATH=s3cret\0PATHX=s3cret\0", b"path=***\0XPATH=***\0PATHX=***\0"),
        (b"s3cret\0", b"***\0"),
        (b"PATH\0", b"***\0"),
        (b"=s3cret\0", b"=***\0"),
        (b"\0\0A=s3cret\0", b"\0\0A=***\0"),
        (b"A=s3cret\nPATH=s3cret\0", b"A=***\0"),
        (b"\xff=s3cret\0", b"\xff=***\0"),
        (b"PATH=/bin\0A=s3c", b"PATH=/bin\0A=***"),
        (b"PATH=/bin\0s3c", b"PATH=/bin\0***"),
        (b"PATH=/b", b"PATH=/b"),
    ],
)
def test_environments(data: bytes, shown: bytes) -> None:
    assert Redaction(["PATH", "LC_*"]).variables(data) == shown


def test_nothing_is_shown_unless_it_is_allowed() -> None:
    assert Redaction().variables(b"PATH=/bin\0A=b\0") == b"PATH=***\0A=***\0"


def test_an_allowed_name_cannot_be_ended_by_a_newline() -> None:
    assert Redaction(["PATH"]).variables(b"PATH\n=s3cret\0") == b"PATH\n=***\0"


@given(st.lists(st.binary(max_size=20)))
def test_masking_twice_is_masking_once(items: list[bytes]) -> None:
    redaction = Redaction(["PATH"])
    once = redaction.variables(b"\0".join(items))
    assert redaction.variables(once) == once


@given(st.binary(max_size=40))
def test_without_patterns_a_command_line_is_as_it_was(data: bytes) -> None:
    assert Redaction().arguments(data) is data


@pytest.mark.parametrize(
    ("pattern", "data", "shown"),
    [
        ("s3cret", b"a\0--p=s3cret\0", b"a\0--p=***\0"),
        ("(?<=--password=).+", b"--password=s3cret\0b\0", b"--password=***\0b\0"),
        ("(?<=--password=).+", b"--password=\xff\xfe\0b\0", b"--password=***\0b\0"),
        (".*", b"s3cret\0\0b", b"***\0\0***"),
        ("nothing", b"\xff\0a", b"\xff\0a"),
        ("(?i)TOKEN[0-9]+", "tökentoken12ö\0".encode(), "töken***ö\0".encode()),
    ],
)
def test_command_lines(pattern: str, data: bytes, shown: bytes) -> None:
    assert Redaction(argv=[pattern]).arguments(data) == shown


def test_a_bad_pattern_is_named() -> None:
    with pytest.raises(RedactError, match=r"redact\.argv: '\('"):
        Redaction(argv=["("])
