"""The kernels of the matrix: Debian's own, fetched once by apt into .vm/NAME and unpacked there.

apt, with a state folder of its own → the newest packages of a suite → dpkg -x → /lib/modules, depmod
"""

from __future__ import annotations

import fcntl
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["HERE", "MATRIX", "STATE", "Kernel", "Missing", "fetch", "newest", "source"]

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


FLAVOUR: Final = r"[0-9.]+(-[0-9]+)?(\+deb[0-9]+)?-amd64$"
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
    STATE.mkdir(exist_ok=True)
    with (STATE / "fetch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        release = kernel.release or _unpacked(kernel)
        if not (MODULES / release / "modules.dep").exists():  # virtme-ng looks for them there
            shutil.copytree(kernel.folder / "modules", MODULES / release, dirs_exist_ok=True)
            _call("depmod", release)


def newest(answer: str) -> str | None:
    """The package with the highest version in its name, of those that `apt-cache search` answered."""
    names = [line.split()[0] for line in answer.splitlines()]
    return max(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)], default=None)


def source(text: str, suite: str) -> str:
    """A line for apt that names another suite at the place of the system's own source (deb822 text)."""
    uri = re.search(r"^URIs: *(\S+)", text, re.M)
    key = re.search(r"^Signed-By: *(/\S+)", text, re.M)
    if not uri:
        raise Missing(f"{SOURCES} names no URI")
    return f"deb [signed-by={key[1] if key else KEYRING}] {uri[1]} {suite} main\n"


def _download(kernel: Kernel) -> list[Path]:
    """The kernel's packages, by an apt that knows its suite alone and leaves the system's apt as it is."""
    if not SOURCES.exists():
        raise Missing(f"no {SOURCES}: only Debian's own kernels are known")
    apt = kernel.folder / "apt"
    archives = apt / "archives"
    for folder in (apt / "lists" / "partial", archives / "partial"):
        folder.mkdir(parents=True)
    (apt / "sources.list").write_text(source(SOURCES.read_text(), kernel.suite))
    options = [
        *(f"-oDir::State::lists={apt}/lists", "-oDir::State::status=/var/lib/dpkg/status"),
        *(f"-oDir::Cache={apt}", f"-oDir::Etc::SourceList={apt}/sources.list", "-oDir::Etc::SourceParts=-"),
        "-oAPT::Sandbox::User=root",
    ]
    _say(kernel, f"asking apt for suite {kernel.suite}")
    _call("apt-get", *options, "update")
    for pattern in kernel.packages:
        name = newest(_call("apt-cache", *options, "search", "--names-only", pattern))
        if name is None:
            raise Missing(f"suite {kernel.suite} has no package {pattern}")
        _say(kernel, name)
        _call("apt-get", *options, "download", name, cwd=archives)
    return [*archives.glob("*.deb")]


def _unpacked(kernel: Kernel) -> str:
    """Download a kernel and keep of it what is needed; its release."""
    shutil.rmtree(kernel.folder, ignore_errors=True)
    root = kernel.folder / "root"
    root.mkdir(parents=True)
    for package in _download(kernel):
        _say(kernel, f"unpacking {package.name}")
        _call("dpkg", "-x", package, root)
    (modules,) = [*root.glob("usr/lib/modules/*"), *root.glob("lib/modules/*")]
    places = (modules / "vmlinuz", root / "boot" / f"vmlinuz-{modules.name}")
    shutil.move(next(path for path in places if path.exists()), kernel.folder / "vmlinuz")
    shutil.move(modules, kernel.folder / "modules")
    _types(kernel)
    shutil.rmtree(root)
    shutil.rmtree(kernel.folder / "apt")
    (kernel.folder / "release").write_text(modules.name)  # the last: now it is whole
    return modules.name


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


def _call(*command: str | Path, cwd: Path = HERE) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise Missing(f"{' '.join(map(str, command))[:100]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout


def _say(kernel: Kernel, what: str) -> None:
    print(f"vm {kernel.name}: {what}", file=sys.stderr, flush=True)
