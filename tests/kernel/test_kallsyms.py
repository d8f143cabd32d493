"""Names of the kernel's code by address."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.kernel import kallsyms
from pipeline.kernel.kallsyms import Kallsyms

TEXT = """\
ffffffff81000000 T first
ffffffff81000000 t alias
ffffffff81000010 D data
ffffffff81000020 t second
ffffffffc0000000 t inside\t[module]
ffffffffc0000040 T last
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "kallsyms"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (0xFFFFFFFF81000000, b"first+0x0/0x20"),
        (0xFFFFFFFF8100001F, b"first+0x1f/0x20"),
        (0xFFFFFFFF81000020, b"second+0x0/0x3effffe0"),
        (0xFFFFFFFFC0000005, b"inside+0x5/0x40 [module]"),
        (0xFFFFFFFFC0000040, None),
        (0xFFFFFFFF80FFFFFF, None),
        (0, None),
    ],
)
def test_the_symbol_around_an_address(file: Path, address: int, name: bytes | None) -> None:
    """Of the last one no size is known: what it is called there nobody can say."""
    assert Kallsyms(file).at(address) == name


def test_it_is_read_again_after_a_while(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = Kallsyms(file)
    assert symbols.at(0xFFFFFFFF81000000) == b"first+0x0/0x20"
    file.write_text(TEXT.replace("first", "other"))
    assert symbols.at(0xFFFFFFFF81000000) == b"first+0x0/0x20"
    monkeypatch.setattr(kallsyms, "STALE", -1.0)
    assert symbols.at(0xFFFFFFFF81000000) == b"other+0x0/0x20"


@pytest.mark.parametrize("text", ["", "0000000000000000 T hidden\n0000000000000000 t too\n"])
def test_where_addresses_are_hidden_nothing_is_known(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kallsyms"
    path.write_text(text)
    assert Kallsyms(path).at(0xFFFFFFFF81000000) is None
    assert Kallsyms(tmp_path / "none").at(1) is None
