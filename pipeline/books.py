"""The ledger as `promissory ledger` prints it: of a live pipeline, of what a dead one left, of the last one
that ended.

A live pipeline answers on a socket in its state folder. Where none is live and probes are attached,
everything that a statement needs can still be found: the kernel's counters and the rings by their pins, the
checkpoint's books, and the rows of the outbox. After a clean end the last statement stands in a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import trio

from pipeline.errors import UserError
from pipeline.event import Ints, Pass
from pipeline.kernel.attachment import Attachment
from pipeline.kernel.manifest import Manifest
from pipeline.kernel.ring import Ring
from pipeline.ledger import Books, Statement, Tally, add, zeros
from pipeline.privilege import no_link
from pipeline.sinks.checkpoint import restore
from pipeline.store import LOG, OUTBOX, Outcome, Store, no_warning

__all__ = [
    "Holder",
    "Parked",
    "answer",
    "close",
    "compute",
    "left_behind",
    "of_state",
    "stored_books",
    "stores",
]

SOCKET: Final = "control.sock"
FILE: Final = "ledger.json"
LOOK: Final = 5.0
"""Seconds between two looks whether the socket is still there."""
LOOKS: Final = 20
LAST: Final = 0.05
"""At the end of an attachment: how often to look whether anything came after all, and seconds between."""


class Holder(Protocol):
    """Whatever can have events inside: a stage, a link, a sink."""

    def held(self) -> Ints:
        """Events per kind that are inside."""
        ...


class Parked(Protocol):
    """Where events wait after the books let them go: an outbox, by its sink or by its file."""

    def in_outbox(self) -> Ints:
        """Events per kind that wait there."""
        ...

    def settled(self) -> Outcome:
        """What became of those that left."""
        ...


def compute(
    attachment: Attachment,
    rings: Mapping[int, Ring],
    books: Books,
    tally: Tally,
    holders: Iterable[Holder] = (),
    parked: Iterable[Parked] = (),
) -> Statement:
    """One look at all terms. The kernel's counters are read first and last: what comes in meanwhile lies
    between.
    """
    kernel = attachment.look(rings)
    parked = list(parked)
    outcomes = [each.settled() for each in parked]
    reasons: Tally = {}
    for part in (kernel.tally, tally, *(outcome.lost for outcome in outcomes)):
        add(reasons, part)
    after = attachment.chunks_attempted()
    return Statement(
        attempted=kernel.attempted,
        attempted_after=attachment.attempted(),
        acknowledged=sum((outcome.acknowledged for outcome in outcomes), books.acknowledged),
        tally=reasons,
        in_outbox=sum((each.in_outbox() for each in parked), zeros()),
        in_flight=sum((holder.held() for holder in holders), kernel.unread),
        troubles=attachment.troubles(),
        complete_until=books.complete,
        rings={
            ring: {
                "chunks_attempted": chunks,
                "chunks_attempted_after": after[ring],
                "chunks_read": rings[ring].chunks_read,
                "gaps": rings[ring].gaps + gaps,
                "drops": drops,
                "unread": unread,
                **(books.rings[ring].other if ring in books.rings else {}),
                **attachment.source_books(ring),
            }
            for ring, (chunks, drops, unread, gaps) in kernel.rings.items()
        },
    )


def stores(
    manifest: Manifest, *, but: Path | None = None, mend: Callable[[str], None] | None = None
) -> list[Store]:
    """The stores of the attachment's state folder, as far as there are any, `but` one.

    `mend`: a corrupt one is renewed, and who is told. Raises StoreError.
    """
    paths = [Path(manifest.state) / name for name in (LOG, OUTBOX)]
    return [
        Store(path, manifest.id, make=mend is not None, warn=mend or no_warning)
        for path in paths
        if path != but and path.exists()
    ]


def stored_books(attachment: Attachment, *stores: Store) -> Books:
    """The newest books of an attachment: in its pinned memory, or stored with its rows."""
    return restore(attachment.area, [store.books() for store in stores])


def of_state(state: Path) -> dict[str, Any]:
    """The statement of a state folder, from wherever it can be had; UserError if nothing ever ran there."""
    plain = ask(state)
    if plain is None and (manifest := Manifest.read(state)):
        plain = left_behind(manifest)
    return plain or _last(state)


def left_behind(manifest: Manifest) -> dict[str, Any]:
    """The statement of an attachment over which no pipeline runs."""
    return _offline(manifest).to_plain()


def leave(state: Path, plain: Mapping[str, Any]) -> None:
    """Keep the last statement for later."""
    draft = state / f"{FILE}.new"
    with open(draft, "w", opener=no_link) as file:
        json.dump(plain, file)
    draft.replace(state / FILE)


def close(manifest: Manifest) -> dict[str, Any]:
    """The last statement of an attachment that is about to go: what nobody took from its rings is lost, and
    booked.
    """
    plain = _offline(manifest, unread_is_lost=True).to_plain()
    leave(Path(manifest.state), plain)
    return plain


# ---- a live pipeline


def ask(state: Path) -> dict[str, Any] | None:
    """Ask the pipeline that runs over a state folder; None: none does."""
    try:
        with _address(state / SOCKET) as address, socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(address)
            plain: dict[str, Any] = json.loads(b"".join(iter(lambda: connection.recv(1 << 16), b"")))
    except (OSError, ValueError):  # none is there, or it died while it spoke
        return None
    return plain


async def answer(state: Path, statement: Callable[[], Statement]) -> None:
    """Answer everyone who asks, until cancelled; also when the socket was removed."""
    path = state / SOCKET
    while True:
        path.unlink(missing_ok=True)
        try:
            with contextlib.suppress(FileNotFoundError):  # the whole folder is gone
                await _listen(state, statement)
        finally:
            path.unlink(missing_ok=True)
        await trio.sleep(LOOK)


async def _listen(state: Path, statement: Callable[[], Statement]) -> None:
    """Answer as long as the socket has its name. It has it when somebody listens: who finds it is heard."""
    path, new = state / SOCKET, state / f"{SOCKET}.new"
    new.unlink(missing_ok=True)
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        with _address(new) as address:
            await listener.bind(address)
        new.chmod(0o600)
        listener.listen(8)
        new.rename(path)
        while path.exists():
            with trio.move_on_after(LOOK):
                connection, _ = await listener.accept()
                await _tell(trio.SocketStream(connection), statement)


async def _tell(stream: trio.SocketStream, statement: Callable[[], Statement]) -> None:
    """Answer one; who does not listen is not waited for."""
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(5):
            await stream.send_all(json.dumps(statement().to_plain()).encode())


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """A socket's name takes 107 bytes; a path through our own descriptor table is short."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


# ---- what is left


def _offline(manifest: Manifest, unread_is_lost: bool = False) -> Statement:
    attachment = Attachment(manifest)
    if unread_is_lost:
        attachment.remove_links()
    found = stores(manifest)
    books = stored_books(attachment, *found)
    rings = attachment.rings(books)
    tally = books.tally
    outboxes = [store for store in found if store.path.name == OUTBOX]
    for _ in range(LOOKS):
        if unread_is_lost:
            _give_up(rings.values(), tally)
        statement = compute(attachment, rings, books, tally, parked=outboxes)
        if not unread_is_lost or not statement.in_flight.any():
            break
        time.sleep(LAST)  # a program that was running when its link went
    for store in found:
        store.close()
    return statement


def _give_up(rings: Iterable[Ring], tally: Tally) -> None:
    for ring in rings:
        while rest := ring.read():
            add(tally, {("lost", "ring", "detached"): Pass((rest,), 0, 0).counts})


def _last(state: Path) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads((state / FILE).read_text())
    except FileNotFoundError:
        raise UserError(
            f"{state} has no ledger: nothing ran there yet; name the folder with --state"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{state / FILE} cannot be read: {error}") from None
    return plain
