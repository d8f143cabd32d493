"""The kernels of the matrix: Debian's own, fetched once by apt into .vm/NAME and unpacked there.

    apt, with a state folder of its own → the newest packages of a suite → dpkg -x → /lib/modules, depmod
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["HERE", "MATRIX", "STATE", "Kernel", "Missing", "fetch", "newest"]

HERE: Final = Path(__file__).resolve().parents[2]
STATE: Final = HERE / ".vm"
MODULES: Final = Path("/lib/modules")
SOURCES: Final = Path("/etc/apt/sources.list.d/debian.sources")
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"


SETUP_SECTS, PAYLOAD_OFFSET, SECTOR = 0x1F1, 0x248, 512
LENGTH: Final = 4
"""Bytes behind the packed kernel that say how long it is unpacked."""
PACKERS: Final = {b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Missing(Exception):
    """What a virtual machine needs cannot be had here; says what."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of the matrix: the suite that has it, and its packages as patterns of apt-cache search."""

    name: str
    suite: str
    packages: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where it is unpacked."""
        return STATE / self.name

    @property
    def release(self) -> str | None:
        """What `uname -r` will say; None: not fetched yet."""
        stamp = self.folder / "release"
        return stamp.read_text() if stamp.exists() else None

    @property
    def types(self) -> Path:
        """Its BTF, which it will show as /sys/kernel/btf/vmlinux: for tests that need not boot it."""
        return self.folder / "btf"

    @property
    def image(self) -> Path:
        """The kernel itself."""
        if not self.release:
            raise Missing(f"kernel {self.name} is not here: python -m tests.vm fetch {self.name}")
        return self.folder / "vmlinuz"


FLAVOUR: Final = r"[0-9.]+(-[0-9]+)?(\+deb[0-9]+)?(-[0-9]+)?-amd64$"
MATRIX: Final = {
    kernel.name: kernel
    for kernel in (
        Kernel("6.1", "bookworm", (rf"^linux-image-6\.1\.{FLAVOUR}",)),
        Kernel("6.12", "trixie", (rf"^linux-image-6\.12\.{FLAVOUR}",)),
        Kernel("7.3", "trixie-backports", (rf"^linux-binary-{FLAVOUR}", rf"^linux-modules-{FLAVOUR}")),
    )
}


def fetch(kernel: Kernel) -> None:
    """Have a kernel ready to boot: what is there already is left alone."""
    if not kernel.release:
        root = kernel.folder / "root"
        shutil.rmtree(kernel.folder, ignore_errors=True)
        root.mkdir(parents=True)
        for package in _download(kernel):
            _call("dpkg", "-x", package, root)
        (modules,) = [*root.glob("usr/lib/modules/*"), *root.glob("lib/modules/*")]
        places = (modules / "vmlinuz", root / "boot" / f"vmlinuz-{modules.name}")
        image = next(path for path in places if path.exists())
        shutil.move(image, kernel.folder / "vmlinuz")
        shutil.move(modules, kernel.folder / "modules")
        shutil.rmtree(root)
        _types(kernel)
        (kernel.folder / "release").write_text(modules.name)
    release = kernel.release
    assert release
    if not (MODULES / release / "modules.dep").exists():
        shutil.copytree(kernel.folder / "modules", MODULES / release, dirs_exist_ok=True)
        _call("depmod", release)


def newest(names: list[str]) -> str:
    """The highest version among package names, as dpkg orders versions."""
    best = names[0]
    for name in names[1:]:
        if subprocess.run(["dpkg", "--compare-versions", name, "gt", best], check=False).returncode == 0:
            best = name
    return best


def _download(kernel: Kernel) -> list[Path]:
    say = f"kernel {kernel.name}: asking apt for suite {kernel.suite}"
    print(say, file=sys.stderr, flush=True)
    apt = STATE / "apt" / kernel.suite
    archives = apt / "cache" / "archives"
    for folder in (apt / "state" / "lists" / "partial", archives / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    if not SOURCES.exists():
        raise Missing(f"no {SOURCES}: only Debian's own kernels are known")
    text = SOURCES.read_text()
    uri = re.search(r"^URIs: *(\S+)", text, re.M)
    key = re.search(r"^Signed-By: *(/\S+)", text, re.M)
    if not uri:
        raise Missing(f"{SOURCES} names no URI")
    line = f"deb [signed-by={key[1] if key else KEYRING}] {uri[1]} {kernel.suite} main\n"
    (apt / "sources.list").write_text(line)
    options = [
        f"-oDir::State={apt}/state",
        "-oDir::State::status=/var/lib/dpkg/status",
        f"-oDir::Cache={apt}/cache",
        f"-oDir::Etc::SourceList={apt}/sources.list",
        "-oDir::Etc::SourceParts=-",
        "-oAPT::Sandbox::User=root",
    ]
    _call("apt-get", *options, "update")
    found = []
    for pattern in kernel.packages:
        answer = _call("apt-cache", *options, "search", "--names-only", pattern)
        names = [line.split()[0] for line in answer.splitlines()]
        if not names:
            raise Missing(f"suite {kernel.suite} has no package {pattern}")
        name = newest(names)
        print(f"kernel {kernel.name}: {name}", file=sys.stderr, flush=True)
        subprocess.run(["apt-get", *options, "download", name], cwd=archives, check=True, capture_output=True)
        found.append(max(archives.glob(f"{name}_*.deb"), key=lambda path: path.stat().st_mtime))
    return found


def _types(kernel: Kernel) -> None:
    """Take the BTF out of the compressed kernel (Documentation/arch/x86/boot.rst says where what lies)."""
    data = (kernel.folder / "vmlinuz").read_bytes()
    start, size = struct.unpack_from("<II", data, PAYLOAD_OFFSET)
    start += (data[SETUP_SECTS] + 1) * SECTOR
    packed, elf = kernel.folder / "packed", kernel.folder / "elf"
    packed.write_bytes(data[start : start + size - LENGTH])
    tool = next(tool for magic, tool in PACKERS.items() if data.startswith(magic, start))
    with elf.open("wb") as file:
        subprocess.run([tool, "-dc", packed], stdout=file, check=True)
    _call("objcopy", "--dump-section", f".BTF={kernel.types}", elf, kernel.folder / "rest")
    for path in (packed, elf, kernel.folder / "rest"):
        path.unlink()


def _call(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"{command[0]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout
