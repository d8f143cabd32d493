"""BPF programs, the kernel's symbols and its code: against bpftool, /proc/kallsyms and /proc/kcore."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.kernel import bpf
from tests.live.compare import cannot, ran, same, who
from tests.live.host import FENTRY, TRACED, TRACING, load_tracing
from tests.live.run import Live, eventually

pytestmark = [pytest.mark.kernel, pytest.mark.vm]

TRACEPOINT = "oom_score_adj_update"
"""Nobody else looks at it, so that the first program there switches it on."""
SWITCHED = f"__SCT__tp_func_{TRACEPOINT}"
"""The jump to a tracepoint's programs."""
LIMIT = 50


@contextmanager
def loaded(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """A program, and what bpftool says of it."""
    program = bpf.load_program(bpf.RAW_TRACEPOINT, bpf.NOTHING, name)
    try:
        yield program, shown(program)
    finally:
        os.close(program)


def program_id(program: int) -> int:
    return int(Path(f"/proc/self/fdinfo/{program}").read_text().partition("prog_id:\t")[2].split()[0])


def shown(program: int) -> dict[str, Any]:
    id = str(program_id(program))
    said = subprocess.run(["bpftool", "-j", "prog", "show", "id", id], capture_output=True, check=True)
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def as_shown(said: dict[str, Any]) -> dict[str, Any]:
    return {
        "tag": said["tag"],
        "program_id": said["id"],
        "instructions": said["bytes_xlated"] // 8,
        "jited": said.get("bytes_jited", 0),
        "name": said.get("name"),
    }


def symbols() -> list[tuple[int, str]]:
    """Address and name of everything in /proc/kallsyms, in its order."""
    lines = (line.split() for line in Path("/proc/kallsyms").read_text().splitlines())
    return [(int(address, 16), name) for address, _, name, *_ in lines]


def test_a_program_that_is_loaded_and_freed(live: Live) -> None:
    live.need("bpf_load", "bpf_unload")
    with loaded("witness") as (_, said):
        live.only("bpf_load", program_id=said["id"])
    expected = {
        **as_shown(said),
        "program_type": bpf.RAW_TRACEPOINT,
        "attach_type": 0,
        "attach_to": None,
    }
    for kind in ("bpf_load", "bpf_unload"):
        record = live.only(kind, program_id=said["id"])
        same(record, {**expected, **who(), **ran(live.log)})


def test_a_program_that_is_gone_at_once(live: Live) -> None:
    """perf gives its id and tag alone: the rest is asked of the program, if it is still there."""
    live.need("bpf_load")
    with loaded("witness") as (_, said):
        pass
    record = live.only("bpf_load", program_id=said["id"])
    assert record["tag"] == said["tag"]
    assert record["name"] in (said["name"], None)
    assert (record["name"] is None) == (record.get("unsettled", {}).get("name", {}).get("state") == "fault")
    assert record["instructions"] in (said["bytes_xlated"] // 8, None)


def test_a_program_that_is_made_for_a_function_of_the_kernel(live: Live) -> None:
    live.need("bpf_load", "bpf_unload")
    try:
        program = load_tracing()
    except PermissionError:
        assert live.kinds["bpf_load"] != "fexit", "the pipeline has such programs"
        pytest.skip("NOT TESTED: this host lets nobody load programs for functions of the kernel")
    said = shown(program)
    os.close(program)
    expected = {
        **as_shown(said),
        "program_type": TRACING,
        "attach_type": FENTRY,
        "attach_to": TRACED,
    }
    for kind in ("bpf_load", "bpf_unload"):
        same(live.only(kind, program_id=said["id"]), expected)


def test_a_refused_program_is_none(live: Live) -> None:
    live.need("bpf_load")
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        bpf.load_program(bpf.RAW_TRACEPOINT, bpf.NOTHING[:8], "refused")  # it does not end
    with loaded("accepted") as (_, said):
        live.only("bpf_load", program_id=said["id"])
    assert not [r for r in live.log.records if r["kind"] == "bpf_load" and r["name"] == "refused"]


def test_many_programs_are_each_seen_once(live: Live) -> None:
    live.need("bpf_load", "bpf_unload")
    ids = []
    for _ in range(LIMIT):
        program = bpf.load_program(bpf.RAW_TRACEPOINT, bpf.NOTHING, "many")
        ids.append(program_id(program))
        os.close(program)
    for kind in ("bpf_load", "bpf_unload"):
        live.only(kind, program_id=ids[-1])
        seen = [r["program_id"] for r in live.log.records if r["kind"] == kind and r["program_id"] in ids]
        assert seen == ids


def test_a_symbol(live: Live) -> None:
    live.need("ksymbol")
    with loaded("symbol") as (_, said):
        name = f"bpf_prog_{said['tag']}_symbol"
        found = [address for address, known in symbols() if known == name]
    if not found:
        cannot("ksymbol", "this kernel interprets BPF programs")
    for gone in (False, True):
        record = live.only("ksymbol", name=name, unregister=gone)
        same(
            record,
            {
                "address": found[0],
                "length": said["bytes_jited"],
                "type": 1,
                "unregister": gone,
                "name": name,
            },
        )
        same(record, {**who(), **ran(live.log)})


def test_the_kernels_own_code(live: Live) -> None:
    """The first program of a tracepoint switches it on: the jump there leads elsewhere, and back again."""
    live.need("kernel_text")
    known = symbols()
    (address,) = [at for at, name in known if name == SWITCHED]
    size = min(at for at, _ in known if at > address) - address
    before = code(address, 5)
    with loaded("switch") as (program, _):
        link = bpf.attach_tracepoint(program, TRACEPOINT)
        during = code(address, 5)
        os.close(link)
    assert during != before
    eventually(lambda: code(address, 5) == before, "the jump to be as before")
    for old, new in ((before, during), (during, before)):
        record = live.only("kernel_text", address=address, new=new)
        same(
            record,
            {
                "address": address,
                "length": 5,
                "symbol": f"{SWITCHED}+0x0/{size:#x}",
                "old": old,
                "new": new,
            },
        )
        same(record, {**who(), **ran(live.log)})


def code(address: int, size: int) -> bytes:
    """Bytes of the kernel's memory, as /proc/kcore has them."""
    with Path("/proc/kcore").open("rb") as file:
        header = file.read(64)
        (start,), (count,) = struct.unpack_from("=Q", header, 32), struct.unpack_from("=H", header, 56)
        file.seek(start)
        for _ in range(count):
            kind, _, offset, first, _, length, _, _ = struct.unpack("=IIQQQQQQ", file.read(56))
            if kind == 1 and first <= address < first + length:
                file.seek(offset + address - first)
                return file.read(size)
    raise AssertionError(f"/proc/kcore has no {address:#x}")
