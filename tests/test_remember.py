"""The bounded memory, against a plain dict."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.remember import Remembered


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30))), st.integers(1, 20))
def test_it_never_lies_and_never_grows_beyond_its_bound(steps: list[tuple[bool, int]], limit: int) -> None:
    memory: Remembered[int, str] = Remembered(limit)
    for writes, key in steps:
        if writes:
            memory[key] = str(key)
            assert memory.get(key) == str(key)
        assert memory.get(key) in (None, str(key))
        assert memory.find([key]) in ([None], [str(key)])
        assert len(memory) <= max(2, limit)


def test_what_is_used_stays_and_what_is_not_goes() -> None:
    memory: Remembered[int, int] = Remembered(10)
    memory[0] = memory[1] = 1
    for key in range(2, 40):
        memory[key] = 1
        memory.get(0)
    assert memory.get(0) == 1
    assert memory.get(1) is None
    assert memory.turns > 0


def test_weights_count_and_what_is_too_heavy_is_not_kept() -> None:
    memory: Remembered[bytes, bytes] = Remembered(100, lambda key, value: len(value))
    memory[b"heavy"] = bytes(51)
    assert memory.get(b"heavy") is None
    for key in (b"a", b"b", b"c", b"d", b"e"):
        memory[key] = bytes(30)
    assert len(memory) <= 3


def test_cleared_it_knows_nothing() -> None:
    memory: Remembered[int, int] = Remembered(10)
    memory[1] = 1
    turns = memory.turns
    memory.clear()
    assert memory.get(1) is None
    assert memory.turns == turns + 1
