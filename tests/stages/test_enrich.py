"""enrich: what it learns, what it says, and what it must not claim to know."""

from __future__ import annotations

from typing import Any

import ormsgpack
import pytest

from pipeline.chunk import PROC_RING, event_id
from pipeline.event import Batch
from pipeline.redact import Redaction
from pipeline.stages.encode import Encode
from pipeline.stages.enrich import Enrich
from pipeline.stages.names import container_of, unit_of
from tests.batches import HOST, FixedAnswers, batch_of, event, lost

ID = "0123456789abcdef" * 4
INIT = event_id(PROC_RING, 1)


def processes(batch: Batch) -> list[dict[str, Any]]:
    """What records say of the process of each event."""
    (found,) = Encode(HOST, {}, Redaction())(batch)
    records = found.records["process"].values if len(batch) else []
    return [ormsgpack.unpackb(value)["process"] for value in records]


def through(enrich: Enrich, *events: dict[str, Any], size: int = 100) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for at in range(0, len(events), size):
        for batch in enrich(batch_of(events[at : at + size])):
            found += processes(batch)
    return found


def init() -> dict[str, Any]:
    return event("process", 1, ring=PROC_RING, parent_pid=0, executable=b"/sbin/init")


def family() -> list[dict[str, Any]]:
    """init → shell (an exec) → tool (an exec), and the tool's exit."""
    shell = event("exec", 10, executable=b"/bin/sh", parent_exec_id=INIT)
    tool = event("exec", 20, executable=b"/bin/tool", parent_exec_id=10)
    return [init(), shell, tool, event("exit", 30, exec_id=20, parent_exec_id=10)]


@pytest.mark.parametrize("size", [1, 2, 100])
def test_programs_and_ancestors_are_known_by_their_execs(size: int) -> None:
    found = through(Enrich(FixedAnswers()), *family(), size=size)
    last = found[-1]
    assert last["executable"] == "/bin/tool"
    assert last["parent"]["executable"] == "/bin/sh"
    assert last["ancestry"] == [
        {"exec_id": 10, "executable": "/bin/sh"},
        {"exec_id": INIT, "executable": "/sbin/init"},
    ]
    assert found[0]["parent"] is None
    assert found[0]["ancestry"] == []


def test_what_was_never_seen_is_unknown() -> None:
    nobody = event("fork", 1, exec_id=99, parent_exec_id=98)
    nothing = event("fork", 2)
    first, second = through(Enrich(FixedAnswers()), nobody, nothing)
    assert first["executable"] is None
    assert first["ancestry"] == [{"exec_id": 98, "executable": None}, None]
    assert second["parent"]["exec_id"] is None
    assert second["ancestry"] == [None]


def test_what_comes_to_be_known_later_is_told_from_then_on() -> None:
    fork = event("fork", 40, exec_id=20, parent_exec_id=10)
    enrich = Enrich(FixedAnswers())
    before, *_, after = through(enrich, fork, *family()[:3], fork)
    assert before["executable"] is None
    assert before["ancestry"] == [{"exec_id": 10, "executable": None}, None]
    assert after["executable"] == "/bin/tool"
    assert [item["executable"] for item in after["ancestry"]] == ["/bin/sh", "/sbin/init"]


def test_an_executable_that_is_not_whole_is_unknown() -> None:
    cut = event("exec", 10, executable=(9, b"/bin"), argv=b"a\0")
    gone = event("exec", 20, executable=b"/bin/sh", argv=b"a\0", hole=lost(1))
    whole = event("exec", 30, executable=b"/bin/sh", argv=b"a\0" * 300, hole=lost(2))
    assert [p["executable"] for p in through(Enrich(FixedAnswers()), cut, gone, whole)] == [
        None,
        None,
        "/bin/sh",
    ]


def test_a_thread_of_the_kernel_has_no_executable() -> None:
    assert through(Enrich(FixedAnswers()), event("process", 1, ring=PROC_RING))[0]["executable"] is None


def test_an_exec_that_failed_teaches_nothing() -> None:
    failed = event("exec_failed", 10, exec_id=5, executable=b"/bin/other", path=b"/bin/other")
    assert through(Enrich(FixedAnswers()), failed)[0]["executable"] is None


def test_the_table_is_bounded_and_what_it_forgot_is_unknown() -> None:
    execs = [event("exec", n, executable=b"/bin/%d" % n) for n in range(1, 200)]
    enrich = Enrich(FixedAnswers(), programs=20)
    through(enrich, *execs)
    forks = [event("fork", 1000 + n, exec_id=n) for n in (1, 100, 199)]
    assert [p["executable"] for p in through(enrich, *forks)] == [None, None, "/bin/199"]


def test_a_program_that_is_asked_for_is_not_forgotten() -> None:
    enrich = Enrich(FixedAnswers(), programs=20)
    events = [init()]
    for n in range(2, 200):
        events.append(event("exec", n, executable=b"/bin/%d" % n, parent_exec_id=INIT))
        events.append(event("fork", 1000 + n, exec_id=INIT, pid=1, comm=b"init"))
    assert through(enrich, *events)[-1]["executable"] == "/sbin/init"


def test_a_long_ancestry_says_that_it_goes_on() -> None:
    chain = [event("exec", n, executable=b"/bin/%d" % n, parent_exec_id=n - 1) for n in range(1, 40)]
    chain[0] |= {"parent_pid": 0}
    found = through(Enrich(FixedAnswers()), *chain)
    assert [item and item["exec_id"] for item in found[-1]["ancestry"]] == [*range(38, 22, -1), None]
    # The sixteenth of these is the first of all: nothing is missing.
    assert [item["exec_id"] for item in found[16]["ancestry"]] == list(range(16, 0, -1))


def test_names_are_asked_for_again_as_events_go_on() -> None:
    answers = FixedAnswers()
    enrich = Enrich(answers)
    fork = event("fork", 1, uid=1000)
    assert through(enrich, fork)[0]["user"] == "alice"
    answers.users[1000] = "bob"
    assert through(enrich, fork | {"time": fork["time"] + 20 * 10**9})[0]["user"] == "bob"


def test_text_that_is_not_utf8_stays_bytes() -> None:
    found = through(Enrich(FixedAnswers()), event("exec", 1, executable=b"/bin/\xff", comm=b"\xfe"))
    assert found[0]["executable"] == b"/bin/\xff"
    assert found[0]["comm"] == b"\xfe"


def test_unknown_numbers_have_no_names() -> None:
    (found,) = through(Enrich(FixedAnswers()), event("fork", 1, uid=4711, gid=4711, cgroup=4711))
    assert [found[key] for key in ("user", "group", "container", "unit")] == [None] * 4


def test_a_cgroup_gives_container_and_unit() -> None:
    answers = FixedAnswers({5: f"/system.slice/docker-{ID}.scope"})
    (found,) = through(Enrich(answers), event("fork", 1, cgroup=5))
    assert found["container"] == ID
    assert found["unit"] == f"docker-{ID}.scope"


@pytest.mark.parametrize(
    ("path", "container"),
    [
        (f"/docker/{ID}", ID),
        (f"/system.slice/docker-{ID}.scope", ID),
        (f"/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope", ID),
        (f"/kubepods/burstable/pod-1/{ID}", ID),
        (f"/kubepods.slice/crio-{ID}.scope/container", ID),
        (f"/machine.slice/libpod-{ID}.scope/container", ID),
        (f"/machine.slice/libpod-conmon-{ID}.scope", None),
        (f"/docker/{ID}/docker/{ID[::-1]}", ID[::-1]),
        ("/lxc.payload.web/system.slice", "web"),
        ("/lxc/web", "web"),
        (f"/system.slice/{ID[:63]}", None),
        (f"/system.slice/a{ID}", None),
        ("/user.slice/user-0.slice/session-1.scope", None),
        ("/", None),
    ],
)
def test_containers(path: str, container: str | None) -> None:
    assert container_of(path) == container


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/system.slice/sshd.service", "sshd.service"),
        ("/user.slice/user-0.slice/user@0.service/app.slice/mail.service", "mail.service"),
        ("/user.slice/user-0.slice/session-1.scope", "session-1.scope"),
        ("/system.slice/sshd.service/worker", "sshd.service"),
        ("/init.scope", "init.scope"),
        ("/system.slice", None),
        ("/", None),
    ],
)
def test_units(path: str, unit: str | None) -> None:
    assert unit_of(path) == unit


def test_an_empty_batch_passes() -> None:
    assert [len(batch) for batch in Enrich(FixedAnswers())(batch_of([]))] == [0]
