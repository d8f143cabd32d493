"""A process that fills and empties an outbox until it is killed: `outbox_writer.py FOLDER`.

It goes on from the checkpoint and rows that it finds. Its ring positions are in a shared mapping, like the
kernel's: they outlive it.
"""

from __future__ import annotations

import mmap
import random
import struct
import sys
from pathlib import Path

import trio

from pipeline.sinks.checkpoint import BookKeeper, restore
from pipeline.sinks.outbox import Outbox
from pipeline.store import Outcome, Store
from tests.encoded import stream

SIZE = 64


def shared(path: Path, size: int) -> mmap.mmap:
    """Memory that outlives the process."""
    if not path.exists():
        path.write_bytes(bytes(size))
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), size)


async def main(folder: Path) -> None:
    """Put one to three batches of SIZE events, settle some rows; without end."""
    area, ring = shared(folder / "area", 8192), shared(folder / "ring", 8)
    store = Store(folder / "outbox.db", "a")

    def move(_: int, position: int) -> None:
        ring[:8] = struct.pack("<q", position)

    books = restore(area, [store.books()])
    number = books.number
    for ring_books in books.rings.values():  # the last one may have been killed before it moved
        move(0, ring_books.position)
    outbox = Outbox(store, BookKeeper(books, area, move=move, pressure=lambda: 0.0), warn=print)
    dice = random.Random()
    print("ready", flush=True)
    while True:
        batches = list(stream(dice.randint(1, 3), SIZE, first=number + 1, padding=300))
        await outbox.put(batches)
        number += len(batches)
        outcomes = {}
        for row in await outbox.rows(0, dice.randint(1, 100_000)):
            lost = row.counts * 0
            lost[3] = dice.randint(0, 1)
            outcomes[row.id] = Outcome(row.counts - lost, {("lost", "kafka", "too large"): lost})
        await outbox.settle(outcomes)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
