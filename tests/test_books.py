"""The ledger from wherever it can be had: computed from rings and counters, asked of a live pipeline, or left
behind."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import books
from pipeline.chunk import PROC_RING, SIZE, event_id
from pipeline.errors import UserError
from pipeline.event import Ints, Passage, count
from pipeline.kernel.manifest import Manifest, boot_id
from pipeline.kernel.ring import Ring
from pipeline.ledger import Books, Statement, zeros
from pipeline.sinks.checkpoint import BookKeeper
from pipeline.store import OUTBOX, Outcome, Store
from tests import chunks
from tests.encoded import stream
from tests.kernel_ring import Attached, KernelRing

EXEC, FORK = "exec", "fork"


class World:
    """Two rings, what reads them, and a pipeline that is told what to do with what it read."""

    def __init__(self, state: Path) -> None:
        self.kernel = [KernelRing(0, 16), KernelRing(1, 16)]
        processes = chunks.event(5, event_id(PROC_RING, 1), pid=1)
        processes["length"], processes["sequence"] = SIZE, np.arange(1, len(processes) + 1)
        self.attached = Attached(state, self.kernel, processes)
        self.readers: dict[int, Ring] = self.attached.rings(Books())
        self.books = Books()
        self.inside = zeros()
        """Events that were read and are not safe."""
        self.passages = 0
        self.pending: list[tuple[KernelRing, int]] = []

    def close(self) -> None:
        for ring in self.kernel:
            ring.close()

    def held(self) -> Ints:
        return self.inside

    def read(self, limit: int) -> None:
        """Each ring's next chunks go into the pipeline."""
        for reader in self.readers.values():
            found = reader.read(limit)
            if found:
                self.inside = self.inside + count(found.chunks["kind"][found.chunks["part"] == 0])

    def retire(self, way: str) -> None:
        """Everything inside becomes safe, or is booked."""
        self.passages += 1
        positions = {n: (reader.cursor, reader.expected) for n, reader in self.readers.items()}
        passage = Passage(self.passages, positions)
        if way == "acknowledged":
            self.books.acknowledged = self.books.acknowledged + self.inside
        else:
            passage.book("lost" if way == "lost" else "filtered", "test", way, self.inside)
        self.inside = zeros()
        self.books.retire(passage)
        for reader in self.readers.values():
            reader.release(reader.cursor)

    def interrupt(self, ring: KernelRing) -> None:
        """A program took its number, and another one ran before it could reserve its space."""
        self.pending.append((ring, ring.take()))

    def resume(self) -> None:
        """Those programs go on."""
        for ring, sequence in self.pending:
            row = chunks.event(3, event_id(ring.number, sequence))[0]
            kinds = ring.books["kinds"]
            kinds["attempted"][3] += 1
            at = ring.reserve()
            if at is None:
                kinds["lost_full"][3] += 1
            else:
                ring.commit(at, row, sequence)
        self.pending.clear()

    def statement(self) -> Statement:
        return books.compute(self.attached, self.readers, self.books, dict(self.books.tally), [self])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


rings = st.integers(0, 1)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("event"), rings, st.sampled_from((FORK, EXEC)), st.integers(0, 900)),
        st.tuples(
            st.just("hidden"), rings, st.sampled_from(("filtered_uid", "filtered_self", "filtered_kind"))
        ),
        st.tuples(st.just("interrupt"), rings),
        st.tuples(st.just("read"), st.integers(1, 20)),
        st.tuples(st.just("retire"), st.sampled_from(("acknowledged", "lost", "expression"))),
    ),
    max_size=30,
)


def act(world: World, step: tuple[Any, ...]) -> None:
    match step:
        case "event", ring, kind, size:
            world.kernel[ring].event(kind, bytes(size if kind == EXEC else 0))
        case "hidden", ring, counter:
            world.kernel[ring].event(FORK, hidden=counter)
        case "interrupt", ring:
            world.interrupt(world.kernel[ring])
        case "read", limit:
            world.read(limit)
        case "retire", way:
            world.retire(way)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_it_is_balanced_whenever_no_program_runs(tmp_path: Path, way: list[tuple[Any, ...]]) -> None:
    """Whatever was read, dropped, came late, was filtered or is still in the rings."""
    world = World(tmp_path)
    try:
        for step in way:
            act(world, step)
            if not world.pending:
                assert world.statement().balanced, step
        world.resume()
        statement = world.statement()
        assert statement.balanced
        plain = statement.to_plain()
        assert plain["attempted"] == 1 + sum(step[0] in ("event", "hidden", "interrupt") for step in way)
        for ring in world.kernel:
            said = plain["rings"][str(ring.number)]
            assert said["chunks_attempted"] == said["chunks_read"] + said["gaps"] + said["unread"]
            assert said["gaps"] == said["drops"] == int(ring.books["drops"])
    finally:
        world.close()


def busy(world: World) -> World:
    """Something of everything."""
    for i in range(30):
        world.kernel[i % 2].event(EXEC if i % 3 else FORK, bytes(300 if i % 3 else 0))
    world.kernel[0].event(FORK, hidden="filtered_uid")
    world.read(10)
    world.retire("acknowledged")
    world.read(3)
    world.kernel[1].event(FORK)
    return world


def test_every_counter_of_the_kernel_counts(world: World) -> None:
    """Each is read, and none is made of others: any of them that is off by one shows."""
    busy(world)
    assert world.statement().balanced
    ring, kind = world.attached._books[0], 3
    for name in ("sequence", "drops", "start"):
        for by in (1, -1):
            ring[name] += by
            assert not world.statement().balanced, name
            ring[name] -= by
    for name in ring["kinds"].dtype.names:
        for by in (1, -1):
            ring["kinds"][name][kind] += by
            assert not world.statement().balanced, name
            ring["kinds"][name][kind] -= by
    assert world.statement().balanced


def test_every_figure_of_the_pipeline_counts(world: World) -> None:
    busy(world)
    reader = world.readers[0]
    for by in (1, -1):
        for name in ("chunks_read", "gaps"):
            setattr(reader, name, getattr(reader, name) + by)
            assert not world.statement().balanced, name
            setattr(reader, name, getattr(reader, name) - by)
        one = zeros()
        one[3] = by
        for change in (world.inside, world.books.acknowledged):
            change += one
            assert not world.statement().balanced
            change -= one
        for term in ("lost", "filtered"):
            tally = {**world.books.tally, (term, "test", "test"): one}
            wrong = books.compute(world.attached, world.readers, world.books, tally, [world])
            assert not wrong.balanced
    assert world.statement().balanced


def test_an_outbox_counts_by_its_rows_and_by_what_left_it(world: World) -> None:
    class Parked:
        def __init__(self, waits: int, acknowledged: int, lost: int) -> None:
            self.all = np.zeros((3, len(zeros())), np.int64)
            self.all[:, 3] = waits, acknowledged, lost

        def in_outbox(self) -> Ints:
            found: Ints = self.all[0]
            return found

        def settled(self) -> Outcome:
            return Outcome(self.all[1], {("lost", "kafka", "too large"): self.all[2]})

    for _ in range(6):
        world.kernel[0].event(FORK)
    world.read(100)
    world.inside[3] = 0  # they went into the outbox
    one = zeros()
    one[3] = 1
    tally = {("lost", "kafka", "too large"): one}  # this one never reached the outbox
    for waits, acknowledged, lost in ((5, 0, 0), (2, 2, 1), (0, 0, 5), (1, 4, 0)):
        parked = Parked(waits, acknowledged, lost)
        said = books.compute(world.attached, world.readers, world.books, tally, [world], [parked])
        assert said.balanced
        plain = said.to_plain()
        assert (plain["in_outbox"], plain["acknowledged"], plain["lost"]) == (waits, acknowledged, lost + 1)
        assert not books.compute(world.attached, world.readers, world.books, tally, [world]).balanced


# ---- a live pipeline


@pytest.fixture
def still() -> Statement:
    none = zeros()
    return Statement(none, none, none, {}, none, none, {}, {"no_ring": 0})


async def asked(state: Path) -> dict[str, Any] | None:
    with trio.fail_after(10):
        return await trio.to_thread.run_sync(books.ask, state)


async def live(nursery: trio.Nursery, state: Path, statement: Callable[[], Statement]) -> None:
    """Answer, from now on."""
    nursery.start_soon(books.answer, state, statement)
    for _ in range(500):
        if await asked(state) is not None:
            return
        await trio.sleep(0.01)
    pytest.fail("it never answered")


async def test_who_asks_a_live_pipeline_is_answered(
    tmp_path: Path, still: Statement, nursery: trio.Nursery
) -> None:
    now = [still]
    await live(nursery, tmp_path, lambda: now[0])
    assert await asked(tmp_path) == still.to_plain()
    one = zeros()
    one[1] = 1
    now[0] = replace(still, attempted=one, attempted_after=one, acknowledged=one)
    assert await asked(tmp_path) == now[0].to_plain()


async def test_several_may_ask_at_once(tmp_path: Path, still: Statement, nursery: trio.Nursery) -> None:
    await live(nursery, tmp_path, lambda: still)
    answers = []

    async def one() -> None:
        answers.append(await asked(tmp_path))

    async with trio.open_nursery() as askers:
        for _ in range(6):
            askers.start_soon(one)
    assert answers == [still.to_plain()] * 6


async def test_its_socket_is_for_its_owner_alone_and_goes_with_it(tmp_path: Path, still: Statement) -> None:
    path = tmp_path / "control.sock"
    path.write_text("left by one that was killed")
    async with trio.open_nursery() as nursery:
        await live(nursery, tmp_path, lambda: still)
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        nursery.cancel_scope.cancel()
    assert not path.exists()
    assert books.ask(tmp_path) is None


async def test_a_folder_with_a_long_name(tmp_path: Path, still: Statement, nursery: trio.Nursery) -> None:
    """The name of a socket takes 107 bytes."""
    folder = tmp_path / ("x" * 120) / ("y" * 120)
    folder.mkdir(parents=True)
    await live(nursery, folder, lambda: still)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        assert await asked(folder) == still.to_plain()
    assert len(os.listdir("/proc/self/fd")) <= before, "no descriptor stays open"


async def test_who_leaves_before_the_answer_does_no_harm(
    tmp_path: Path, still: Statement, nursery: trio.Nursery
) -> None:
    large = replace(still, troubles={f"trouble {i}": i for i in range(200_000)})
    await live(nursery, tmp_path, lambda: large)
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(str(tmp_path / "control.sock"))
    assert await asked(tmp_path) == large.to_plain()


@pytest.mark.parametrize("said", [b"", b'{"balanced": tr', b"\xff\xfe"])
def test_a_pipeline_that_dies_while_it_answers_is_not_live(tmp_path: Path, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen()

        def die() -> None:
            connection, _ = listener.accept()
            connection.sendall(said)
            connection.close()

        dying = threading.Thread(target=die)
        dying.start()
        assert books.ask(tmp_path) is None
        dying.join()


def test_a_socket_that_nobody_listens_on_is_no_pipeline(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "control.sock"))
    assert books.ask(tmp_path) is None
    assert books.ask(tmp_path / "nowhere") is None


# ---- what is left behind


@pytest.fixture
def left(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Probes are attached, and no pipeline runs."""
    pins = tmp_path / "pins"
    pins.mkdir()
    (pins / "map_books").touch()
    world.attached.manifest = replace(world.attached.manifest, boot_id=boot_id())
    world.attached.manifest.write()

    def opened(manifest: Manifest) -> Attached:
        assert manifest == world.attached.manifest
        return world.attached

    monkeypatch.setattr(books, "Attachment", opened)
    return world


def keep(world: World) -> None:
    """Retire what was read the way a sink does it."""
    keeper = BookKeeper(
        Books(), world.attached.area, move=lambda n, at: world.readers[n].release(at), pressure=lambda: 0.0
    )
    positions = {n: (reader.cursor, reader.expected) for n, reader in world.readers.items()}
    read = {(n, "read"): reader.chunks_read for n, reader in world.readers.items()}
    keeper.checkpoint(Passage(1, positions, chunks=read), world.inside)
    keeper.release()


def test_the_books_of_a_dead_pipeline_are_found_by_its_pins(left: World, tmp_path: Path) -> None:
    """What it had in hand is in the rings again, and counts as in flight."""
    for _ in range(5):
        left.kernel[0].event(FORK)
    left.read(100)
    keep(left)
    for _ in range(3):
        left.kernel[1].event(EXEC, bytes(500))
    left.read(5)  # and it is killed
    plain = books.of_state(tmp_path)
    assert plain["balanced"] is True
    assert plain["acknowledged"] == 6
    assert plain["in_flight"] == 3
    assert plain["rings"]["1"]["unread"] == 12
    assert plain == books.of_state(tmp_path), "a look changes nothing"


def test_at_a_detach_what_nobody_took_is_lost_and_the_last_statement_says_so(
    left: World, tmp_path: Path
) -> None:
    for _ in range(5):
        left.kernel[0].event(FORK)
    left.read(3)
    keep(left)
    said = books.close(left.attached.manifest)
    assert said["balanced"] is True
    assert said["acknowledged"] == 4
    assert said["in_flight"] == 0
    assert {"stage": "ring", "reason": "detached", "kind": "fork", "count": 2} in said["losses"]
    (tmp_path / "attached.json").unlink()
    assert books.of_state(tmp_path) == said


def test_rows_of_an_outbox_count_when_nobody_runs(left: World, tmp_path: Path) -> None:
    for _ in range(3):
        left.kernel[0].event(FORK)
    left.read(100)
    store = Store(tmp_path / OUTBOX, left.attached.manifest.id)
    (batch,) = stream(1, 7)
    keep_nothing = Books()
    keep_nothing.retire(Passage(1, {n: (r.cursor, r.expected) for n, r in left.readers.items()}))
    store.append([batch], keep_nothing.to_plain())
    store.close()
    plain = books.of_state(tmp_path)
    assert plain["in_outbox"] == 7
    assert plain["balanced"] is False, "its rows are not the three events that were read"


def test_a_manifest_of_another_boot_is_not_believed(left: World, tmp_path: Path) -> None:
    replace(left.attached.manifest, boot_id="0" * 32).write()
    with pytest.raises(UserError, match="nothing ran there yet"):
        books.of_state(tmp_path)


# ---- the last statement


def test_the_last_statement_is_kept(tmp_path: Path, still: Statement) -> None:
    books.leave(tmp_path, {"old": True})
    books.leave(tmp_path, still.to_plain())
    assert books.of_state(tmp_path) == still.to_plain()
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.json"]


def test_where_nothing_ran_there_is_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"has no ledger: nothing ran there yet; name the folder with --state"
    ):
        books.of_state(tmp_path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text('{"balanced": tr'),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.mkdir(),
    ],
)
def test_a_last_statement_that_cannot_be_read_says_which(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    spoil(tmp_path / "ledger.json")
    with pytest.raises(UserError, match=r"ledger\.json cannot be read") as caught:
        books.of_state(tmp_path)
    assert "\n" not in str(caught.value)
