"""Row 3: the disk is full, the outbox is damaged, the state folder is removed: under a real pipeline over
this kernel, while the broker hangs.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.store import OUTBOX
from tests.absent import absent
from tests.broker import Broker
from tests.faults.conftest import Row
from tests.faults.results import times
from tests.faults.scene import KINDS, Scene
from tests.faults.storms import UID
from tests.live.run import Live
from tests.sinks.test_damage import cut, files, overwrite

pytestmark = [pytest.mark.kernel, pytest.mark.kafka, pytest.mark.slow]

DISK = 128 << 20
"""Bytes of the disk that gets full: room for a WAL, and for what goes from there into the file."""


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    """One that hangs now and then."""
    with Broker() as started:
        yield started


@pytest.fixture(scope="module")
def attached(make_live: Callable[..., Live]) -> Live:
    """Probes that stay, for one run after the other."""
    live = make_live(kernel__uids=str(UID))
    done = live.command("attach", "--state", str(live.state), "--events", KINDS)
    assert done.returncode == 0, done.stderr
    return live


def flip(path: Path) -> None:
    """Turn over some bits, anywhere in the file and in its WAL."""
    dice = random.Random(7)
    for file in files(path):
        with file.open("r+b") as opened:
            for _ in range(40):
                opened.seek(at := dice.randrange(file.stat().st_size))
                byte = opened.read(1)[0] ^ 1 << dice.randrange(8)
                opened.seek(at)
                opened.write(bytes([byte]))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut to half": cut,
    "80 bits turned over in it": flip,
    "overwritten": overwrite,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_outbox_is_damaged_at_work(
    attached: Live, broker: Broker, acts: bytes, row: Row, damage: str
) -> None:
    row("3 outbox damaged", f"the outbox {damage} under a live pipeline, while the broker hangs")
    scene = Scene(attached, broker, f"work-{list(DAMAGES).index(damage)}")
    with scene.outage(acts):
        DAMAGES[damage](attached.state / OUTBOX)
        time.sleep(times(1, 30))  # more goes in
    scene.judge(row)


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_outbox_is_damaged_at_rest(
    attached: Live, broker: Broker, acts: bytes, row: Row, damage: str
) -> None:
    row("3 outbox damaged", f"SIGKILL while the broker hangs, the outbox {damage}, and run again")
    scene = Scene(attached, broker, f"rest-{list(DAMAGES).index(damage)}")
    with scene.outage(acts):
        scene.kill()
        DAMAGES[damage](attached.state / OUTBOX)
        scene.start()
    scene.judge(row)


@pytest.fixture
def disk(make_live: Callable[..., Live]) -> Iterator[Live]:
    """A run whose state folder is a small disk."""
    live = make_live(kernel__uids=str(UID))
    live.state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=755", "tmpfs", str(live.state)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        absent("mounting needs root")
    yield live
    live.clean()
    subprocess.run(["umount", "-l", str(live.state)], check=True)


def test_the_disk_is_full(disk: Live, broker: Broker, acts: bytes, row: Row) -> None:
    seconds = times(3, 60)
    row("3 disk full", f"the state folder's disk full for {seconds} s while the broker hangs")
    scene = Scene(disk, broker, "full")
    with scene.outage(acts):
        filler = disk.state / "filler"
        with suppress(OSError):
            filler.write_bytes(bytes(DISK))
        scene.until(lambda: scene.says("takes nothing"), "the disk to be full")
        time.sleep(seconds)
        ledger = disk.ledger()
        row.saw(waited_in_the_rings=ledger["in_flight"], warnings=len(scene.says("takes nothing")))
        assert ledger["balanced"]
        assert ledger["in_flight"]
        assert len(scene.says("takes nothing")) == 1
        filler.unlink()
        scene.until(lambda: disk.ledger()["in_outbox"] > ledger["in_outbox"], "the outbox to take more")
    assert scene.judge(row) == 0


def test_the_state_folder_is_removed(
    make_live: Callable[..., Live], broker: Broker, acts: bytes, row: Row
) -> None:
    row("3 folder removed", "the state folder removed, and made again after 2 s, while the broker hangs")
    live = make_live(kernel__uids=str(UID))
    scene = Scene(live, broker, "removed")
    owner = live.state.stat()
    with scene.outage(acts):
        while live.state.exists():  # what lives in it may make a file meanwhile
            shutil.rmtree(live.state, ignore_errors=True)
        scene.until(lambda: scene.says("takes nothing"), "the folder to be missed")
        time.sleep(2)
        live.state.mkdir(mode=0o700)
        shutil.chown(live.state, owner.st_uid, owner.st_gid)
        scene.until(lambda: scene.says("was taken away"), "a new outbox")
        scene.until(live.answers, "the books to be told again")
    row.saw(warnings=len(scene.says("takes nothing")))
    assert scene.judge(row) == 0
