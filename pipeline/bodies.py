"""What each kind of event says in its line: the part behind the columns that all events have.

Between decoded records and render.py, which puts lines together.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final

from pipeline.record import DERIVED
from pipeline.shown import Part, escape, size, unknown

__all__ = ["Record", "body"]

Record = Mapping[str, Any]
PLAIN_WORD: Final = frozenset("@%+=:,./-_")
"""What may stand in an argument beside letters and digits without quotes, as in a shell."""
PROTOCOLS: Final = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp", socket.IPPROTO_ICMP: "icmp"}
SOCKETS: Final = {1: "stream", 2: "datagram", 5: "seqpacket"}
CALLS: Final = {1: "clone", 2: "unshare", 3: "setns"}
PROGRAMS: Final = re.findall(
    r"\w+",
    """unspec socket_filter kprobe sched_cls sched_act tracepoint xdp perf_event cgroup_skb cgroup_sock lwt_in
    lwt_out lwt_xmit sock_ops sk_skb cgroup_device sk_msg raw_tracepoint cgroup_sock_addr lwt_seg6local
    lirc_mode2 sk_reuseport flow_dissector cgroup_sysctl raw_tracepoint_writable cgroup_sockopt tracing
    struct_ops ext lsm sk_lookup syscall netfilter""",
)
"""Types of BPF programs, as linux/bpf.h numbers them."""
COMMON: Final = frozenset(item.path[0] for item in DERIVED)


def body(record: Record) -> Iterator[Part]:
    """What an event says, whatever its kind."""
    return BODIES.get(str(record["kind"]), _other)(record)


def _exec(record: Record) -> Iterator[Part]:
    yield escape(record.get("executable") or "?"), "bold"
    if record.get("interpreter"):
        yield f" (for {escape(record.get('path') or '?')})", ""
    yield from _arguments(record)


def _exec_failed(record: Record) -> Iterator[Part]:
    yield escape(record.get("path") or "?"), "bold"
    yield from _error(record)
    yield from _arguments(record)


def _arguments(record: Record) -> Iterator[Part]:
    arguments: Sequence[str | bytes] | None = record.get("argv")
    if arguments is None:
        return
    yield " ", ""
    for argument in arguments:
        yield f" {_quote(argument)}", ""


def _quote(argument: str | bytes) -> str:
    """An argument so that one can see where it begins and ends."""
    text = escape(argument)
    if text and all(c.isalnum() or c in PLAIN_WORD for c in text):
        return text
    return "'" + text.replace("'", "\\'") + "'"


def _fork(record: Record) -> Iterator[Part]:
    child = record["child"]
    yield f"→ {unknown(child['pid'])}", "bold"
    if child["ns_pid"] != child["pid"]:
        yield f" ({unknown(child['ns_pid'])} in its namespace)", ""


def _exit(record: Record) -> Iterator[Part]:
    number = record["signal"]
    if number:
        yield _signal(number), "bold red"
        if record["core"]:
            yield " (core dumped)", "red"
    else:
        yield f"exit {unknown(record['code'])}", "yellow" if record["code"] else ""


@cache
def _signal(number: int) -> str:
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"


def _memory(record: Record) -> Iterator[Part]:
    """E.g. "r-x /usr/lib/x.so +0x1000 200.0 KiB at 0x7f…", "rw- → rwx anonymous …"."""
    old = record.get("old_prot")
    yield (f"{_prot(old)} → " if old is not None else "") + _prot(record["prot"]), "bold"
    path = record["path"]
    yield f" {escape(path)}" if path else " anonymous", ""
    yield (
        (f" +{record['offset']:#x}" if record.get("offset") else "") + f" {size(record['length'] or 0)}",
        "dim",
    )
    if record["address"] is not None:
        yield f" at {_address(record['address'])}", "dim"
    yield from _error(record)


def _prot(bits: int | None) -> str:
    if bits is None:
        return "?"
    return "".join(letter if bits >> bit & 1 else "-" for bit, letter in enumerate("rwx"))


def _bind(record: Record) -> Iterator[Part]:
    yield _end(record, "local"), "bold"
    yield f" {_protocol(record)}", ""
    if record.get("backlog") is not None:
        yield f", backlog {record['backlog']}", ""
    yield from _error(record)


def _accept(record: Record) -> Iterator[Part]:
    yield f"{_end(record, 'local')} ← {_end(record, 'remote')}", "bold"
    yield f" {_protocol(record)}", ""
    yield from _error(record)


def _connect(record: Record) -> Iterator[Part]:
    yield f"→ {_end(record, 'remote')}", "bold"
    local = _end(record, "local")
    yield f" {_protocol(record)}" + (f" from {local}" if local != "?" else ""), ""
    if record.get("elapsed") is not None:
        yield f" after {record['elapsed'] / 1e6:.1f} ms", ""
    if record["errno"] == errno.EINPROGRESS:
        yield " under way", "yellow"
    else:
        yield from _error(record)


def _end(record: Record, side: str) -> str:
    """One end of a socket: 127.0.0.1:80, [::1]:80, /run/socket, @abstract."""
    path, address, port = (record[f"{side}_{what}"] for what in ("path", "address", "port"))
    if path:
        head, nul = (path[:1], b"\0") if isinstance(path, bytes) else (path[:1], "\0")
        return "@" + escape(path[1:]) if head == nul else escape(path)
    if address is None:
        return "?"
    host = f"[{address}]" if ":" in address else address
    return host if port is None else f"{host}:{port}"


def _protocol(record: Record) -> str:
    if record["family"] == socket.AF_UNIX:
        return f"unix {SOCKETS.get(record['type'], record['type'])}"
    return PROTOCOLS.get(record["protocol"]) or f"IP protocol {unknown(record['protocol'])}"


def _module(record: Record) -> Iterator[Part]:
    yield escape(record["name"] or "?"), "bold"
    if record.get("path"):
        yield f" from {escape(record['path'])}", ""
    if record.get("parameters"):
        yield f" {_quote(record['parameters'])}", ""
    if record.get("sig_ok") is False:
        yield " unsigned or badly signed", "bold red"
    yield from _error(record)


def _namespace(record: Record) -> Iterator[Part]:
    """E.g. "unshare: mnt 4026531841 → 4026532211"."""
    yield CALLS.get(record["call"], f"call {unknown(record['call'])}"), "bold"
    if record["child_pid"] is not None:
        yield f" → {record['child_pid']}", "bold"
    before, after = record["before"], record["after"]
    changed = [n for n in after if after[n] is not None and after[n] != before[n]]
    yield ": " + (", ".join(f"{n} {unknown(before[n])} → {after[n]}" for n in changed) or "as before"), ""
    yield from _error(record)


def _program(record: Record) -> Iterator[Part]:
    number = record["program_type"]
    name = PROGRAMS[number] if number is not None and number < len(PROGRAMS) else unknown(number)
    yield f"{name} {escape(record['name'] or '(no name)')}", "bold"
    if record["attach_to"]:
        yield f" at {escape(record['attach_to'])}", ""
    yield f" id {unknown(record['program_id'])} tag {unknown(record['tag'])}", "dim"


def _text(record: Record) -> Iterator[Part]:
    yield escape(record["symbol"] or _address(record["address"])), "bold"
    old, new = ((record[name] or b"").hex(" ") or "?" for name in ("old", "new"))
    yield f" {old} → {new}", ""


def _symbol(record: Record) -> Iterator[Part]:
    yield f"{'−' if record['unregister'] else '+'} {escape(record['name'] or '?')}", "bold"
    yield f" {_size(record['length'])} at {_address(record['address'])}", "dim"


def _size(number: int | None) -> str:
    return "?" if number is None else size(number)


def _address(number: int | None) -> str:
    return "?" if number is None else f"{number:#x}"


def _named(key: str) -> Callable[[Record], Iterator[Part]]:
    """A kind that says one thing."""

    def body(record: Record) -> Iterator[Part]:
        yield escape(record[key] or "?"), "bold"

    return body


def _audit(record: Record) -> Iterator[Part]:
    records = record["records"] or ()
    yield ", ".join(str(one["type"]) for one in records) or "?", "bold"
    yield f" serial {unknown(record['serial'])}", "dim"
    for one in records:
        for key, value in one["fields"].items():
            yield f" {key}={escape(str(value))}", ""


def _error(record: Record) -> Iterator[Part]:
    number = record.get("errno") or 0
    if number in errno.errorcode:
        yield f" {errno.errorcode[number]} ({os.strerror(number)})", "red"
    elif number:
        yield f" errno {number}", "red"


def _other(record: Record) -> Iterator[Part]:
    """A kind that is newer than this program: its own fields as they are."""
    for key, value in record.items():
        if key not in COMMON:
            yield f"{key}={escape(str(value))} ", ""


BODIES: Final[Mapping[str, Callable[[Record], Iterator[Part]]]] = {
    "exec": _exec,
    "process": _exec,
    "exec_failed": _exec_failed,
    "fork": _fork,
    "exit": _exit,
    "mmap": _memory,
    "mprotect": _memory,
    "bind": _bind,
    "listen": _bind,
    "accept": _accept,
    "connect": _connect,
    "connect_done": _connect,
    "module_load": _module,
    "module_unload": _module,
    "module_request": _named("name"),
    "namespace": _namespace,
    "bpf_load": _program,
    "bpf_unload": _program,
    "kernel_text": _text,
    "ksymbol": _symbol,
    "audit": _audit,
    "cgroup": _named("path"),
    "comm": _named("name"),
}
