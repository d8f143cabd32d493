"""Bytes as a record shows them: none is lost, whatever they are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.utf8 import strings, text


def as_bytes(shown: str | bytes) -> bytes:
    return shown.encode() if isinstance(shown, str) else shown


@given(st.binary() | st.text().map(str.encode))
def test_text_is_what_is_valid_and_all_else_stays_bytes(data: bytes) -> None:
    shown = text(data)
    assert as_bytes(shown) == data
    assert isinstance(shown, bytes) == (data.decode(errors="ignore").encode() != data)


@given(st.lists(st.binary().map(lambda data: data.replace(b"\0", b"")) | st.just(b"x\xff")))
def test_strings_come_apart_at_their_ends(parts: list[bytes]) -> None:
    ended = b"".join(part + b"\0" for part in parts)
    assert [*map(as_bytes, strings(ended))] == parts
    assert strings(ended) == [text(part) for part in parts]


@given(st.binary(min_size=1))
def test_a_last_string_without_its_end_was_cut_and_stays(data: bytes) -> None:
    assert b"\0".join(map(as_bytes, strings(data))) == data.removesuffix(b"\0")
