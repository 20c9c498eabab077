"""Which event ids a session has, so that a retry is answered with the number of the first write."""

from __future__ import annotations

from collections.abc import Iterable

from ..protocol import AppendError, AppendRejected, EventIdConflict, RawEnvelope, WrongExpectedSeq
from ._store import Appended, AppendRequest

__all__ = ["IdIndex", "settle", "stands_without"]


class IdIndex:
    """Event ids and their numbers, for one session. Not thread-safe.

    It is filled from the log when the first id comes that may be a retry; sessions whose ids are all made by the
    runtime never need one.
    """

    def __init__(self) -> None:
        self._seqs: dict[str, int] = {}
        self.through = 0

    def extend(self, events: Iterable[RawEnvelope]) -> None:
        """Learn the ids of events read from the log; an id that is there twice keeps its first number."""
        for event in events:
            if event.id is not None and event.event_seq is not None:
                self._seqs.setdefault(event.id, event.event_seq)
                self.through = event.event_seq

    def add(self, event_id: str, seq: int) -> None:
        """Learn the id of an event that was just written."""
        self._seqs.setdefault(event_id, seq)
        self.through = max(self.through, seq)

    def find(self, event_id: str) -> int | None:
        """Return the number of an id, or None."""
        return self._seqs.get(event_id)


def settle(
    session_id: str, request: AppendRequest, known: IdIndex | None, pending: dict[str, int]
) -> Appended | AppendRejected | None:
    """Decide by its ids whether a request is a retry (its first numbers), a conflict (an error) or new (None).

    Args:
        session_id: for the error.
        request: the events in question.
        known: the ids in the log, or None when no id of the batch can be in it.
        pending: ids of the requests before this one in the same batch.
    """
    ids = [event.id for event in request.events]
    if len(ids) > 1 and len(set(ids)) < len(ids):
        twice = next(event_id for index, event_id in enumerate(ids) if event_id in ids[:index])
        return EventIdConflict(session_id=session_id, event_id=twice, event_seq=None)
    seqs: list[int | None] = []
    for event in request.events:
        seq = pending.get(event.id)
        if seq is None and known is not None and not event.id_is_fresh:
            seq = known.find(event.id)
        seqs.append(seq)
    found = [seq for seq in seqs if seq is not None]
    if not found:
        return None
    if len(found) == len(ids) and found == list(range(found[0], found[0] + len(found))):
        return Appended(found[0], found[-1], written=False)
    at = next(index for index, seq in enumerate(seqs) if seq is not None)
    return EventIdConflict(session_id=session_id, event_id=ids[at], event_seq=seqs[at])


def stands_without(first: int, answer: Appended | AppendError) -> bool:
    """Say whether an answer holds although the rows from ``first`` on were not written."""
    match answer:
        case Appended(first_seq=seq) | WrongExpectedSeq(last_seq=seq):
            return seq < first
        case EventIdConflict(event_seq=seq):
            return seq is None or seq < first
        case _:
            return False
