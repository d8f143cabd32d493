"""Records as lines for eyes."""

import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len

from pipeline.render import line, plain
from pipeline.schema import by_name
from pipeline.shown import escape, size
from tests.batches import event
from tests.stages.test_encode import any_event, decoded

NOON = int(time.mktime((2026, 1, 31, 12, 0, 0, 0, 0, -1))) * 10**9 + 123_456_789


def record(kind: str = "exec", **own: Any) -> dict[str, Any]:
    process = {"pid": 1234, "uid": 1000, "user": "alice", "comm": "bash"}
    return {"schema": f"{kind}/1", "kind": kind, "time": NOON, "process": process, **own}


def exec_record(argv: list[str | bytes] | None, **own: Any) -> dict[str, Any]:
    return record(executable="/usr/bin/ls", path="/bin/ls", interpreter=None, argv=argv, **own)


def text(record: dict[str, Any], width: int | None = None) -> str:
    return plain(line(record, width))


def test_columns_stand_under_each_other() -> None:
    exec_line = text(exec_record(["ls", "-l"]))
    exit_line = text(record("exit", code=3, signal=0, core=False))
    assert (
        exec_line
        == "2026-01-31 12:00:00.123 exec              1234 alice     bash             /usr/bin/ls  ls -l"
    )
    assert exec_line.index("/usr") == exit_line.index("exit 3")
    assert plain(line(exec_record([]), dated=False)).startswith("12:00:00.123 exec ")


def test_kinds() -> None:
    assert text(record("exit", code=0, signal=9, core=True)).endswith("killed by SIGKILL (core dumped)")
    assert text(record("exit", code=0, signal=63, core=False)).endswith("killed by signal 63")
    child = {"pid": 77, "ns_pid": 77}
    assert text(record("fork", child=child)).endswith("→ 77")
    assert text(record("fork", child=child | {"ns_pid": 2})).endswith("→ 77 (2 in its namespace)")
    failed = text(record("exec_failed", path="/x", argv=["x"], errno=13))
    assert failed.endswith("/x EACCES (Permission denied)  x")
    script = exec_record(["sh", "a.sh"]) | {"interpreter": "/bin/sh", "path": "./a.sh"}
    assert "(for ./a.sh)" in text(script)
    assert text(exec_record(["x"], memfd=True, deleted=True)).endswith("⟨memfd⟩ ⟨deleted⟩")
    assert text(record("novel", colour="red")).endswith("colour=red ")


def shown(kind: str, **values: Any) -> str:
    """What an event says behind the columns, through the real encoder."""
    (made,) = decoded(event(kind, 1, **values))
    return text(made).partition(" sh               ")[2]


V4, V6 = b"\4\0\0\0\x7f\0\0\1", b"\6\0\0\0" + bytes(15) + b"\1"


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (
            "mmap",
            {"prot": 5, "path": b"/usr/lib/x.so", "offset": 4096, "length": 8192, "address": 0x7F0000},
            "r-x /usr/lib/x.so +0x1000 8.0 KiB at 0x7f0000",
        ),
        ("mmap", {"prot": 7, "length": 10, "errno": 13}, "rwx anonymous 10 B EACCES (Permission denied)"),
        (
            "mprotect",
            {"prot": 5, "old_prot": 3, "length": 4096, "address": 1, "path": b"memfd:x", "memfd": 1},
            "rw- → r-x memfd:x 4.0 KiB at 0x1 ⟨memfd⟩",
        ),
        ("bind", {"family": 2, "protocol": 17, "local_address": V4, "local_port": 53}, "127.0.0.1:53 udp"),
        ("bind", {"family": 1, "type": 1, "local_path": b"\0a\0b"}, "@a\\x00b unix stream"),
        ("bind", {"family": 1, "type": 2, "local_path": b"\0\xff"}, "@\\xff unix datagram"),
        (
            "listen",
            {"family": 10, "protocol": 6, "local_address": V6, "local_port": 80, "backlog": 5},
            "[::1]:80 tcp, backlog 5",
        ),
        (
            "accept",
            {
                "family": 2,
                "protocol": 6,
                "local_address": V4,
                "remote_address": V4,
                "local_port": 1,
                "remote_port": 2,
            },
            "127.0.0.1:1 ← 127.0.0.1:2 tcp",
        ),
        (
            "connect",
            {"family": 2, "protocol": 6, "remote_address": V4, "remote_port": 80, "errno": 115},
            "→ 127.0.0.1:80 tcp under way",
        ),
        (
            "connect",
            {"family": 1, "type": 1, "remote_path": b"/run/x", "errno": 111},
            "→ /run/x unix stream ECONNREFUSED (Connection refused)",
        ),
        (
            "connect_done",
            {
                "family": 2,
                "protocol": 6,
                "remote_address": V4,
                "remote_port": 80,
                "local_address": V4,
                "local_port": 9,
                "elapsed": 1_500_000,
            },
            "→ 127.0.0.1:80 tcp from 127.0.0.1:9 after 1.5 ms",
        ),
        ("module_load", {"name": b"dummy", "path": b"/lib/d.ko", "sig_ok": 255}, "dummy from /lib/d.ko"),
        (
            "module_load",
            {"name": b"dummy", "parameters": b"a=b c", "sig_ok": 0, "errno": 129},
            "dummy 'a=b c' unsigned or badly signed EKEYREJECTED (Key was rejected by service)",
        ),
        ("module_unload", {"name": b"dummy"}, "dummy"),
        ("module_request", {"name": b"net-pf-38"}, "net-pf-38"),
        (
            "namespace",
            {"call": 2, "before_mnt": 1, "after_mnt": 7, "before_net": 3, "after_net": 3},
            "unshare: mnt 1 → 7",
        ),
        ("namespace", {"call": 1, "child_pid": 9, "after_pid": 7}, "clone → 9: pid ? → 7"),
        (
            "bpf_load",
            {"program_type": 2, "name": b"p", "program_id": 7, "tag": bytes(8), "attach_to": b"f"},
            "kprobe p at f id 7 tag 0000000000000000",
        ),
        ("bpf_unload", {"program_type": 99}, "99 (no name) id 0 tag 0000000000000000"),
        ("kernel_text", {"symbol": b"f+0x5", "old": b"\x90\x90", "new": b"\xe8\0"}, "f+0x5 90 90 → e8 00"),
        ("ksymbol", {"name": b"bpf_prog_1", "length": 12, "address": 16}, "+ bpf_prog_1 12 B at 0x10"),
        ("ksymbol", {"name": b"bpf_prog_1", "unregister": 1}, "− bpf_prog_1 0 B at 0x0"),
        ("cgroup", {"path": b"/a\nb"}, "/a\\nb"),
        ("comm", {"name": b"worker"}, "worker"),
    ],
)
def test_what_each_kind_says(kind: str, values: dict[str, Any], said: str) -> None:
    assert shown(kind, **values) == said


@given(st.data())
def test_no_record_is_too_odd_for_a_line(data: st.DataObject) -> None:
    """Whatever values it has, and with all of its own that are single values nil."""
    (made,) = decoded(data.draw(any_event(1)))
    schema = by_name()[made["kind"]]
    assert text(made).isprintable()
    hidden = {field.name for field in schema.fields if len(field.path) == 1} | {
        p.name for p in schema.promises
    }
    assert text(made | {name: None for name in hidden if name in made}).isprintable()


def test_unknown_is_a_question_mark() -> None:
    nobody = record(executable=None, argv=None)
    nobody["process"] |= {"user": None, "uid": 4711}
    assert "  4711 " not in text(nobody)
    assert " 4711 " in text(nobody)
    assert text(nobody).endswith(" ?")


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain", "plain"),
        ("日本", "日本"),
        ("a\nb\x1b[31m\0", "a\\nb\\x1b[31m\\x00"),
        ("back\\slash", "back\\\\slash"),
        ("\u202eevil", "\\u202eevil"),
        (b"\xff\xfeok", "\\xff\\xfeok"),
        (b"\x80", "\\x80"),
        ("\x80", "\\u0080"),
        (b"\xc3\xa4", "ä"),
        ("", ""),
    ],
)
def test_escape(raw: str | bytes, shown: str) -> None:
    assert escape(raw) == shown


@given(st.one_of(st.text(), st.binary()))
def test_what_is_escaped_is_printable_and_can_be_told_apart(raw: str | bytes) -> None:
    shown = escape(raw)
    assert shown.isprintable() or not shown
    if isinstance(raw, bytes):
        assert unescape(shown) == raw


def unescape(shown: str) -> bytes:
    """An independent reading: characters are UTF-8, \\xNN above 127 is a byte."""
    out = b""
    at = 0
    while at < len(shown):
        if shown[at] != "\\":
            out += shown[at].encode()
            at += 1
            continue
        code = shown[at + 1]
        length = {"x": 4, "u": 6, "U": 10}.get(code, 2)
        piece = shown[at : at + length]
        value = ord(piece.encode().decode("unicode_escape"))
        out += bytes([value]) if code == "x" and value > 127 else chr(value).encode()
        at += length
    return out


def test_arguments_show_where_they_begin_and_end() -> None:
    assert text(exec_record(["a b", "", "it's", b"\xff", "x=1"])).endswith("  'a b' '' 'it\\'s' '\\xff' x=1")


@given(st.integers(60, 200), st.lists(st.text(max_size=40), max_size=20))
@example(60, ["\u0300" + "x" * 30])
def test_a_line_fits_its_terminal(width: int, argv: list[str]) -> None:
    shown = text(exec_record(list(argv)), width)
    fixed = cell_len(text(exec_record(None)).removesuffix("/usr/bin/ls"))
    assert cell_len(shown) <= max(width, fixed + 32)
    whole = text(exec_record(list(argv)))
    assert shown == whole or shown.endswith("⟨view cut⟩")


def test_huge_arguments_are_cut_in_the_view_alone() -> None:
    huge = exec_record(["日" * 1_000_000])
    assert "日日日日" in text(huge, 120)
    assert text(huge, 120).endswith(" ⟨view cut⟩")
    assert cell_len(text(huge, 120)) == 120
    assert len(text(huge)) > 1_000_000


def test_unsettled_values_are_marked_even_where_the_view_is_cut() -> None:
    unsettled = {
        "argv": {"state": "lost", "have": 1258291, "of": 2 << 20, "chunks": [3, 4]},
        "path": {"state": "fault", "have": 0, "of": None, "chunks": []},
        "cwd": {"state": "capped", "have": 10, "of": 20, "chunks": []},
    }
    shown = text(exec_record(["x" * 500], unsettled=unsettled), 220)
    marks = [
        "⟨view cut⟩",
        "⟨argv: lost 2 chunks, 1.2 of 2.0 MiB⟩",
        "⟨path: fault, 0 B of unknown⟩",
        "⟨cwd: capped, 10 of 20 B⟩",
    ]
    assert shown.endswith(" ".join(marks))
    unsettled["argv"]["chunks"] = [3]
    assert "lost 1 chunk," in text(exec_record([], unsettled=unsettled))


def test_sizes() -> None:
    assert [size(0), size(1023), size(1024), size(16 << 20), size(3 << 30)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "16.0 MiB",
        "3.0 GiB",
    ]
