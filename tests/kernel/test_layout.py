"""What the loader writes into the kernel's maps is what bpf/chunk.h reads there."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.configure import load
from pipeline.kernel.layout import settings, stat
from pipeline.kernel.source import BPF

MEMBERS = re.compile(r"^    (u32|u64) ([\w, ]+);", re.M)


def as_the_kernel_reads(config: Config) -> dict[str, int]:
    """The members of struct settings, as C lays them out."""
    (body,) = re.findall(r"^struct settings \{(.*?)^\};", (BPF / "chunk.h").read_text(), re.M | re.S)
    members = [(name, kind) for kind, names in MEMBERS.findall(body) for name in names.split(", ")]
    form = "@" + "".join("I" if kind == "u32" else "Q" for _, kind in members)
    values = struct.unpack(form, settings(config, ["exec"]))
    return dict(zip((name for name, _ in members), values, strict=True))


def test_settings_are_where_the_kernel_reads_them() -> None:
    config = load({"memory": {"all": True}, "caps": {"path": 3, "argv": 4, "environment": 5}}, environ={})
    seen = as_the_kernel_reads(config)
    assert (seen["cap_path"], seen["cap_argv"], seen["cap_environment"]) == (3, 4, 5)
    assert (seen["memory_all"], seen["environment"], seen["by_uid"]) == (1, 1, 0)


@pytest.mark.parametrize(
    ("reserve", "share", "parts"),
    [(0.125, 0.5, (128, 512)), (0.5, 1, (512, 1024)), (0, 0, (0, 0)), (0.0001, 0.0001, (1, 1))],
)
def test_the_budget_in_parts(reserve: float, share: float, parts: tuple[int, int]) -> None:
    """What was asked for is never none: that would be no reserve, and a share without a bound."""
    seen = as_the_kernel_reads(load({"budget": {"reserve": reserve, "share": share}}, environ={}))
    assert (seen["reserve"], seen["share"]) == parts


@pytest.mark.parametrize("name", [b"plain", b"", b") Z 1 (", b"\xff\n 1 2"])
def test_the_fields_of_a_stat_file_whatever_its_process_is_called(tmp_path: Path, name: bytes) -> None:
    (tmp_path / "stat").write_bytes(b"12 (" + name + b") S 1 " + b" ".join(b"%d" % n for n in range(5, 53)))
    found, fields = stat(tmp_path)
    assert (found, fields[0], fields[1], fields[19]) == (name, b"S", b"1", b"22")
