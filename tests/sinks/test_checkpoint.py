"""The checkpoint in pinned memory: what a killed process leaves can always be read."""

from __future__ import annotations

import zlib

import pytest

from pipeline.errors import UserError
from pipeline.ledger import Books
from pipeline.sinks.checkpoint import SLOT, WORD, Area, BookKeeper, restore
from tests.encoded import Rings, stream


def keeper(area: Area, rings: Rings) -> BookKeeper:
    return BookKeeper(restore(area), area, move=rings.move, pressure=rings.pressure)


def retire(keeper: BookKeeper, batches: int, first: int = 1) -> None:
    for batch in stream(batches, 10, first=first):
        keeper.checkpoint(batch.passage, batch.counts)
        keeper.release()


def test_books_and_positions_move_together_on_release() -> None:
    rings, area = Rings(), bytearray(8192)
    subject = keeper(area, rings)
    first, second = stream(2, 10)
    first.passage.book("filtered", "filter", "expression", first.counts)
    subject.open(first.passage)
    subject.open(second.passage)
    second.passage.book("lost", "encode", "test", second.counts)
    assert {key: int(n.sum()) for key, n in subject.tally().items()} == {
        ("filtered", "filter", "expression"): 10,
        ("lost", "encode", "test"): 10,
    }
    plain = subject.checkpoint(first.passage, first.counts)
    assert Books.from_plain(plain).acknowledged.sum() == 10
    assert subject.books.acknowledged.sum() == 0
    assert rings.positions == {}
    assert restore(area).number == 0
    subject.release()
    assert rings.positions == {0: 10 * 256}
    for books in (subject.books, restore(area)):
        assert books.number == 1
        assert books.acknowledged.tolist() == first.counts.tolist()
        assert books.rings[0].position == 10 * 256
        assert {key: int(n.sum()) for key, n in books.tally.items()} == {
            ("filtered", "filter", "expression"): 10
        }
    assert len(subject.tally()) == 2


def test_a_torn_slot_leaves_the_one_before() -> None:
    area = bytearray(8192)
    retire(keeper(area, Rings()), 3)
    assert restore(area).number == 3
    half = (len(area) - WORD.size) // 2
    newest = WORD.unpack(area[: WORD.size])[0]
    area[WORD.size + newest * half + SLOT.size + 5] ^= 1
    assert restore(area).number == 2


def test_a_write_cut_at_any_byte_leaves_a_whole_checkpoint() -> None:
    """A SIGKILL stops the copy anywhere: what was written before stands."""

    class Dying(bytearray):
        left = 1 << 30

        def __setitem__(self, where: slice, data: bytes) -> None:  # type: ignore[override]
            part = data[: self.left]
            self.left -= len(part)
            super().__setitem__(slice(where.start or 0, (where.start or 0) + len(part)), part)

    area = Dying(2048)
    retire(keeper(area, Rings()), 2)
    numbers = set()
    for cut in range(600):
        copy = Dying(area)
        dying = keeper(copy, Rings())
        copy.left = cut
        retire(dying, 1, first=3)
        numbers.add(restore(copy).number)
    assert numbers == {2, 3}


def test_the_newest_of_memory_and_stores_counts() -> None:
    area = bytearray(8192)
    retire(keeper(area, Rings()), 3)
    newer = Books(number=5).to_plain()
    older = Books(number=1).to_plain()
    assert restore(area, [older, None]).number == 3
    assert restore(area, [newer, older]).number == 5
    assert restore(bytearray(8192)).number == 0


def test_a_new_keeper_goes_on_where_the_last_one_stopped() -> None:
    area, rings = bytearray(8192), Rings()
    retire(keeper(area, rings), 3)
    retire(keeper(area, rings), 4, first=4)
    books = restore(area)
    assert books.number == 7
    assert books.acknowledged.sum() == 70
    assert rings.positions == {0: 70 * 256}


def test_a_slot_whose_length_lies_is_no_checkpoint() -> None:
    area = bytearray(256)
    area[WORD.size : WORD.size + SLOT.size] = SLOT.pack(9, 1 << 20, zlib.crc32(b""))
    assert restore(area).number == 0


def test_books_that_outgrow_the_area_say_so() -> None:
    with pytest.raises(UserError, match="outgrew"):
        retire(keeper(bytearray(128), Rings()), 1)
