"""What this host allows, before anything is attached to stay: the findings behind `promissory check`.

Every finding comes from asking the host: the kernel by loading programs (the loader's probe,
in a process of its own), the broker by talking to it, the folders by looking.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pipeline import place, privilege
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.kafka import AwayError, BrokerError, present
from pipeline.kernel.attaching import BPFFS, probe
from pipeline.kernel.layout import cgroup_known, cpus
from pipeline.kernel.manifest import Hook
from pipeline.schema import Schema, by_name
from pipeline.shown import size
from pipeline.tables import console, mark, table

__all__ = ["Finding", "can_run", "look", "print_findings"]

Status = Literal["ok", "warn", "fail"]
OLDEST: Final = (5, 8)
"""The first kernel with ring buffers of BPF."""
TESTED: Final = (6, 1)
"""The oldest kernel that the tests run on."""
LEAST_DISK: Final = 64 << 20
"""Free bytes below which nothing can be stored in earnest."""
BTF: Final = Path("/sys/kernel/btf/vmlinux")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    status: Status
    answer: str
    """What the host said."""
    advice: str = ""
    """What to do, where the status is not ok."""

    def to_plain(self) -> dict[str, Any]:
        """As `check --json` prints it."""
        return asdict(self)


def look(config: Config) -> list[Finding]:
    """Everything that `run` with this configuration would need, in the order in which it would need it."""
    findings = [root(), user(config.user), kernel(platform.release()), btf(), bcc(), bpffs(config.pins)]
    if can_run(findings):
        findings += surfaces(config)
    else:
        findings.append(Finding("events", "fail", "not tried", "mend the above first"))
    findings += [memory(config.ring.size, len(cpus("present"))), *targets(config)]
    findings += hierarchy(config, cgroup_known())
    return findings


def can_run(findings: list[Finding]) -> bool:
    """Whether nothing stands in the way of `run`."""
    return all(finding.status != "fail" for finding in findings)


def print_findings(findings: list[Finding]) -> None:
    """The findings as a table."""
    rows = ((f.what, mark(f.status), f.answer, f.advice) for f in findings)
    console().print(table(["what", "", "answer", "note"], rows))


# ---- the host


def root() -> Finding:
    """Only root may load programs into the kernel."""
    if os.geteuid() == 0:
        return Finding("root", "ok", "yes")
    return Finding("root", "fail", f"this is user {os.geteuid()}", "sudo promissory …")


def user(name: str) -> Finding:
    """As whom the pipeline runs, and what it takes to become that."""
    try:
        found = privilege.find(name)
        privilege.libraries()
    except UserError as error:
        return Finding("user", "fail", str(error), "make setup")
    return Finding("user", "ok", f"{found.name}, {found.uid}:{found.gid}")


def kernel(release: str) -> Finding:
    """The kernel's version."""
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < OLDEST:
        return Finding("kernel", "fail", release, "boot Linux 6.1 or later: this one has no BPF ring buffers")
    if version < TESTED:
        return Finding("kernel", "warn", release, "Linux 6.1 is the oldest that is tested")
    return Finding("kernel", "ok", release)


def btf(path: Path = BTF) -> Finding:
    """The kernel's own description of its types: programs are compiled against it."""
    if path.exists():
        return Finding("BTF", "ok", str(path))
    return Finding(
        "BTF", "fail", f"no {path}", "boot a kernel built with CONFIG_DEBUG_INFO_BTF (Debian's are)"
    )


def bcc() -> Finding:
    """The real bcc, tried in a process of its own because it brings LLVM along."""
    trial = "from bcc import BPF; import bcc; print(bcc.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", trial], capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode == 0:
        return Finding("bcc", "ok", done.stdout.strip())
    said = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
    return Finding(
        "bcc", "fail", said[0], "apt install python3-bpfcc (PyPI's bcc is something else); make setup"
    )


def bpffs(pins: Path, mounts: Path = Path("/proc/mounts")) -> Finding:
    """The file system in which what lives in the kernel has names."""
    points = [line.split()[1] for line in mounts.read_text().splitlines() if line.split()[2] == "bpf"]
    at = next((point for point in points if pins.is_relative_to(point)), None)
    if at:
        return Finding("bpffs", "ok", f"{pins} lies in {at}")
    if pins.is_relative_to(BPFFS):
        return Finding("bpffs", "ok", f"{BPFFS} is not mounted yet; run and attach mount it")
    return Finding("bpffs", "fail", f"{pins} is in no bpffs", f"set pins to a folder in {BPFFS}")


def memory(ring: int, cpus: int, meminfo: Path = Path("/proc/meminfo")) -> Finding:
    """What the rings take: one for each CPU."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
    free = int(found[1]) * 1024 if found else 0
    total = ring * cpus
    answer = f"{cpus} rings of {size(ring)}: {size(total)} of {size(free)} available"
    if total > free:
        return Finding("memory", "fail", answer, "make ring.size smaller")
    if total > free // 2:
        return Finding("memory", "warn", answer, "consider a smaller ring.size")
    return Finding("memory", "ok", answer)


def hierarchy(config: Config, known: bool) -> Iterator[Finding]:
    """A filter by cgroup needs ids: under version 1 every process seems to be in the same one."""
    if config.kernel.cgroups and not known:
        answer = "this host's processes live in version-1 cgroups, whose ids the kernel does not give"
        yield Finding("kernel.cgroups", "fail", answer, "leave the key empty, or boot with version 2")


# ---- the kernel's surfaces


def surfaces(config: Config) -> list[Finding]:
    """Each event's surfaces, with the kernel's own answer."""
    try:
        return list(judge(config, probe(config)))
    except (UserError, OSError) as error:
        return [Finding("events", "fail", str(error), f"see {config.state}/loader.log")]


def judge(config: Config, tried: Sequence[Hook]) -> Iterator[Finding]:
    """What the probe's answers mean: an event that was asked for needs one surface that works; so do those
    that keep identities true.
    """
    working = {hook.event for hook in tried if hook.works}
    for name, schema in by_name().items():
        is_free = any(not surface.cost for surface in schema.surfaces)
        is_wanted = config.names(name) if config.events else is_free
        unwell: Status = "fail" if name in config.events or (is_wanted and schema.always) else "warn"
        hooks = [hook for hook in tried if hook.event == name]
        for hook in hooks:
            if hook.works:
                idle = f"; not at {', '.join(hook.idle)}" if hook.idle else ""
                answer = f"{' '.join((hook.surface, *hook.hooks))}: {hook.answer}{idle}"
                yield Finding(name, "ok", answer, hook.cost)
            elif name in working:
                yield Finding(name, "ok", f"{hook.surface}: {hook.answer}", "another surface serves")
            elif is_wanted:
                yield Finding(name, unwell, f"{hook.surface}: {hook.answer}", _advice(config, schema, hooks))
            else:
                yield Finding(
                    name, "warn", f"{hook.surface}: {hook.answer}", "not asked for; this host cannot give it"
                )
        if not hooks and is_wanted:
            names = ", ".join(surface.name for surface in schema.surfaces)
            advice = f"take --surface auto, or {names}"
            yield Finding(name, unwell, f"has no surface {config.surface}", advice)
        elif not hooks:
            cost = "; ".join(surface.cost for surface in schema.surfaces if surface.cost)
            yield Finding(name, "ok", "off, not tried: --events did not name it", cost)


def _advice(config: Config, schema: Schema, tried: Sequence[Hook]) -> str:
    """What to do about an event of which no surface works."""
    if schema.name in config.events:
        return f"leave {schema.name} out of --events, or boot a kernel that allows it"
    untried = [surface for surface in schema.surfaces if surface.name not in {hook.surface for hook in tried}]
    priced = next((surface for surface in untried if surface.cost), None)
    if priced is None:
        return "not collected here: boot a kernel that allows it"
    return f"not collected; --events {schema.name} takes it from {priced.name}, which {priced.cost}"


# ---- where events go


def targets(config: Config) -> Iterator[Finding]:
    """The broker if there is one, and the disk: of the local log, or of the outbox behind Kafka."""
    try:
        target = place.parse(config.to) if config.to else place.Folder(config.state)
    except UserError as error:
        yield Finding("place", "fail", str(error), "mend --to")
        return
    yield from folder(config.state, config.user)
    if isinstance(target, place.Kafka):
        yield broker(target, config)
        yield disk(config.state, config.outbox.limit)
    elif isinstance(target, place.Folder):
        if target.path != config.state:
            yield from folder(target.path, config.user)
        yield disk(target.path, config.log.limit)


def folder(path: Path, user: str) -> Iterator[Finding]:
    """Whether a folder that is there already is the pipeline's, or may become it."""
    with suppress(UserError, OSError):  # there is no such user, or no such folder: another row says so
        if why := privilege.foreign(path, privilege.find(user)):
            yield Finding("folder", "fail", *why.split("; ", 1))


def broker(target: place.Kafka, config: Config) -> Finding:
    """Whether Kafka answers. One that is away stops nobody: the outbox takes what comes meanwhile."""
    try:
        _, topics = present(target, config.kafka)
    except BrokerError as error:
        return Finding("Kafka", "fail", str(error), "mend --to or the table kafka")
    except AwayError as error:
        return Finding("Kafka", "warn", str(error), "start it: until then events wait in the outbox")
    return Finding("Kafka", "ok", f"{target}: " + (", ".join(topics) or "answers; topics are created by run"))


def disk(folder: Path, limit: int) -> Finding:
    """Whether a folder can take what is to be stored."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Finding("disk", "fail", f"{there} is not writable", "name another folder with --state")
    free = shutil.disk_usage(there).free
    answer = f"{folder}: {size(free)} free, up to {size(limit)} wanted"
    if free < LEAST_DISK:
        return Finding("disk", "fail", answer, "make room, or name another folder with --state")
    if free < limit:
        return Finding("disk", "warn", answer, "make room, or set a smaller limit")
    return Finding("disk", "ok", answer)
