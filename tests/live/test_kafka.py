"""From this kernel into a real Apache Kafka, read back by programs that are not ours: kcat and ormsgpack."""

from __future__ import annotations

import io
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import ormsgpack
import pytest

from tests.broker import Broker
from tests.kernel_ring import boottime
from tests.live.run import PATIENCE, Live, Record, eventually
from tests.live.test_run import executed, marked, numbers, place, storm
from tests.live.witness import as_record, execute
from tests.told import complete_until, kinds_lost, numbers_lost

pytestmark = [pytest.mark.kernel, pytest.mark.kafka]


@dataclass(frozen=True, order=True)
class Frame:
    """One record of a topic, as kcat prints it."""

    partition: int
    offset: int
    key: bytes
    value: bytes

    @property
    def record(self) -> Record:
        found: Record = ormsgpack.unpackb(self.value)
        return found


def frames(kafka: Broker, topic: str) -> list[Frame]:
    """All of a topic, by partition and offset."""
    # Numbers as text, each with a blank behind it; then key and value, each behind its length.
    command = ["kcat", "-q", "-b", kafka.address, "-t", topic, "-C", "-e", "-f", "%p %o %K %k%S %s"]
    said = io.BytesIO(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)

    def number() -> int:
        return int(b"".join(iter(partial(said.read, 1), b" ")))

    found, end = [], len(said.getbuffer())
    while said.tell() < end:
        partition, offset = number(), number()
        key = said.read(number())
        found.append(Frame(partition, offset, key, said.read(number())))
    return sorted(found)


def test_what_others_read_is_what_was_executed(
    make_live: Callable[..., Live], kafka: Broker, acts: bytes
) -> None:
    to = f"kafka://{kafka.address}/others"
    live = make_live(redact__argv="token=[^ ]+")
    live.start("--to", to, events="process,exec,exec_failed,fork,exit")
    argvs = [
        [b"acts", b"one"],
        [b"acts", b"", b"\xff\xfe", b"a\nb"],
        [b"acts", b"x" * 100_000],
        [b"acts", b"login", b"token=hunter2"],
    ]
    done = [execute(acts, argv, [b"SECRET=hunter2", b"LANG=C"]) for argv in argvs]
    count = executed(storm(acts, b"others", 200, 0))
    assert live.stop() == 0, live.said()
    ledger = live.ledger()
    assert ledger["balanced"]
    assert ledger["lost"] == ledger["in_outbox"] == ledger["in_flight"] == 0

    found = frames(kafka, "others.process")
    assert len(found) == ledger["acknowledged"]
    assert not [f for f in found if b"=hunter2" in f.value]
    records = [frame.record for frame in found]
    assert all(frame.key.decode() == r["process"]["id"] for frame, r in zip(found, records, strict=True))
    # Records of one process lie in one partition.
    assert len({(f.key, f.partition) for f in found}) == len({f.key for f in found})
    execs = {r["process"]["pid"]: r for r in records if r["kind"] == "exec"}
    for act, argv in zip(done, argvs, strict=True):
        record = execs[act.pid]
        shown = [as_record(a) for a in argv]
        if b"token=hunter2" in argv:
            shown[-1] = "***"
            assert record["redacted"] == ["argv"]
        assert record["argv"] == shown
        assert record["environment"] == ["SECRET=***", "LANG=C"]
    assert sorted(numbers(marked(records, "others"))) == list(range(count))

    again = live.command("replay", to, f"kafka://{kafka.address}/replayed")
    assert again.returncode == 0, again.stderr
    copies = frames(kafka, "replayed.process")
    assert sorted((f.partition, f.key, f.value) for f in copies) == sorted(
        (f.partition, f.key, f.value) for f in found
    )


def test_killed_runs_into_kafka(make_live: Callable[..., Live], kafka: Broker, acts: bytes) -> None:
    to = f"kafka://{kafka.address}/killed"
    live = make_live()
    live.start("--to", to, events="exec,exit")
    running = storm(acts, b"kafka", 600)
    for _ in range(3):
        time.sleep(0.2)
        live.stop(signal.SIGKILL)
        assert live.ledger()["balanced"], "while nobody runs"
        live.start("--to", to, events="exec,exit")
    count = executed(running)
    eventually(lambda: live.ledger()["in_flight"] == 0, "everything to be acknowledged")
    assert live.stop() == 0, live.said()
    ledger = live.ledger()
    assert ledger["balanced"]
    assert ledger["losses"] == []
    found = marked([frame.record for frame in frames(kafka, "killed.process")], "kafka")
    assert sorted(set(numbers(found))) == list(range(count))
    # What came twice is the same record twice.
    assert len({place(r) for r in found}) == count
    assert live.command("detach", "--state", str(live.state)).returncode == 0


def test_losses_and_heartbeats_are_topics_too(
    make_live: Callable[..., Live], kafka: Broker, acts: bytes
) -> None:
    """A ring overflows while nobody reads: what the topic lacks is in the loss topic, to the number."""
    settings = {"ring__size": "64 KiB", "budget__reserve": "0", "heartbeat": "500 ms"}
    live = make_live(**settings, environment__enabled="false")
    live.start("--to", f"kafka://{kafka.address}/lossy", events="exec,fork,exit")
    assert live.process
    live.process.send_signal(signal.SIGSTOP)
    try:
        count = executed(storm(acts, b"lossy", 400, 0))
    finally:
        live.process.send_signal(signal.SIGCONT)
    eventually(lambda: live.ledger()["in_flight"] == 0, "everything to be acknowledged")
    now = boottime()
    # A broker that is slow for a moment: then nothing is complete until the outbox is empty.
    eventually(lambda: (live.ledger()["complete_until"] or 0) > now, "the stream to be whole", 3 * PATIENCE)
    assert live.stop() == 0, live.said()
    ledger = live.ledger()
    drops = {int(ring): row["drops"] for ring, row in ledger["rings"].items() if row["drops"]}
    assert drops
    frames_of = {family: frames(kafka, f"lossy.{family}") for family in ("process", "loss", "heartbeat")}
    told = [frame.record for frame in (*frames_of["loss"], *frames_of["heartbeat"])]
    assert {ring: len(numbers) for ring, numbers in numbers_lost(told).items()} == drops
    lost = {(row["stage"], row["reason"], row["kind"]): row["count"] for row in ledger["losses"]}
    assert kinds_lost(told) == lost
    assert complete_until(told) > now
    assert len({frame.partition for frame in (*frames_of["loss"], *frames_of["heartbeat"])}) == 1, "one key"
    execs = [r for r in (frame.record for frame in frames_of["process"]) if r["kind"] == "exec"]
    # A head may arrive whose later chunks found no space: such a one is there, and its number is not.
    found = marked(execs, "lossy")
    unnumbered = [r for r in execs if "argv" in r.get("unsettled", {}) and r not in found]
    missing = count - len(numbers(found))
    assert 0 < missing <= lost["ring", "full", "exec"] + len(unnumbered)
