"""What `check` makes of a host's answers."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import check
from pipeline.check import Finding
from pipeline.config import Config
from pipeline.configure import load
from pipeline.kernel.manifest import Hook
from pipeline.schema import by_name


def config(**flags: Any) -> Config:
    return load(flags, environ={})


def test_only_failures_stop_run() -> None:
    assert check.can_run([Finding("a", "ok", ""), Finding("b", "warn", "")])
    assert not check.can_run([Finding("a", "ok", ""), Finding("b", "fail", "")])


@pytest.mark.parametrize(
    ("release", "status"),
    [
        ("6.18.44-x", "ok"),
        ("6.1.0", "ok"),
        ("5.15.0-1", "warn"),
        ("5.7", "fail"),
        ("odd", "fail"),
        ("10.0", "ok"),
    ],
)
def test_kernel(release: str, status: str) -> None:
    assert check.kernel(release).status == status


def test_btf(tmp_path: Path) -> None:
    assert check.btf(tmp_path / "vmlinux").status == "fail"
    (tmp_path / "vmlinux").touch()
    assert check.btf(tmp_path / "vmlinux").status == "ok"


def test_bpffs(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("proc /proc proc rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n")
    assert check.bpffs(Path("/sys/fs/bpf/promissory"), mounts).status == "ok"
    assert check.bpffs(Path("/sys/fs/bpfother/x"), mounts).status == "fail"
    mounts.write_text("tmpfs /sys/fs/bpf tmpfs rw 0 0\n")
    assert check.bpffs(tmp_path, mounts).status == "fail"
    assert "not mounted yet" in check.bpffs(Path("/sys/fs/bpf/promissory"), mounts).answer


@pytest.mark.parametrize(("free_kb", "status"), [(1 << 20, "ok"), (50_000, "warn"), (30_000, "fail")])
def test_memory_is_the_sum_of_the_rings(tmp_path: Path, free_kb: int, status: str) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 1 kB\nMemAvailable:   {free_kb} kB\n")
    finding = check.memory(16 << 20, 2, meminfo)
    assert finding.status == status
    assert "2 rings of 16.0 MiB: 32.0 MiB" in finding.answer


def test_disk(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    assert check.disk(folder, 1 << 20).status == "ok"
    assert check.disk(folder, 1 << 60).status == "warn"
    (tmp_path / "file").touch()
    assert check.disk(tmp_path / "file", 1).status == "fail"
    assert check.disk(tmp_path / "file" / "below", 1).status == "fail"
    assert not (tmp_path / "not").exists()


def hook(event: str, works: bool, surface: str = "tracepoint", cost: str = "") -> Hook:
    return Hook(event, surface, {"lsm/hook": "program"}, works, "as the kernel says", cost)


NAMES = [name for name, schema in by_name().items() if any(not s.cost for s in schema.surfaces)]
ALL = [hook(name, True) for name in NAMES]


def judged(tried: list[Hook], **flags: Any) -> dict[str, Finding]:
    return {finding.what: finding for finding in check.judge(config(**flags), tried)}


def without(name: str) -> list[Hook]:
    return [hook(h.event, h.event != name) for h in ALL]


def test_an_event_that_keeps_identities_needs_a_surface() -> None:
    assert {finding.status for finding in judged(ALL).values()} == {"ok"}
    assert judged(ALL)["exec"].answer == "tracepoint lsm/hook: as the kernel says"
    assert judged(without("exit"))["exit"].status == "fail"
    assert judged(without("exit"), events="exec")["exit"].status == "warn"


def test_an_event_that_was_asked_for_needs_a_surface() -> None:
    nothing = [h for h in ALL if h.event != "process"]
    for tried in (without("process"), nothing):
        assert judged(tried)["process"].status == "warn"
        assert judged(tried, events="all")["process"].status == "warn"
        assert judged(tried, events="process")["process"].status == "fail"


def test_a_surface_that_serves_excuses_another() -> None:
    tried = [hook("exec", False, "lsm"), *ALL]
    found = [finding for finding in check.judge(config(), tried) if finding.what == "exec"]
    assert [(finding.status, finding.advice) for finding in found] == [
        ("ok", "another surface serves"),
        ("ok", ""),
    ]


def test_an_event_that_only_has_a_price_here_says_it() -> None:
    tried = [h for h in ALL if h.event != "bind"] + [hook("bind", False, "fexit")]
    found = judged(tried)["bind"]
    assert (found.status, found.answer) == ("warn", "fexit: as the kernel says")
    assert found.advice.startswith(
        "not collected; --events bind takes it from sys_exit, which runs at the end"
    )
    found = judged([*tried, hook("bind", False, "sys_exit")], events="bind")["bind"]
    assert (found.status, found.advice[:9]) == ("fail", "leave bin")
    assert judged(without("ksymbol"))["ksymbol"].advice == "not collected here: boot a kernel that allows it"


def test_costly_events_are_off_unless_named_and_say_their_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = by_name()["exec_failed"]
    costly = replace(kind, surfaces=tuple(surface for surface in kind.surfaces if surface.cost))
    monkeypatch.setattr(check, "by_name", lambda: {**by_name(), "exec_failed": costly})
    others = [h for h in ALL if h.event != "exec_failed"]
    off = judged(others)["exec_failed"]
    assert off.status == "ok"
    assert "off, not tried" in off.answer
    assert "90 ns" in off.advice
    asked = {"events": "exec_failed"}
    assert judged([*others, hook("exec_failed", True, cost="dear")], **asked)["exec_failed"].advice == "dear"
    assert judged([*others, hook("exec_failed", False, cost="dear")], **asked)["exec_failed"].status == "fail"


def test_who_does_not_ask_is_told_the_price() -> None:
    others = [h for h in ALL if h.event != "exec_failed"]
    found = judged([*others, hook("exec_failed", False, "fexit")])["exec_failed"]
    assert found.status == "warn"
    assert found.advice.startswith(
        "not collected; --events exec_failed takes it from sys_exit, which runs at"
    )


def test_a_surface_that_an_event_does_not_have() -> None:
    found = judged([hook("process", True)], surface="perf")["exec"]
    assert (found.status, found.answer) == ("fail", "has no surface perf")
    assert found.advice == "take --surface auto, or lsm, tracepoint"


def test_a_filter_by_cgroup_needs_ids() -> None:
    asked = config(kernel={"cgroups": [5]})
    assert [finding.status for finding in check.hierarchy(asked, known=False)] == ["fail"]
    assert list(check.hierarchy(asked, known=True)) == []
    assert list(check.hierarchy(config(), known=False)) == []


def statuses(**flags: Any) -> dict[str, str]:
    return {finding.what: finding.status for finding in check.targets(config(**flags))}


def test_targets(tmp_path: Path) -> None:
    state, other = str(tmp_path / "state"), str(tmp_path / "other")
    assert list(statuses(state=state)) == ["disk"]
    assert list(statuses(to=other, state=state)) == ["disk"]
    assert statuses(to="-", state=state) == {}
    assert statuses(to="kafka://nowhere") == {"place": "fail"}


@pytest.mark.parametrize("which", ["state", "to"])
def test_a_folder_of_others_fails(tmp_path: Path, which: str) -> None:
    places = {name: str(tmp_path / name) for name in ("state", "to")}
    (tmp_path / which).mkdir()
    (tmp_path / which / "letters").touch()
    found, _ = check.targets(config(**places, user="nobody"))
    assert (found.what, found.status) == ("folder", "fail")
    assert found.answer == f"{tmp_path / which} is not nobody's, and not empty"
    assert found.advice.startswith("name a new folder with --state")


def test_a_broker_that_is_away_is_no_failure(tmp_path: Path) -> None:
    found = statuses(to="kafka://127.0.0.1:1", state=str(tmp_path))
    assert found["Kafka"] == "warn"
    assert found["disk"] in ("ok", "warn")


def test_bcc_is_the_real_one() -> None:
    finding = check.bcc()
    try:
        done = subprocess.run([sys.executable, "-c", "import bcc; bcc.BPF"], capture_output=True, check=True)
    except subprocess.CalledProcessError:
        assert finding.status == "fail"
    else:
        assert not done.stdout
        assert finding.status == "ok"


def test_findings_as_json() -> None:
    finding = Finding("disk", "warn", "an answer", "do this")
    assert json.loads(json.dumps(finding.to_plain())) == {
        "what": "disk",
        "status": "warn",
        "answer": "an answer",
        "advice": "do this",
    }


def test_findings_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    check.print_findings([Finding("exec", "ok", "lsm [bold]x[/]"), Finding("b", "fail", "no", "mend")])
    shown = capsys.readouterr().out
    assert "lsm [bold]x[/]" in shown
    assert [line.split() for line in shown.splitlines()[-3:-1]] == [
        ["exec", "✓", "ok", "lsm", "[bold]x[/]"],
        ["b", "✗", "fail", "no", "mend"],
    ]


@pytest.mark.usefixtures("root")
def test_user() -> None:
    found = check.user("nobody")
    assert (found.status, found.answer) == ("ok", "nobody, 65534:65534")
    missing = check.user("no-such-user")
    assert missing.status == "fail"
    assert "useradd --system no-such-user" in missing.answer


def test_root() -> None:
    assert check.root().status == "ok"
    trial = "import os; os.setuid(65534); from pipeline.check import root; print(root().status)"
    done = subprocess.run([sys.executable, "-c", trial], capture_output=True, text=True, check=False)
    assert done.stdout == "fail\n", done.stderr
