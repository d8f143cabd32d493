"""The side-band of this kernel: it says what this process does, wakes a sleeper, and counts what it lost."""

from __future__ import annotations

import mmap
import os
import re
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.kernel import perf_event
from pipeline.kernel.perf_event import Sideband, Witness
from pipeline.kernel.perf_record import Mmap, Record, TextPoke, content
from pipeline.sources.perf_events import Events
from tests.kernel_ring import boottime
from tests.live.host import need_kernel

READ_EXECUTE = mmap.PROT_READ | mmap.PROT_EXEC
FOREVER = 2**63 - 1
SWITCH = Path("/proc/sys/kernel/sched_schedstats")
"""Turns static branches: jumps in the kernel's code that become no-ops, and the other way round."""
KCORE = Path("/proc/kcore")
PROGRAM_HEADERS, PROGRAM_HEADER, LOAD = struct.Struct("<32xQ14xHH"), struct.Struct("<IIQQQQQQ"), 1
pytestmark = pytest.mark.kernel


@pytest.fixture
def make() -> Iterator[Callable[..., Sideband]]:
    need_kernel()
    made: list[Sideband] = []

    def one(*kinds: str, data: bool = False) -> Sideband:
        made.append(Sideband(kinds, data=data))
        return made[-1]

    yield one
    for sideband in made:
        sideband.close()


def map_program(times: int = 1, protection: int = READ_EXECUTE) -> None:
    with open("/usr/bin/env", "rb") as file:
        for _ in range(times):
            mmap.mmap(file.fileno(), mmap.PAGESIZE, prot=protection, flags=mmap.MAP_PRIVATE).close()


def mine(records: list[Record]) -> list[Mmap]:
    found = [content(record) for record in records if record.pid == os.getpid()]
    return [said for said in found if isinstance(said, Mmap)]


def test_what_we_do_is_told_with_its_time(make: Callable[..., Sideband]) -> None:
    sideband = make("mmap")
    before = boottime()
    map_program()
    after = boottime()
    map_program()
    records, lost = sideband.read(after)
    (said,) = mine(records)
    assert (said.name, said.prot, said.length) == (b"/usr/bin/env", READ_EXECUTE, mmap.PAGESIZE)
    assert said.inode == os.stat("/usr/bin/env").st_ino
    assert all(before - 10**9 < record.time <= after for record in records)
    assert sideband.waits, "the second one"
    assert len(mine(sideband.read(FOREVER)[0])) == 1
    assert lost == 0


@pytest.mark.parametrize("data", [False, True])
def test_mappings_of_data_come_where_they_are_asked_for(make: Callable[..., Sideband], data: bool) -> None:
    sideband = make("mmap", data=data)
    map_program(protection=mmap.PROT_READ)
    found = [said for said in mine(sideband.read(FOREVER)[0]) if said.name == b"/usr/bin/env"]
    assert [said.prot for said in found] == ([mmap.PROT_READ] if data else [])


def test_what_finds_no_space_is_counted(
    make: Callable[..., Sideband], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perf_event, "PAGES", 4)
    sideband = make("mmap")
    map_program(2000)
    records, lost = sideband.read(FOREVER)
    found = len(mine(records))
    assert lost > 0
    assert found < 2000 <= found + lost
    map_program()
    records, lost = sideband.read(FOREVER)
    assert len(mine(records)) == 1
    assert lost < 100, "each is counted once"


def test_buffers_wrap_around(make: Callable[..., Sideband], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perf_event, "PAGES", 4)
    sideband = make("mmap")
    for _ in range(200):
        map_program(5)
        records, lost = sideband.read(FOREVER)
        assert lost == 0
        assert len(mine(records)) == 5


@pytest.fixture
def turned_off() -> Iterator[None]:
    if not SWITCH.exists():
        pytest.skip(f"NOT TESTED: this kernel has no {SWITCH}")
    before = SWITCH.read_text()
    SWITCH.write_text("0")
    yield
    SWITCH.write_text(before)


def code_at(address: int, size: int) -> bytes:
    """The kernel's memory, as its core file shows it."""
    with KCORE.open("rb", buffering=0) as core:
        at, each, count = PROGRAM_HEADERS.unpack(core.read(PROGRAM_HEADERS.size))
        assert each == PROGRAM_HEADER.size
        core.seek(at)
        for kind, _, offset, start, _, length, _, _ in PROGRAM_HEADER.iter_unpack(core.read(each * count)):
            if kind == LOAD and start <= address < start + length:
                core.seek(offset + address - start)
                return core.read(size)
    raise AssertionError(f"{KCORE} has nothing at {address:#x}")


def begin_there(functions: set[tuple[str, int]]) -> bool:
    """Whether functions of these names begin at these addresses."""
    names = "\n".join(name for name, _ in functions)
    command = ["grep", "-w", "-F", "-f", "-", "/proc/kallsyms"]
    found = subprocess.run(command, input=names, capture_output=True, text=True, check=True).stdout
    lines = (line.split() for line in found.splitlines())
    return functions <= {(line[2], int(line[0], 16)) for line in lines}


@pytest.mark.vm
@pytest.mark.usefixtures("turned_off")
def test_the_kernels_own_code(make: Callable[..., Sideband]) -> None:
    """What was there, and what is there now, as /proc/kcore shows it."""
    sideband, events = make("kernel_text"), Events(["kernel_text"])
    functions: set[tuple[str, int]] = set()
    said: list[list[TextPoke]] = []
    for value in ("1", "0"):
        SWITCH.write_text(value)
        records = sideband.read(FOREVER)[0]
        if not records:
            pytest.skip("NOT TESTED: this kernel accepts to tell of changed code, and does not")
        pokes = [(record, poke) for record in records if isinstance(poke := content(record), TextPoke)]
        assert pokes
        for record, poke in pokes:
            assert record.pid == os.getpid()
            assert code_at(poke.address, len(poke.new)) == poke.new
            event = events(record, poke)
            assert event
            assert (event.values["address"], event.values["length"]) == (poke.address, len(poke.new))
            assert (event.data["old"], event.data["new"]) == (poke.old, poke.new)
            name, distance, size = re.split("[+/]", (event.data["symbol"] or b"").decode())
            assert int(distance, 16) < int(size, 16)
            functions.add((name, poke.address - int(distance, 16)))
        said.append([poke for _, poke in pokes])
    events.close()
    assert begin_there(functions)
    there, back = said
    assert {(poke.address, poke.old, poke.new) for poke in back} == {
        (poke.address, poke.new, poke.old) for poke in there
    }


def test_a_witness_sees_what_this_process_and_its_children_do() -> None:
    need_kernel()
    witness = Witness()
    try:
        assert not witness.seen()
        subprocess.run(["true"], check=True)
        assert {"mmap", "fork", "exit"} <= set(witness.seen())
        assert "namespace" not in witness.seen(), "every fork says what its child is in"
        subprocess.run(["unshare", "--uts", "true"], check=True)
        assert "namespace" in witness.seen()
    finally:
        witness.close()
