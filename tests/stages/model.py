"""Merge and assemble once more, with plain dicts and a loop per chunk: slow, and easy to see to be right."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pipeline.chunk import PAYLOAD, SIZE, STRIDE, event_id
from pipeline.event import Gap, Pass
from pipeline.schema import by_number

__all__ = ["Left", "Model"]

SETTLE = 10_000_000


@dataclass
class Chunk:
    ring: int
    position: int
    time: int
    sequence: int
    id: int
    part: int
    parts: int
    kind: int
    size: int
    flags: int
    payload: bytes
    sound: bool
    ordinal: int = 0


@dataclass
class Left:
    """An event as it left."""

    id: int
    time: int
    flags: int
    data: bytes
    state: str | None
    missing: list[int]


@dataclass
class Event:
    ordinal: int
    time: int
    newest: int
    head: Chunk | None = None
    chunks: dict[int, Chunk] = field(default_factory=dict)
    parts: int = 1 << 40
    flags: int = 0


class Model:
    """What should come out; `left` in order, `fates` of chunks, `positions` by ring."""

    def __init__(self, boundary: dict[int, int], expiry: int, limit: int) -> None:
        self.boundary, self.expiry, self.limit = boundary, expiry, limit
        self.waiting: dict[int, list[Chunk]] = {}
        self.last: dict[int, int] = {}
        self.watermark = 0
        self.gaps: list[Gap] = []
        self.came: dict[int, Chunk] = {}
        self.open: dict[int, Event] = {}
        self.ready: dict[int, tuple[Event, str | None]] = {}
        self.seen: list[Chunk] = []
        self.place: dict[tuple[int, int], int] = {}
        self.cut = 0
        self.left: list[Left] = []
        self.fates: Counter[str] = Counter()
        self.malformed = 0

    def look(self, look: Pass) -> None:
        """Take a pass in."""
        for s in look.slices:
            for i in range(len(s.chunks)):
                self.waiting.setdefault(s.ring, []).append(
                    self._read(s.ring, s.position + i * STRIDE, s.chunks[i])
                )
            self.gaps += s.gaps
        floor, self.watermark = self.watermark, max(self.watermark, look.watermark)
        self._take(floor, self.watermark)
        self._settle()
        self._release()

    def finish(self) -> None:
        """The input ends."""
        self._take(self.watermark, 1 << 62)
        self._settle()
        for id in list(self.open):
            self._leave(id)
        self._release()

    def _read(self, ring: int, position: int, row: object) -> Chunk:
        names = ("time", "sequence", "id", "part", "parts", "kind", "size", "flags", "length")
        time, sequence, id, part, parts, kind, size, flags, length = (int(row[name]) for name in names)  # type: ignore[index]
        sound = length == SIZE and kind in by_number() and part < parts < 50_000
        if sound and part == 0:
            sound = size <= by_number()[kind].room and id == event_id(ring, sequence)
        elif sound:
            sound = (size == PAYLOAD or (size < PAYLOAD and part == parts - 1)) and 0 <= id < 1 << 62
        payload = row["payload"].tobytes()  # type: ignore[index]
        return Chunk(ring, position, time, sequence, id, part, parts, kind, size, flags, payload, sound)

    def _take(self, floor: int, watermark: int) -> None:
        going: list[tuple[int, int, int, Chunk]] = []
        for ring in sorted(self.waiting):
            time, rest = floor, []
            for i, chunk in enumerate(self.waiting[ring]):
                time = max(time, chunk.time)
                if time < watermark:
                    chunk.time = time
                    going.append((time, ring, i, chunk))
                else:
                    rest.append(chunk)
            self.waiting[ring] = rest
        fresh = [chunk for *_, chunk in sorted(going, key=lambda item: item[:3])]
        for chunk in fresh:
            chunk.ordinal = len(self.seen)
            self.seen.append(chunk)
            self.place[chunk.ring, chunk.position] = chunk.ordinal
            if not chunk.sound:
                self.fates["malformed"] += 1
                self.malformed += chunk.part == 0
            elif chunk.part == 0:
                if chunk.id in self.came:
                    self.fates[
                        "repeat" if chunk.sequence < self.boundary.get(chunk.ring, 0) else "duplicate"
                    ] += 1
                    chunk.sound = False
                self.came.setdefault(chunk.id, chunk)
        single = {c.id for c in fresh if c.sound and c.part == 0 and c.parts == 1}
        heads = {c.id for c in fresh if c.sound and c.part == 0}
        gone = set()
        for chunk in fresh:
            if not chunk.sound:
                continue
            if chunk.part == 0 and chunk.parts == 1:
                event = Event(chunk.ordinal, chunk.time, chunk.time, chunk, {0: chunk}, 1)
                self.ready[chunk.ordinal] = event, None
                continue
            if chunk.part > 0 and chunk.id not in self.open and (chunk.id not in heads or chunk.id in single):
                old = chunk.id & ((1 << 52) - 1) < self.boundary.get(chunk.id >> 52, 0)
                if old or chunk.id in self.came:
                    self.fates["repeat" if old else "late"] += 1
                    gone.add(chunk.ordinal)
                    continue
            event = self.open.setdefault(chunk.id, Event(chunk.ordinal, chunk.time, chunk.time))
            event.parts = min(event.parts, chunk.parts)
            event.flags |= chunk.flags
        for chunk in fresh:
            if not chunk.sound or (chunk.part == 0 and chunk.parts == 1) or chunk.ordinal in gone:
                continue
            event = self.open[chunk.id]
            if chunk.part >= event.parts:
                self.fates["beyond"] += 1
                continue
            if chunk.part in event.chunks:
                # Which of two equal copies counts does not matter, but that the oldest places the event.
                self.fates["duplicate"] += 1
                continue
            event.chunks[chunk.part] = chunk
            event.newest = max(event.newest, chunk.time)
            if chunk.part == 0:
                event.head = chunk
        for id, event in list(self.open.items()):
            if event.head and all(part in event.chunks for part in range(event.parts)):
                self._ready(id, None)

    def _ready(self, id: int, state: str | None) -> None:
        event = self.open.pop(id)
        beyond = sum(part >= event.parts for part in event.chunks)
        self.fates["beyond"] += beyond
        if event.head is None:
            self.fates["orphan"] += len(event.chunks) - beyond
        else:
            self.ready[event.head.ordinal] = event, state

    def _missing(self, event: Event) -> list[int]:
        return [part for part in range(event.parts) if part not in event.chunks]

    def _in_gaps(self, event: Event) -> bool:
        if event.head is None:
            return False
        lost: Counter[int] = Counter()
        for gap in self.gaps:
            # A gap counts from when the chunk after it came until the cut has passed it.
            if gap.ring == event.head.ring and self.place.get((gap.ring, gap.position), -1) >= self.cut:
                for sequence in range(gap.first, gap.last + 1):
                    if sequence > event.head.sequence:
                        lost[sequence] += -1 if gap.filled else 1
        return lost.total() >= len(self._missing(event))

    def _settle(self) -> None:
        while self.open:
            id, event = min(self.open.items(), key=lambda item: item[1].ordinal)
            expired = event.time + self.expiry <= self.watermark
            if not expired and not (event.newest + SETTLE <= self.watermark and self._in_gaps(event)):
                if (len(self.seen) - event.ordinal) * STRIDE <= self.limit:
                    return
                self.fates["evicted"] += event.head is not None
            self._leave(id)

    def _leave(self, id: int) -> None:
        self._ready(id, "lost" if self._in_gaps(self.open[id]) else "expired")

    def _release(self) -> None:
        stop = min((event.ordinal for event in self.open.values()), default=len(self.seen))
        self.cut = max(self.cut, stop)
        for ordinal in sorted(self.ready):
            if ordinal < stop:
                event, state = self.ready.pop(ordinal)
                self._left(event, state)

    def _left(self, event: Event, state: str | None) -> None:
        head = event.head
        assert head is not None
        kept = {part: chunk for part, chunk in event.chunks.items() if part < event.parts}
        if event.parts == 1:
            at = PAYLOAD - by_number()[head.kind].room
            data = head.payload[at : at + head.size]
        else:
            last = max(kept)
            data = b"".join(
                (kept[part].payload if part in kept else bytes(PAYLOAD))[
                    : kept[part].size if part == last else None
                ]
                for part in range(1, last + 1)
            )
        flags = event.flags | head.flags
        self.left.append(Left(head.id, head.time, flags, data, state, self._missing(event)))
