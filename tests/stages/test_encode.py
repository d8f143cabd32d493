"""encode, against plain dicts (tests/records.py) read back by a msgpack that is not the one that wrote
them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.chunk import CAPPED, CUT, PROC_RING, REDACTED
from pipeline.event import UNKNOWN, Encoded, Hole
from pipeline.redact import Redaction
from pipeline.schema import Surface, by_name, by_number
from pipeline.stages import encode as encode_module
from pipeline.stages.encode import Encode
from pipeline.stages.enrich import Enrich
from tests.batches import BOOT, HOST, FixedAnswers, batch_of, event, lost
from tests.records import plain

SURFACES = dict.fromkeys(by_name(), "anywhere") | {"process": "proc"}
"""Kind → a surface that shows everything."""


def encoder(**options: Any) -> Encode:
    return Encode(HOST, SURFACES, options.pop("redaction", Redaction(["PATH"])), **options)


def encoded(*events: dict[str, Any], encode: Encode | None = None) -> Encoded:
    (batch,) = Enrich(FixedAnswers())(batch_of(events))
    (found,) = (encode or encoder())(batch)
    return found


def decoded(*events: dict[str, Any], encode: Encode | None = None) -> list[dict[str, Any]]:
    families = encoded(*events, encode=encode).records.values()
    found = [ormsgpack.unpackb(value) for family in families for value in family.values]
    return sorted(found, key=lambda record: record["sequence"])


NO_START = 2**64 - 1

u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
times = st.integers(0, 2**62)
comms = st.binary(max_size=15).map(lambda name: name.replace(b"\0", b"?"))
texts = st.one_of(st.text(max_size=300).map(str.encode), st.binary(max_size=20)).map(
    lambda data: data.replace(b"\0", b"?")
)
ips = st.one_of(
    st.just(b""),
    st.binary(min_size=4, max_size=4).map(lambda address: b"\4\0\0\0" + address),
    st.binary(min_size=16, max_size=16).map(lambda address: b"\6\0\0\0" + address),
)
strings = st.lists(texts, max_size=20).map(lambda items: b"".join(item + b"\0" for item in items))
variables = st.lists(
    st.one_of(texts, texts.map(lambda value: b"PATH=" + value), texts.map(lambda value: b"NAME=" + value)),
    max_size=8,
).map(lambda items: b"".join(item + b"\0" for item in items))


@st.composite
def any_event(draw: st.DrawFn, sequence: int) -> dict[str, Any]:
    kind = draw(st.sampled_from(sorted(by_name().keys() - {"audit"})))  # test_audit_text has that one
    schema = by_name()[kind]
    values: dict[str, Any] = {}
    for field in schema.fields:
        known = {"u16": u16, "u32": u32, "comm": comms, "ip": ips, "tag": st.binary(min_size=8, max_size=8)}
        known["u64"] = times if field.unit.startswith("ns") else u64
        strategy = known.get(field.type, st.booleans())
        if field.nil is not None:
            unknown = field.nil.to_bytes(2, "little") if field.type == "comm" else field.nil
            strategy = st.one_of(strategy, st.just(unknown))
        values[field.name] = draw(strategy)
    for promise in schema.promises:
        kinds = {"argv": strings, "environment": variables}
        values[promise.name] = draw(kinds.get(promise.name, texts))
    # An event that is its own exec's teaches what that runs: test_enrich looks at that.
    values["exec_id"] |= 1 << 61
    ring = PROC_RING if kind == "process" else draw(st.integers(0, 3))
    values["parent_pid"] = draw(st.one_of(st.just(0), u32))
    return event(kind, sequence, ring, time=draw(times), **values)


@given(st.data())
def test_records_are_what_plain_dicts_say(data: st.DataObject) -> None:
    events = [data.draw(any_event(sequence)) for sequence in range(1, data.draw(st.integers(1, 12)))]
    found = encoded(*events)
    assert len(found) == len(events)
    rows = {family: iter(range(len(events))) for family in found.records}
    for given_event in events:
        family = by_name()[given_event["kind"]].family
        records, row = found.records[family], next(rows[family])
        # Nothing is known of these programs but that there are parents.
        unknown: list[Any] = [None]
        if given_event["parent_exec_id"]:
            unknown = [{"exec_id": given_event["parent_exec_id"], "executable": None}, None]
        kernels = not given_event["parent_pid"] and given_event["parent_start"] != NO_START
        ancestry = [] if kernels else unknown if given_event["parent_pid"] else [None]
        unit = "sshd.service" if given_event["cgroup"] == 7 else None
        surface = "proc" if given_event["kind"] == "process" else SURFACES[given_event["kind"]]
        expected = plain(given_event, {"ancestry": ancestry, "unit": unit}, surface)
        record = ormsgpack.unpackb(records.values[row])
        assert record == expected
        assert records.keys[row] == (expected["process"]["id"] or BOOT).encode()
        assert records.times[row] == expected["time"] // 10**6


@pytest.mark.parametrize(
    ("ip", "text"),
    [
        (b"", None),
        (b"\4\0\0\0\x7f\0\0\1", "127.0.0.1"),
        (b"\4\0\0\0", "0.0.0.0"),
        (b"\6\0\0\0", "::"),
        (b"\6\0\0\0" + bytes(15) + b"\1", "::1"),
        (b"\6\0\0\0\x20\1\x0d\xb8" + bytes(11) + b"\x0a", "2001:db8::a"),
        (b"\6\0\0\0" + bytes(10) + b"\xff\xff\x7f\0\0\1", "::ffff:127.0.0.1"),
    ],
)
def test_addresses_are_texts(ip: bytes, text: str | None) -> None:
    first, second = decoded(event("bind", 1, remote_address=ip, local_port=80), event("bind", 2))
    assert (first["remote_address"], first["local_address"], first["local_port"]) == (text, None, 80)
    assert second["remote_address"] is None


def test_a_tag_is_hexadecimal() -> None:
    (record,) = decoded(event("bpf_load", 1, tag=b"\0\x12\xab\xff\0\0\0\1", name=b"prog"))
    assert (record["tag"], record["name"], record["attach_to"]) == ("0012abff00000001", "prog", None)


def test_what_a_surface_does_not_show_is_nil_whatever_stands_there(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = dict(by_number())
    for name, without in (
        ("connect", ("net_ns", "local_address", "local_path")),
        ("exec", ("ns_pid", "memfd", "path", "argv", "environment")),
    ):
        schema = by_name()[name]
        kinds[schema.number] = replace(schema, surfaces=(Surface("anywhere", without=without),))
    monkeypatch.setattr(encode_module, "by_number", lambda: kinds)
    ip = b"\4\0\0\0\x0a\0\0\1"
    told: dict[str, Any] = {"net_ns": 5, "local_address": ip, "local_path": b"x", "remote_path": b"y"}
    connect, exec_, broken = decoded(
        event("connect", 1, remote_address=ip, errno=1, **told),
        event("exec", 2, memfd=1, path=b"/p", argv=b"a\0", environment=b"A=b\0", cwd=b"/"),
        event("exec", 3, memfd=1, path=(5, b"/p"), argv=b"a\0", cwd=(5, b"/")),
    )
    assert [connect[name] for name in ("net_ns", "local_address", "local_path")] == [None] * 3
    assert [connect[name] for name in ("remote_address", "remote_path", "errno")] == ["10.0.0.1", "y", 1]
    for record in (exec_, broken):
        assert [record[name] for name in ("memfd", "path", "argv", "environment")] == [None] * 4
        assert (record["process"]["ns_pid"], record["process"]["pid"], record["cwd"]) == (None, 100, "/")
    assert "unsettled" not in exec_
    assert broken["unsettled"].keys() == {"cwd"}


def test_a_memory_that_forgets_changes_nothing() -> None:
    events = [
        event(
            "exec",
            n,
            argv=b"a\0%d\0" % (n % 3),
            environment=b"A=%d\0PATH=%d\0" % (n % 5, n % 7),
            path=b"p%d" % n,
        )
        for n in range(1, 200)
    ]
    whole = encoded(*events)
    small = encoder(memory=600)
    batches = [encoded(*events[at : at + 7], encode=small) for at in range(0, len(events), 7)]
    values = [value for batch in batches for value in batch.records["process"].values]
    assert values == whole.records["process"].values


def test_kinds_keep_their_order_and_are_counted() -> None:
    events = [event(kind, n) for n, kind in enumerate(["exit", "fork", "exec", "fork", "process", "exit"], 1)]
    found = encoded(*events)
    records = [ormsgpack.unpackb(value) for value in found.records["process"].values]
    assert [record["sequence"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert found.counts[[1, 3, 4, 5]].tolist() == [1, 2, 2, 1]
    assert found.time == (records[0]["time"], records[-1]["time"])


def test_an_empty_batch_passes() -> None:
    found = encoded()
    assert (len(found), found.counts.sum(), found.records) == (0, 0, {})


def test_promises_that_are_whole_say_nothing_of_being_unsettled() -> None:
    (record,) = decoded(event("process", 1, argv=b"\0"))
    assert "unsettled" not in record
    assert "redacted" not in record
    assert record["argv"] == [""]
    assert record["environment"] == []
    assert record["cwd"] is None


def test_a_hole_settles_what_it_touches_and_nothing_else() -> None:
    argv = b"first\0" + b"x" * 600 + b"\0"
    # Parts hold 208 bytes each: the second part, bytes 208 to 415, lies within argv.
    (record,) = decoded(event("exec", 1, path=b"/p", argv=argv, environment=b"PATH=/bin\0", hole=lost(2)))
    assert record["path"] == "/p"
    assert record["argv"] == ["first", "x" * (208 - 8)]
    assert record["environment"] == ["PATH=/bin"]
    assert record["unsettled"] == {
        "argv": {"state": "lost", "have": len(argv) - 208, "of": len(argv), "chunks": [2]}
    }


def test_nothing_of_a_secret_comes_through_a_hole() -> None:
    environment = b"PATH=/bin\0TOKEN=" + b"s" * 600 + b"\0PATH=/late\0"
    (record,) = decoded(event("exec", 1, environment=environment, hole=lost(2)))
    assert record["environment"] == ["PATH=/bin", "TOKEN=***"]
    (record,) = decoded(event("exec", 1, path=b"p" * 204, environment=environment, hole=lost(2)))
    # The hole begins within the name: PATH. What stands there may be anything.
    assert record["environment"] == ["***"]
    assert record["unsettled"]["environment"]["state"] == "lost"
    (record,) = decoded(event("exec", 1, environment=environment, hole=lost(1)))
    assert record["environment"] is None
    assert b"sss" not in ormsgpack.packb(record)


@pytest.mark.parametrize(
    ("values", "state", "have", "of"),
    [
        ({"argv": (1000, b"a\0b")}, "capped", 3, 1000),
        ({"argv": (UNKNOWN, b"a\0b")}, "capped", 3, None),
        ({"argv": (1000, b"a\0b"), "faults": 1 << 4}, "fault", 3, 1000),
        ({"argv": b"a\0b", "faults": 1 << 4}, "fault", 3, 3),
        ({"argv": (3, b"a\0b"), "hole": Hole("expired", np.array([1]))}, "expired", 0, 3),
    ],
)
def test_each_state_is_told(values: dict[str, Any], state: str, have: int, of: int | None) -> None:
    (record,) = decoded(event("exec", 1, **values))
    assert record["unsettled"] == {
        "argv": {"state": state, "have": have, "of": of, "chunks": [1] if state == "expired" else []}
    }
    assert record["argv"] == (["a", "b"] if have else None)


@pytest.mark.parametrize(("flag", "state"), [(CUT, "fault"), (CAPPED, "capped")])
def test_an_event_that_ended_early(flag: int, state: str) -> None:
    batch = batch_of(
        [event("exec", 1, path=b"/p", argv=b"a\0" * 300, environment=b"PATH=/bin\0", flags_=flag)]
    )
    batch.size[0] = 208
    (batch,) = Enrich(FixedAnswers())(batch)
    (found,) = encoder()(batch)
    record = ormsgpack.unpackb(found.records["process"].values[0])
    assert record["path"] == "/p"
    assert record["argv"] == ["a"] * 103
    assert record["environment"] is None
    assert {name: how["state"] for name, how in record["unsettled"].items()} == {
        "argv": state,
        "environment": state,
    }


def test_a_command_line_that_was_masked_before_says_so() -> None:
    (record,) = decoded(event("process", 1, argv=b"login\0--password=***\0", flags_=REDACTED))
    assert record["argv"] == ["login", "--password=***"]
    assert record["redacted"] == ["argv"]
    assert "unsettled" not in record


def test_data_that_is_not_there_is_never_taken_from_a_neighbour() -> None:
    events = [event("exec", 1, path=b"/p", argv=b"a\0b\0"), event("exec", 2, path=b"/neighbour")]
    batch = batch_of(events)
    batch.size[0] -= 2
    (batch,) = Enrich(FixedAnswers())(batch)
    (found,) = encoder()(batch)
    record = ormsgpack.unpackb(found.records["process"].values[0])
    assert record["argv"] == ["a"]
    assert record["unsettled"]["argv"]["have"] == 2


def test_unsettled_events_are_like_others_in_all_else() -> None:
    whole = event("exec", 1, uid=1000, cgroup=7, argv=b"a\0", path=b"/p", loginuid=2**32 - 1)
    (expected,) = decoded(whole)
    (record,) = decoded(whole | {"argv": (5, b"a\0")})
    del record["unsettled"]
    assert record == expected


def test_an_environment_that_is_switched_off_is_nil_and_not_unsettled() -> None:
    encode = encoder(redaction=Redaction(environment=False))
    events = [event("exec", 1, argv=b"a\0"), event("exec", 2, argv=(9, b"a\0"), environment=(7, b""))]
    settled, unsettled = decoded(*events, encode=encode)
    assert settled["environment"] is None
    assert "unsettled" not in settled
    assert unsettled["environment"] is None
    assert unsettled["unsettled"].keys() == {"argv"}


def test_a_masked_command_line_says_so() -> None:
    encode = encoder(redaction=Redaction(argv=["(?<=--password=).*"]))
    events = [event("exec", 1, argv=b"a\0--password=x\xff\0"), event("exec", 2, argv=b"a\0b\0")]
    masked, other = decoded(*events, encode=encode)
    assert masked["argv"] == ["a", "--password=***"]
    assert masked["redacted"] == ["argv"]
    assert "redacted" not in other


@pytest.mark.parametrize("limit", [1200, 2000, 5000])
def test_a_record_over_the_limit_is_cut_and_its_neighbours_are_not(limit: int) -> None:
    long = event("exec", 2, argv=b"y" * 9000 + b"\0", path=b"/p", environment=b"A=b\0" * 200)
    small = event("exec", 1, argv=b"a\0")
    encode = encoder(limits={"process": limit})
    found = encoded(small, long, small | {"sequence": 3}, encode=encode).records["process"]
    sizes = [len(key) + len(value) for key, value in zip(found.keys, found.values, strict=True)]
    assert max(sizes) <= limit
    first, cut, last = (ormsgpack.unpackb(value) for value in found.values)
    assert "unsettled" not in first
    assert "unsettled" not in last
    how = cut["unsettled"]["argv"]
    assert how["state"] == "capped"
    assert how["of"] == 9001
    assert sum(map(len, cut["argv"] or [])) == how["have"] < 9001
    assert cut["path"] == "/p"
    if limit == 5000:
        # It keeps what fits.
        assert sizes[1] > limit - 200
        assert cut["unsettled"].keys() == {"argv"}


def test_an_environment_of_long_values_is_cut_too() -> None:
    environment = b"".join(b"NAME_%d=" % n + b"v" * 900 + b"\0" for n in range(200))
    encode = encoder(limits={"process": 2000})
    found = encoded(event("exec", 1, argv=b"a\0", environment=environment), encode=encode).records["process"]
    assert len(found.keys[0]) + len(found.values[0]) <= 2000
    record = ormsgpack.unpackb(found.values[0])
    assert record["argv"] == ["a"]
    assert record["unsettled"]["environment"]["state"] == "capped"
