"""The appends that took longest, and where they waited."""

from __future__ import annotations

import dataclasses
import heapq

from ._facts import Fact, Place, moment_of, runtime_of, time_ns_of

__all__ = ["SlowAppend", "Slowest"]


@dataclasses.dataclass(frozen=True, slots=True)
class SlowAppend:
    """One call that appended something.

    Attributes:
        session, runtime, place: what it was, and the line that tells of it.
        first_seq, last_seq: what the call has written.
        submitted_ns: when it was made, in nanoseconds since 1970.
        total_ms: from there until it was on disk and its batch was told of.
        inbox_ms: of that, until its batch went to a writer: a place in the inbox, and the batch before it.
        writer_ms: from there until the writer began, and back: a writer that was busy with other sessions.
        commit_ms: in the writer without the sync: the session's lock, and writing.
        sync_ms: until the disk said that it has it.
        batch_events: how many events the batch had.
    """

    session: str
    runtime: str
    place: Place
    first_seq: int
    last_seq: int
    submitted_ns: int
    total_ms: float
    inbox_ms: float
    writer_ms: float
    commit_ms: float
    sync_ms: float
    batch_events: int

    @property
    def waited_in(self) -> str:
        """Where most of the time went: ``inbox``, ``writer``, ``commit`` or ``sync``."""
        spans = {"inbox": self.inbox_ms, "writer": self.writer_ms, "commit": self.commit_ms, "sync": self.sync_ms}
        return max(spans, key=lambda name: spans[name])


class Slowest:
    """Keeps the slowest appends of a log.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._heap: list[tuple[float, int, SlowAppend]] = []
        self._order = 0

    def feed(self, fact: Fact, place: Place) -> None:
        """Take the next event."""
        if fact["event"] != "batch_persisted":
            return
        told, began = moment_of(fact), time_ns_of(fact.get("submitted_first"))
        if told is None or began is None or not self._count:
            return
        # Its first call has waited longest, so one that is quick enough for that one needs no closer look.
        if len(self._heap) == self._count and (told - began) / 1e6 <= self._heap[0][0]:
            return
        firsts = fact["append_seqs"]
        lasts = [*(first - 1 for first in firsts[1:]), fact["last_seq"]]
        for first, last, offset_us in zip(firsts, lasts, fact["append_offsets_us"], strict=True):
            submitted = began + offset_us * 1000
            self._add(_append(fact, place, first, last, submitted, told))

    def _add(self, append: SlowAppend) -> None:
        self._order -= 1  # of two alike, the first stays
        entry = (append.total_ms, self._order, append)
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, entry)
        elif entry[0] > self._heap[0][0]:
            heapq.heapreplace(self._heap, entry)

    def all(self) -> list[SlowAppend]:
        """Return them, the slowest first."""
        return [entry[2] for entry in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


def _append(fact: Fact, place: Place, first: int, last: int, submitted_ns: int, told_ns: int) -> SlowAppend:
    total_ms = max(0.0, (told_ns - submitted_ns) / 1e6)
    sync_ms, commit_ms = float(fact["sync_ms"]), float(fact["commit_ms"])
    writer_ms = float(fact.get("writer_ms", commit_ms))
    return SlowAppend(
        session=fact["session"],
        runtime=runtime_of(fact, place),
        place=place,
        first_seq=first,
        last_seq=last,
        submitted_ns=submitted_ns,
        total_ms=round(total_ms, 3),
        inbox_ms=round(max(0.0, total_ms - writer_ms), 3),
        writer_ms=round(max(0.0, writer_ms - commit_ms), 3),
        commit_ms=round(max(0.0, commit_ms - sync_ms), 3),
        sync_ms=round(sync_ms, 3),
        batch_events=fact["events"],
    )
