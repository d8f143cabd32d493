"""Records of one serial become one event, whatever order they come in; what is missing is said."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from pipeline.audit_types import EOE, SYSCALL
from pipeline.sources.serials import EXPIRY, TORN, Joined, Record, Serials
from tests.audit_writer import stamp

PATH, CONFIG, USER = 1302, 1305, 1105
Bare = tuple[int, bytes]


def records(serial: int, count: int) -> list[Bare]:
    """A system call's, with its end."""
    body = [(SYSCALL if n == 0 else PATH, stamp(serial) + b"item=%d" % n) for n in range(count)]
    return [*body, (EOE, stamp(serial))]


def bare(event: Joined) -> list[Bare]:
    return [record[:2] for record in event.records]


def fed(serials: Serials, stream: Iterable[Bare], now: int = 1) -> list[Joined]:
    return [
        event
        for at, (number, text) in enumerate(stream)
        for event in serials.feed(Record(number, text, now + at))
    ]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=20), st.data())
def test_interleaved_events_come_out_whole(sizes: list[int], data: st.DataObject) -> None:
    waiting = {serial: records(serial, size) for serial, size in enumerate(sizes, 7)}
    left = {serial: list(each) for serial, each in waiting.items()}
    stream: list[Bare] = []
    first: dict[int, int] = {}
    while left:
        serial = data.draw(st.sampled_from(sorted(left)))
        first.setdefault(serial, len(stream) + 1)
        stream.append(left[serial].pop(0))
        if not left[serial]:
            del left[serial]
    serials = Serials()
    events = fed(serials, stream)
    assert {e.serial: bare(e) for e in events} == {s: each[:-1] for s, each in waiting.items()}
    assert all(e.whole and e.records[0].time == first[e.serial] for e in events)
    assert {e.audit_time for e in events} == {1_795_409_857_274_000_000}
    assert serials.oldest is None
    assert serials.missing() == 0
    assert serials.settled
    assert not list(serials.finish())
    assert serials.missing() == serials.missing() == 0


def test_text_is_what_the_kernel_wrote() -> None:
    (event,) = fed(Serials(), records(3, 2))
    assert event.text == b"".join(b"type=%d msg=%s\0" % r for r in records(3, 2)[:-1])


def test_messages_of_user_space_are_alone() -> None:
    serials = Serials()
    for number in (1100, 1199, 2100, 2999):
        (event,) = serials.feed(Record(number, stamp(number) + b"pid=1", 5))
        assert event.whole
        assert bare(event) == [(number, stamp(number) + b"pid=1")]
    assert serials.oldest is None


def test_a_record_outside_of_a_system_call_waits_and_is_whole() -> None:
    serials = Serials()
    assert not list(serials.feed(Record(CONFIG, stamp(1), 10)))
    assert serials.oldest == (CONFIG, stamp(1), 10, 0, {})
    assert not serials.settled
    assert not list(serials.expire(9 + EXPIRY))
    (event,) = serials.expire(10 + EXPIRY)
    assert event.whole


def test_an_event_without_its_end_says_so() -> None:
    serials = Serials()
    for number, text in records(1, 2)[:-1]:
        assert not list(serials.feed(Record(number, text, 10)))
    assert not list(serials.feed(Record(SYSCALL, stamp(2), 11)))
    one, two = serials.expire(11 + EXPIRY)
    assert (len(one.records), one.whole) == (2, False)
    assert (len(two.records), two.whole) == (1, False)
    assert not list(serials.feed(Record(EOE, stamp(1), 12 + EXPIRY))), "its end alone is no event"


def test_the_oldest_goes_when_too_many_are_open() -> None:
    serials = Serials(limit=3)
    events = fed(serials, [(SYSCALL, stamp(serial)) for serial in range(1, 6)])
    assert [(e.serial, e.whole) for e in events] == [(1, False), (2, False)]
    assert [e.serial for e in serials.finish()] == [3, 4, 5]


def test_what_an_overrun_may_have_torn_is_not_whole() -> None:
    serials = Serials()
    events = fed(serials, records(1, 2))
    assert not list(serials.feed(Record(*records(2, 2)[0], 10)))
    serials.overran(11)
    assert not list(serials.feed(Record(CONFIG, stamp(5), 12)))
    events += fed(serials, records(2, 2)[1:], 12)
    events += fed(serials, records(3, 1), 10 + TORN)
    events += fed(serials, records(4, 1), 11 + TORN)
    events += serials.finish()
    assert [(e.serial, e.whole) for e in events] == [(1, True), (2, False), (3, False), (4, True), (5, False)]


def test_serials_that_never_came_are_counted_once() -> None:
    serials = Serials()
    fed(serials, [r for serial in (10, 11, 15, 13) for r in records(serial, 1)])
    assert serials.missing() == 0, "they may still come"
    assert serials.settled
    assert serials.missing() == 2
    assert serials.missing() == 0
    fed(serials, [r for serial in (16, 20) for r in records(serial, 1)])
    assert serials.missing() == 0
    fed(serials, [r for serial in (18, 9) for r in records(serial, 1)])
    assert serials.missing() == 2


def test_a_piece_that_comes_later_is_an_event_but_no_new_number() -> None:
    serials = Serials()
    assert not list(serials.feed(Record(1400, stamp(5), 0)))
    (piece,) = serials.expire(EXPIRY)
    (rest,) = fed(serials, records(5, 1))
    assert piece.serial == rest.serial == 5
    fed(serials, records(7, 1))
    assert (serials.missing(), serials.missing()) == (0, 1)


def test_serials_begin_again() -> None:
    serials = Serials()
    fed(serials, [r for serial in ((1 << 32) - 1, 0, 2) for r in records(serial, 1)])
    assert (serials.missing(), serials.missing()) == (0, 1)


@given(st.lists(st.tuples(st.integers(0, 70000), st.binary(max_size=40))))
def test_no_record_raises_or_vanishes(noise: list[Bare]) -> None:
    serials = Serials(limit=4)
    events = fed(serials, noise) + list(serials.finish())
    assert sorted(r for e in events for r in bare(e)) == sorted(r for r in noise if r[0] != EOE)
