"""The command as a person meets it: in a process of its own, by its exit status and what it prints."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import __version__
from pipeline.cli import commands, main
from pipeline.errors import UserError
from pipeline.schema import by_name

COMMAND = [sys.executable, "-m", "pipeline.cli"]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("PROMISSORY_")}


def promissory(*arguments: str, user: int | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        env=CLEAN | {"COLUMNS": "100"} | environ,
        user=user,
        timeout=60,
        check=False,
    )


def complaint(*arguments: str, status: int = 2, user: int | None = None, **environ: str) -> str:
    """The one line on stderr of a command that must fail."""
    done = promissory(*arguments, user=user, **environ)
    assert done.returncode == status, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("promissory: error: ")
    return lines[0].removeprefix("promissory: error: ")


def test_version_and_help() -> None:
    assert promissory("--version").stdout == f"promissory {__version__}\n"
    done = promissory("--help")
    assert done.returncode == 0
    for name in ("check", "run", "tail", "replay", "ledger", "schema", "attach", "detach"):
        assert f"\n  {name} " in done.stdout
        assert promissory(name, "--help").returncode == 0
    assert promissory().returncode == 2


def test_help_imports_no_library_that_takes_time() -> None:
    trial = (
        "import sys; from pipeline.cli import command; command(['--help'])\n"
        "heavy = {'numpy', 'pydantic', 'polars', 'trio', 'confluent_kafka', 'bcc'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", trial], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_wrong_usage_is_one_line_that_names_the_nearest() -> None:
    assert complaint("tale") == "No such command 'tale'. Did you mean 'tail'?"
    assert complaint("run", "--evnts", "x") == "No such option: --evnts (Possible options: --events)"
    assert "requires an argument" in complaint("run", "--duration")
    assert complaint("tail", "--format", "yaml").endswith("'yaml' is not one of 'text', 'json'.")
    assert "exclude each other" in complaint("tail", "-n", "5", "--from-start")
    assert complaint("schema", "show", "exce") == "no schema is called exce; did you mean exec?"


def test_wrong_configuration_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text("[ring]\nsise = 1\n")
    assert complaint("run", "--config", str(file)) == (
        f"unknown key ring.sise in {file}; did you mean ring.size in {file}?"
    )
    assert complaint("run", PROMISSORY_DURATON="5") == (
        "unknown key PROMISSORY_DURATON; did you mean PROMISSORY_DURATION?"
    )
    assert complaint("run", "--duration", "soon").startswith("--duration is 'soon', wanted: a duration")
    assert complaint("run", "--events", "frok").endswith("did you mean fork?")
    assert complaint("ledger", "--config", "/nonexistent.toml").startswith("/nonexistent.toml: No such file")


def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('surface = "of-file"\n')

    check = ("check", "--config", str(file))
    assert complaint(*check).startswith(f"surface in {file} is 'of-file', wanted: one of 'auto'")
    assert complaint(*check, PROMISSORY_SURFACE="of-env").startswith("PROMISSORY_SURFACE is 'of-env'")
    said = complaint(*check, "--surface", "of-flag", PROMISSORY_SURFACE="of-env")
    assert said.startswith("--surface is 'of-flag'")


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("name", ["run", "attach", "detach"])
def test_not_root(name: str) -> None:
    said = complaint(name, status=1, user=65534)
    assert said == f"{name} taps the kernel and needs root; try: sudo promissory {name}"


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("name", ["run", "attach"])
def test_state_folder_that_cannot_be_written_to(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = complaint(name, "--state", f"{tmp_path}/file/state", status=1)
    assert said == f"{tmp_path}/file/state cannot be written to (Not a directory); name another with --state"


def test_schema() -> None:
    listed = promissory("schema", "list").stdout
    titles = [schema.title for schema in by_name().values()]
    first = [line.split()[0] for line in listed.splitlines() if line.strip()]
    assert [word for word in first if "/" in word] == titles
    shown = promissory("schema", "show", "fork").stdout
    assert "child.ns_pid" in shown
    assert "tracepoint raw_tp/task_newtask" in shown
    schema = json.loads(promissory("schema", "json", "exit").stdout)
    assert schema["title"] == "exit/1"
    assert "code" in schema["properties"]


# ---- ends that no command line can bring about at will


def end(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int | str | None:
    """How the command ends when something below it raises."""

    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr("pipeline.cli.command", fail)
    monkeypatch.setattr(sys, "argv", ["promissory", "run"])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_groups_of_nurseries_are_opened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = ExceptionGroup("nursery", [UserError("the disk\n is full", status=3)])
    assert end(monkeypatch, ExceptionGroup("nursery", [inner])) == 3
    assert capsys.readouterr().err == "promissory: error: the disk is full\n"


def test_ctrl_c_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert end(monkeypatch, BaseExceptionGroup("nursery", [KeyboardInterrupt()])) == 130
    assert end(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""


def test_fault_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("PROMISSORY_DEBUG", raising=False)
    commands.configure(None, state=str(tmp_path))
    assert end(monkeypatch, ExceptionGroup("nursery", [UserError("x"), KeyError("lost\nkey")])) == 70
    said = capsys.readouterr().err
    assert (
        said == f"promissory: error: unexpected KeyError: 'lost\\nkey' (details in {tmp_path}/errors.log)\n"
    )
    assert "KeyError" in (tmp_path / "errors.log").read_text()
    assert "Traceback" in (tmp_path / "errors.log").read_text()

    commands.configure(None, state=str(tmp_path / "none"))
    assert end(monkeypatch, KeyError("lost")) == 70
    assert "set PROMISSORY_DEBUG=1 for details" in capsys.readouterr().err

    monkeypatch.setenv("PROMISSORY_DEBUG", "1")
    assert end(monkeypatch, KeyError("lost")) == 70
    assert "Traceback" in capsys.readouterr().err


def test_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*COMMAND, "schema", "json", "exec"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_terminal_without_the_characters_ends_nothing() -> None:
    done = promissory("schema", "list", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0
    assert "exec/2" in done.stdout


# ---- on the live kernel


@pytest.fixture
def pins() -> Iterator[str]:
    folder = f"/sys/fs/bpf/promissory-test-{os.getpid()}"
    yield folder
    promissory("detach", PROMISSORY_PINS=folder)


@pytest.mark.kernel
def test_check_asks_the_kernel(tmp_path: Path, pins: str) -> None:
    done = promissory("check", "--json", "--state", str(tmp_path), PROMISSORY_PINS=pins)
    assert done.returncode == 0, done
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    for event in ("exec", "fork", "exit"):
        assert found[event]["status"] == "ok"
        assert "our own act came through" in found[event]["answer"]
    assert "90 ns" in found["exec_failed"]["advice"]
    assert not Path(pins).exists()


@pytest.mark.kernel
def test_check_fails_where_run_would(tmp_path: Path, pins: str) -> None:
    (tmp_path / "file").touch()
    done = promissory("check", "--json", "--state", f"{tmp_path}/file/state", PROMISSORY_PINS=pins)
    assert (done.returncode, done.stderr) == (1, "")
    found = {finding["what"]: finding["status"] for finding in json.loads(done.stdout)}
    assert (found["disk"], found["events"], found["root"]) == ("fail", "fail", "ok")


@pytest.mark.kernel
def test_attach_stays_and_detach_leaves_nothing(tmp_path: Path, pins: str) -> None:
    assert promissory("attach", PROMISSORY_PINS=pins, PROMISSORY_STATE=str(tmp_path)).stdout.startswith(
        "attached: exec (tracepoint), fork"
    )
    assert Path(pins, "ring_0").exists()
    assert promissory("attach", PROMISSORY_PINS=pins, PROMISSORY_STATE=str(tmp_path)).stdout.startswith(
        "handed over, generation 2: exec (tracepoint), fork"
    )
    assert "attached for another state folder" in complaint(
        "attach", status=1, PROMISSORY_PINS=pins, PROMISSORY_STATE=str(tmp_path / "other")
    )
    assert promissory("detach", PROMISSORY_PINS=pins, PROMISSORY_STATE=str(tmp_path)).stdout == "detached\n"
    assert not Path(pins).exists()
    assert (
        promissory("detach", PROMISSORY_PINS=pins, PROMISSORY_STATE=str(tmp_path)).stdout
        == f"nothing was attached in {pins}\n"
    )
