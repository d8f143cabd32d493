"""The configuration and where it comes from: precedence, exact values, errors that a person can act on."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from pipeline.config import Config, default_ring_size
from pipeline.configure import load
from pipeline.errors import UserError

DEFAULT_FILE = Path(__file__).parent.parent / "config" / "promissory.toml"


def write(folder: Path, text: str) -> Path:
    path = folder / "test.toml"
    path.write_text(text)
    return path


def refused(
    flags: Mapping[str, Any] | None = None,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> str:
    with pytest.raises(UserError) as caught:
        load(flags, file, environ or {})
    assert caught.value.status == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, 'to = "file"\nfilter = "file"\nsurface = "perf"\n[ring]\nsize = "1 MiB"')
    environ = {"PROMISSORY_TO": "variable", "PROMISSORY_FILTER": "variable"}
    config = load({"to": "flag", "filter": None}, file, environ)
    assert (config.to, config.filter, config.surface) == ("flag", "variable", "perf")
    assert (config.ring.size, config.expiry) == (1 << 20, 0.5)


def test_tables_merge_key_by_key(tmp_path: Path) -> None:
    file = write(tmp_path, '[caps]\nargv = 100\npath = 200\n[host.labels]\na = "1"\nb = "2"')
    environ = {"PROMISSORY_CAPS__ARGV": "300", "PROMISSORY_HOST__LABELS__B": "3"}
    config = load(None, file, environ)
    assert (config.caps.argv, config.caps.path, config.caps.environment) == (300, 200, 256 << 10)
    assert config.host.labels == {"a": "1", "b": "3"}


def test_file_named_by_the_environment(tmp_path: Path) -> None:
    environ = {"PROMISSORY_CONFIG": str(write(tmp_path, "quiet = true")), "PROMISSORY_DEBUG": "1"}
    assert load(None, None, environ).quiet
    other = tmp_path / "other.toml"
    other.write_text("quiet = false")
    assert not load(None, other, environ).quiet


def test_defaults_are_those_of_the_issue() -> None:
    config = load(environ={})
    assert default_ring_size(16) == 16 << 20
    assert default_ring_size(17) == 4 << 20
    assert config.assembly == 64 << 20
    assert (config.caps.argv, config.caps.environment, config.caps.path) == (2 << 20, 256 << 10, 64 << 10)
    assert config.outbox.limit == config.log.limit == 4 << 30
    assert (config.outbox.full, config.shutdown.deadline) == ("block", 30)
    assert (config.topic.partitions, config.topic.max_record) == (12, 8 << 20)
    assert config.environment.enabled
    assert (config.budget.reserve, config.budget.share) == (0.125, 0.5)
    assert "PATH" in config.environment.allow


def test_default_file_shows_every_key_with_its_default() -> None:
    text = DEFAULT_FILE.read_text()
    assert load(None, DEFAULT_FILE, {}) == load(environ={})
    shown = "\n".join(
        line.removeprefix("# ")
        for line in text.splitlines()
        if not line.startswith("#") or re.match(r"# ([a-z_.]+ = |    |\])", line)
    )
    values = tomllib.loads(shown)
    assert len(load({"kafka": values.pop("kafka")}, environ={}).kafka) == 5
    values["ring"]["size"] = default_ring_size(1)
    assert Config.model_validate(values) == load({"ring": {"size": default_ring_size(1)}}, environ={})
    assert set(flat(values)) == {key for key in keys(Config) if key != "kafka"}


def flat(table: Mapping[str, Any], above: str = "") -> list[str]:
    found = []
    for key, value in table.items():
        is_table = isinstance(value, dict) and above + key != "host.labels"
        found += flat(value, f"{above}{key}.") if is_table else [above + key]
    return found


def keys(model: type[BaseModel], above: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        is_table = isinstance(inner, type) and issubclass(inner, BaseModel)
        found += keys(inner, f"{above}{name}.") if is_table else [above + name]  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16 MiB", 16 << 20),
        ("16MiB", 16 << 20),
        ("1.5 kib", 1536),
        ("2 GB", 2 * 10**9),
        ("7", 7),
        ("3 B", 3),
        (12, 12),
        ("1 TiB", 1 << 40),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert load({"assembly": text}, environ={}).assembly == size


@pytest.mark.parametrize(
    "text", ["", "x", "16 Mib/s", "-1", "0.3 B", True, 1.5, "1e3", "16 MiBB", [1], 1 << 63]
)
def test_what_is_no_size(text: object) -> None:
    assert "wanted: a size such as" in refused({"assembly": text})


@given(st.integers(0, (1 << 63) - 1))
def test_sizes_are_exact(size: int) -> None:
    assert load({"assembly": f"{size} B"}, environ={}).assembly == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500 ms", 0.5),
        ("20s", 20),
        ("20", 20),
        (3, 3),
        (0.25, 0.25),
        ("1.5 h", 5400),
        ("2 min", 120),
        ("10 us", 1e-5),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    config = load({"duration": text, "expiry": text}, environ={})
    assert (config.duration, config.expiry) == (seconds, seconds)


@pytest.mark.parametrize("text", ["0", "-5", "soon", "5 d", True, "1,5 s"])
def test_what_is_no_duration(text: object) -> None:
    assert "wanted: a duration above 0" in refused({"expiry": text})


def test_empty_texts_say_none(tmp_path: Path) -> None:
    file = write(tmp_path, 'to = "x"\nduration = 5\n[environment]\nallow = ["A"]')
    environ = {"PROMISSORY_TO": "", "PROMISSORY_DURATION": " ", "PROMISSORY_ENVIRONMENT__ALLOW": ""}
    config = load(None, file, environ)
    assert (config.to, config.duration, config.environment.allow) == (None, None, ())


def test_lists_in_flags_and_variables() -> None:
    environ = {"PROMISSORY_KERNEL__UIDS": "0, 1000", "PROMISSORY_REDACT__ARGV": "a{1,2}\n--password=.*"}
    config = load({"events": "exec,exit"}, environ=environ)
    assert config.events == ("exec", "exit")
    assert config.kernel.uids == (0, 1000)
    assert config.redact.argv == ("a{1,2}", "--password=.*")


def test_kafka_properties_however_they_are_written(tmp_path: Path) -> None:
    file = write(tmp_path, '[kafka]\nsecurity.protocol = "SSL"\n"ssl.ca.location" = "/ca"\nlog_level = 3')
    environ = {"PROMISSORY_KAFKA__SASL_PASSWORD": "secret", "PROMISSORY_KAFKA__SECURITY_PROTOCOL": "SASL_SSL"}
    assert load(None, file, environ).kafka == {
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": "/ca",
        "log_level": "3",
        "sasl.password": "secret",
    }


@pytest.mark.parametrize(
    ("text", "wrong", "nearest"),
    [
        ("filtr = 1", "filtr", "filter"),
        ("[rnig]\nsize = 1", "rnig", "ring"),
        ("[ring]\nsise = 1", "ring.sise", "ring.size"),
        ("partitions = 1", "partitions", "topic.partitions"),
        ("max_recrod = 1", "max_recrod", "topic.max_record"),
    ],
)
def test_unknown_key_in_a_file(tmp_path: Path, text: str, wrong: str, nearest: str) -> None:
    file = write(tmp_path, text)
    said = refused(None, file)
    assert said == f"unknown key {wrong} in {file}; did you mean {nearest} in {file}?"


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("PROMISSORY_FILTR", "PROMISSORY_FILTER"),
        ("PROMISSORY_RING__SISE", "PROMISSORY_RING__SIZE"),
        ("PROMISSORY_RNG", "PROMISSORY_RING"),
        ("PROMISSORY_RING_SIZE", "PROMISSORY_RING__SIZE"),
    ],
)
def test_unknown_key_in_the_environment(wrong: str, nearest: str) -> None:
    assert refused(environ={wrong: "1"}) == f"unknown key {wrong}; did you mean {nearest}?"


def test_unknown_key_like_none() -> None:
    said = refused(environ={"PROMISSORY_XYZZY": "1"})
    assert "the keys are to, state" in said
    assert "topic.max_record" in said


def test_a_table_and_a_value_in_the_environment() -> None:
    assert "PROMISSORY_RING is set as well" in refused(
        environ={"PROMISSORY_RING": "5", "PROMISSORY_RING__SIZE": "1"}
    )
    assert refused(environ={"PROMISSORY_RING": "5"}) == "PROMISSORY_RING is '5', wanted: a table"


@pytest.mark.parametrize(
    ("text", "key", "wanted"),
    [
        ("quiet = 5", "quiet", "true or false"),
        ('quiet = "maybe"', "quiet", "true or false"),
        ("state = 5", "state", "a path"),
        ("filter = 5", "filter", "a text"),
        ("events = 5", "events", "a list"),
        ("ring = 5", "ring", "a table"),
        ("kafka = 5", "kafka", "a table"),
        ("[host]\nlabels = { a = 5 }", "host.labels.a", "a text"),
        ("[topic]\npartitions = 0", "topic.partitions", "greater than or equal to 1"),
        ("[topic]\npartitions = 1.5", "topic.partitions", "a whole number"),
        ('[ring]\nsize = "3 MiB"', "ring.size", 'a power of two from "4 KiB" to "1 GiB"'),
        ('[caps]\nargv = "17 MiB"', "caps.argv", 'a size from 1 byte to "16 MiB"'),
        ("[kernel]\nuids = [4294967296]", "kernel.uids", "less than 4294967296"),
        ("[kernel]\nuids = [-1]", "kernel.uids", "greater than or equal to 0"),
        ('surface = "lms"', "surface", "one of 'auto', 'lsm', 'fexit', 'tracepoint', "),
        ('[redact]\nargv = ["("]', "redact.argv", "a regular expression"),
    ],
)
def test_wrong_value(tmp_path: Path, text: str, key: str, wanted: str) -> None:
    file = write(tmp_path, text)
    said = refused(None, file)
    assert said.startswith(f"{key} in {file} is ")
    assert f", wanted: {wanted}" in said


def test_the_culprit_is_named_where_it_was_set(tmp_path: Path) -> None:
    file = write(tmp_path, "[ring]\nsize = 4096")
    assert refused(None, file, {"PROMISSORY_RING__SIZE": "x"}).startswith("PROMISSORY_RING__SIZE is 'x'")
    assert refused({"duration": "x"}, file, {"PROMISSORY_DURATION": "5"}).startswith("--duration is 'x'")


def test_unknown_event_names_the_nearest() -> None:
    said = refused({"events": "exec,frok"})
    assert said.endswith("wanted: names that `promissory schema list` shows, or all; did you mean fork?")


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refused(None, tmp_path / "none.toml")
    assert "is no TOML" in refused(None, write(tmp_path, "a = "))
    (tmp_path / "test.toml").write_bytes(b"\xff")
    assert "is no TOML" in refused(None, tmp_path / "test.toml")


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError):
        load(environ={}).ring.size = 1
