"""Perf records: what the kernel writes is understood, and nothing that could stand there makes it stumble."""

from __future__ import annotations

import random
import struct
from operator import itemgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.kernel.perf_event import kind_of
from pipeline.kernel.perf_record import (
    HEADER,
    NAMESPACES,
    Bpf,
    Cgroup,
    Comm,
    Content,
    Ksymbol,
    Mmap,
    Namespaces,
    Record,
    Task,
    TextPoke,
    content,
    decode,
)

FOREVER = 2**63
ALL = range(2**32)
names = st.binary(max_size=300).map(lambda name: name.replace(b"\0", b"?"))
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)


def text(name: bytes) -> bytes:
    """As the kernel pads it."""
    return name + bytes(8 - len(name) % 8)


def packed(type: int, body: bytes, pid: int = 7, tid: int = 8, time: int = 9, misc: int = 0) -> bytes:
    """One record, by the layout of perf_event_open(2)."""
    size = 8 + len(body) + 24
    return struct.pack("=IHH", type, misc, size) + body + struct.pack("=IIQII", pid, tid, time, 1, 0)


def said(type: int, body: bytes, misc: int = 0) -> Content | None:
    (record,), _ = decode(packed(type, body, misc=misc), FOREVER, ALL)
    return content(record)


@given(u32, u32, u64, u64, u64, st.integers(0, 4095), st.integers(0, 2**20 - 1), u64, names, u32)
def test_a_mapping(
    pid: int,
    tid: int,
    address: int,
    length: int,
    offset: int,
    major: int,
    minor: int,
    inode: int,
    name: bytes,
    prot: int,
) -> None:
    body = struct.pack("=IIQQQIIQQII", pid, tid, address, length, offset, major, minor, inode, 3, prot, 2)
    found = said(10, body + text(name))
    device = (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12
    assert found == Mmap(pid, tid, address, length, offset, device, inode, prot, 2, name)


@given(names, st.booleans())
def test_a_name(name: bytes, by_exec: bool) -> None:
    assert said(3, struct.pack("=II", 5, 6) + text(name), by_exec << 13) == Comm(5, 6, name, by_exec)


def test_threads_that_begin_and_end() -> None:
    body = struct.pack("=IIIIQ", 5, 4, 6, 3, 99)
    assert said(7, body) == Task(5, 4, 6, 3, False)
    assert said(4, body) == Task(5, 4, 6, 3, True)


@given(st.integers(0, 7))
def test_namespaces(count: int) -> None:
    links = b"".join(struct.pack("=QQ", 4, 100 + at) for at in range(count))
    found = said(16, struct.pack("=IIQ", 5, 6, count) + links)
    assert found == Namespaces(5, 6, {name: 100 + at for at, name in enumerate(NAMESPACES[:count])})


def test_what_happens_to_the_kernel() -> None:
    symbol = struct.pack("=QIHH", 2**63, 70, 1, 1) + text(b"bpf_prog_1")
    assert said(17, symbol) == Ksymbol(2**63, 70, 1, True, b"bpf_prog_1")
    assert said(18, struct.pack("=HHI8s", 1, 0, 42, b"\1\2\3\4\5\6\7\x08")) == Bpf(1, 42, bytes(range(1, 9)))
    assert said(19, struct.pack("=Q", 77) + text(b"/a/b")) == Cgroup(77, b"/a/b")
    poke = struct.pack("=QHH", 2**63, 2, 3) + b"abcde" + bytes(7)
    assert said(20, poke) == TextPoke(2**63, b"ab", b"cde")


def test_kinds() -> None:
    def kind(type: int, body: bytes, misc: int = 0) -> str | None:
        (record,), _ = decode(packed(type, body, misc=misc), FOREVER, ALL)
        found = content(record)
        return kind_of(record, found) if found else None

    assert kind(3, struct.pack("=II", 5, 5) + text(b"x")) == "comm"
    assert kind(3, struct.pack("=II", 5, 5) + text(b"x"), 1 << 13) is None, "by exec"
    assert kind(7, struct.pack("=IIIIQ", 5, 4, 5, 4, 0)) == "fork"
    assert kind(7, struct.pack("=IIIIQ", 5, 5, 6, 5, 0)) is None, "a thread"
    assert kind(4, struct.pack("=IIIIQ", 5, 4, 5, 4, 0)) == "exit"
    assert kind(4, struct.pack("=IIIIQ", 5, 4, 6, 4, 0)) is None, "not its leader"
    assert kind(18, struct.pack("=HHI8s", 1, 0, 1, b"")) == "bpf_load"
    assert kind(18, struct.pack("=HHI8s", 2, 0, 1, b"")) == "bpf_unload"
    assert kind(2, struct.pack("=QQ", 1, 2)) is None, "the kernel's own count is asked for instead"


@given(
    st.lists(st.tuples(st.integers(0, 16), st.binary(max_size=120), st.integers(0, 50))), st.integers(0, 60)
)
def test_a_buffer_is_taken_up_to_a_time(parts: list[tuple[int, bytes, int]], until: int) -> None:
    """What is left begins with the first record that is later, and nothing is taken twice."""
    whole = [packed(type, body, time=time) for type, body, time in parts]
    data = b"".join(whole)
    records, taken = decode(data, until, ALL)
    late = next((at for at, (_, _, time) in enumerate(parts) if time > until), len(parts))
    assert taken == sum(map(len, whole[:late]))
    assert [(r.type, r.body, r.pid, r.tid, r.time) for r in records] == [
        (type, body, 7, 8, time) for type, body, time in parts[:late]
    ]


@given(
    st.lists(st.tuples(st.integers(0, 16), st.integers(0, 50))),
    st.integers(0, 60),
    st.sets(st.integers(0, 16)),
)
def test_types_that_nobody_wants_are_passed_over(
    parts: list[tuple[int, int]], until: int, types: set[int]
) -> None:
    parts = sorted(parts, key=itemgetter(1))
    whole = [packed(type, bytes(24), time=time) for type, time in parts]
    records, taken = decode(b"".join(whole), until, types)
    left, _ = decode(b"".join(whole)[taken:], FOREVER, types)
    wanted = [part for part in parts if part[0] in types]
    assert [(r.type, r.time) for r in records] == [part for part in wanted if part[1] <= until]
    assert [(r.type, r.time) for r in (*records, *left)] == wanted


@given(st.binary(max_size=400), u64)
def test_no_bytes_make_it_stumble(data: bytes, until: int) -> None:
    records, taken = decode(data, until, ALL)
    assert 0 <= taken <= len(data)
    for record in records:
        content(record)


@given(st.integers(0, 25), st.integers(0, 2**16 - 1), st.binary(max_size=200))
def test_no_body_makes_it_stumble(type: int, misc: int, body: bytes) -> None:
    found = content(Record(type, misc, body, 1, 1, 1))
    assert found is None or isinstance(found, tuple)


def test_flipped_bits_make_it_stumble_neither() -> None:
    """Records as they are, and one thing wrong with them: lengths, counts, names without an end."""
    bodies = {
        10: struct.pack("=IIQQQIIQQII", 1, 1, 2, 3, 4, 5, 6, 7, 8, 5, 2) + text(b"/usr/bin/true"),
        16: struct.pack("=IIQ", 5, 6, 7) + bytes(7 * 16),
        20: struct.pack("=QHH", 1, 5, 5) + bytes(12),
        18: struct.pack("=HHI8s", 1, 0, 42, b""),
    }
    good = b"".join(packed(type, body) for type, body in bodies.items())
    chance = random.Random(1)
    for _ in range(20_000):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        records, taken = decode(bytes(data[: chance.randrange(len(data) + 1)]), FOREVER, ALL)
        assert taken <= len(data)
        for record in records:
            content(record)


@pytest.mark.parametrize("more", [0, 24, 48, 56])
@pytest.mark.parametrize("size", range(9))
def test_records_that_the_kernel_makes_too_long(more: int, size: int) -> None:
    """Of three types only; what stands behind is whatever the buffer held."""
    bodies = {
        17: struct.pack("=QIHH", 1, 2, 1, 0) + text(b"x" * size),
        18: struct.pack("=HHI8s", 1, 0, 42, b"12345678"),
        20: (struct.pack("=QHH", 1, size, size) + b"a" * size + b"b" * size).ljust(
            (12 + 2 * size + 7) // 8 * 8, b"\0"
        ),
    }
    data = b""
    for type, body in bodies.items():
        record = packed(type, body) + bytes([0xAA]) * more
        data += record[:6] + struct.pack("=H", len(record)) + record[8:]
    records, taken = decode(data, FOREVER, ALL)
    assert taken == len(data)
    assert [(r.type, r.pid, r.tid, r.time) for r in records] == [(type, 7, 8, 9) for type in bodies]
    symbol, program, poke = map(content, records)
    assert symbol == Ksymbol(1, 2, 1, False, b"x" * size)
    assert program == Bpf(1, 42, b"12345678")
    assert poke == TextPoke(1, b"a" * size, b"b" * size)


def test_a_length_that_cannot_be_ends_the_batch() -> None:
    """It would not move on, or run over the end."""
    for size in (0, HEADER.size, 31, 5000):
        broken = struct.pack("=IHH", 3, 0, size) + bytes(40)
        assert decode(packed(3, bytes(16)) + broken, FOREVER, ALL)[1] == 48 + len(broken)
