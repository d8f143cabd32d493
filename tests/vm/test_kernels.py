"""What apt answers, and which of it is taken."""

from __future__ import annotations

import re

import pytest

from tests.vm.kernels import MATRIX, Missing, newest, source

BOOKWORM = """\
linux-image-6.1.0-9-amd64 - Linux 6.1 for 64-bit PCs (signed)
linux-image-6.1.0-50-amd64 - Linux 6.1 for 64-bit PCs (signed)
linux-image-6.1.0-49-amd64 - Linux 6.1 for 64-bit PCs (signed)
"""
NAMES = {
    "6.1": ("linux-image-6.1.0-50-amd64",),
    "6.12": ("linux-image-6.12.107+deb13-amd64", "linux-image-6.12.9+deb13-amd64"),
    "7.3": ("linux-binary-7.3.4+deb13-amd64", "linux-modules-7.3.4+deb13-amd64"),
}
OTHERS = (
    "linux-image-6.1.0-50-cloud-amd64",
    "linux-image-6.1.0-50-amd64-dbg",
    "linux-image-6.1.0-50-amd64-unsigned",
    "linux-image-6.12.107+deb13-rt-amd64",
    "linux-image-6.10.11-amd64",
    "linux-image-amd64",
    "linux-modules-7.3.4+deb13-cloud-amd64",
)
DEB822 = """\
Types: deb
# a comment
URIs: scheme://some.mirror/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /some/keyring.gpg

Types: deb
URIs: scheme://some.mirror/debian-security
Suites: bookworm-security
"""


def test_the_newest_is_so_by_number_not_by_letter() -> None:
    assert newest(BOOKWORM) == "linux-image-6.1.0-50-amd64"
    assert newest("a-6.12.9+deb13-amd64 - x\na-6.12.107+deb13-amd64 - y\n") == "a-6.12.107+deb13-amd64"
    assert newest("") is None


@pytest.mark.parametrize("name", MATRIX)
def test_a_pattern_finds_the_plain_kernel_and_no_other(name: str) -> None:
    patterns = [re.compile(pattern) for pattern in MATRIX[name].packages]
    known = [*OTHERS, *(package for names in NAMES.values() for package in names)]
    assert {package for package in known if any(p.search(package) for p in patterns)} == set(NAMES[name])


def test_the_system_s_own_mirror_serves_the_other_suite() -> None:
    line = "deb [signed-by=/some/keyring.gpg] scheme://some.mirror/debian trixie main\n"
    assert source(DEB822, "trixie") == line
    without = DEB822.replace("Signed-By: /some/keyring.gpg\n", "")
    assert "signed-by=/usr/share/keyrings/debian-archive-keyring.gpg" in source(without, "trixie")
    with pytest.raises(Missing):
        source("Types: deb\n", "trixie")
