"""The side-band of this kernel: it says what this process does, wakes a sleeper, and counts what it lost."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from pipeline.kernel import perf_event
from pipeline.kernel.perf_event import Sideband, Witness
from pipeline.kernel.perf_record import Mmap, Record, content
from tests.kernel_ring import boottime
from tests.live.host import need_kernel

READ_EXECUTE = mmap.PROT_READ | mmap.PROT_EXEC
FOREVER = 2**63 - 1
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
