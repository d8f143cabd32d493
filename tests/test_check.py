"""What `check` makes of a host's answers."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline import check
from pipeline.check import Finding
from pipeline.config import Config, load


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
    assert check.bpffs(Path("/sys/fs/bpf/promissory"), mounts).status == "fail"


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


def answers(**works: bool) -> list[dict[str, Any]]:
    return [
        {
            "event": event,
            "surface": "tracepoint",
            "hook": "h",
            "works": ok,
            "answer": "as the kernel says",
            "cost": "dear" if event == "exec_failed" else "",
        }
        for event, ok in works.items()
    ]


def judged(tried: list[dict[str, Any]], **flags: Any) -> Mapping[str, Finding]:
    return {finding.what: finding for finding in check.judge(config(**flags), tried)}


def test_an_event_that_is_wanted_needs_a_surface() -> None:
    found = judged(answers(exec=True, exit=False))
    assert found["exec"].status == "ok"
    assert found["exec"].answer == "tracepoint h: as the kernel says"
    assert found["exit"].status == "fail"
    assert judged(answers(exec=True, exit=False), events="exec")["exit"].status == "warn"


def test_a_surface_that_serves_excuses_another() -> None:
    tried = [*answers(exec=True), answers(exec=False)[0] | {"surface": "lsm"}]
    assert [f.status for f in check.judge(config(), tried)] == ["ok", "ok"]


def test_costly_events_are_off_unless_named() -> None:
    assert "off unless --events names it: dear" in judged(answers(exec_failed=True))["exec_failed"].advice
    assert judged(answers(exec_failed=True), events="exec_failed")["exec_failed"].advice == "dear"
    assert judged(answers(exec_failed=False))["exec_failed"].status == "warn"
    assert judged(answers(exec_failed=False), events="exec_failed")["exec_failed"].status == "fail"


def statuses(**flags: Any) -> dict[str, str]:
    return {finding.what: finding.status for finding in check.targets(config(**flags))}


def test_targets(tmp_path: Path) -> None:
    assert list(statuses(state=str(tmp_path))) == ["disk"]
    assert list(statuses(to=str(tmp_path))) == ["disk"]
    assert statuses(to="-") == {}
    assert statuses(to="kafka://nowhere") == {"place": "fail"}


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


@pytest.mark.skipif(os.geteuid() != 0, reason="to become nobody takes root")
def test_root() -> None:
    assert check.root().status == "ok"
    trial = "import os; os.setuid(65534); from pipeline.check import root; print(root().status)"
    done = subprocess.run([sys.executable, "-c", trial], capture_output=True, text=True, check=False)
    assert done.stdout == "fail\n", done.stderr
