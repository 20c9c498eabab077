"""Which numbers of the foreign logs an ingest has not seen."""

from __future__ import annotations

import dataclasses

__all__ = ["GapTracker"]


@dataclasses.dataclass(slots=True)
class _Origin:
    """How far a session's foreign numbers go, and what is missing below that."""

    highest: int
    missing: int = 0
    first_gap: str = ""

    def miss_through(self, last: int, place: str) -> None:
        first = self.highest + 1
        if first > last:
            return
        self.missing += last - first + 1
        numbers = str(first) if first == last else f"{first} to {last}"
        self.first_gap = self.first_gap or f"{numbers} (before {place})"
        self.highest = last

    def reach(self, seq: int, place: str) -> None:
        self.miss_through(seq - 1, place)
        self.highest = max(self.highest, seq)


class GapTracker:
    """Watches the foreign numbers of each session: a jump upwards means events that the input does not have.

    Numbers that come again are no gap: a server repeats them when a client resumes. The numbers of a wire log may start
    anywhere, since a recording may; those of an event store start with 1.
    """

    def __init__(self) -> None:
        self._origins: dict[str, _Origin] = {}

    def note(self, session_id: str, seq: int, place: str, *, from_one: bool) -> None:
        """Take the next foreign number of a session, found at a place."""
        origin = self._origins.get(session_id)
        if origin is None:
            origin = self._origins[session_id] = _Origin(0 if from_one else seq - 1)
        origin.reach(seq, place)

    def note_given_out(self, session_id: str, seq: int, place: str) -> None:
        """Take the highest number that an event store has given out; its log ends at a place."""
        self._origins.setdefault(session_id, _Origin(0)).miss_through(seq, place)

    def sentences(self) -> list[str]:
        """Return one sentence for each session with a gap."""
        return [
            f"session {session_id!r}: {origin.missing} of its numbers are not in the input, first {origin.first_gap}"
            for session_id, origin in self._origins.items()
            if origin.missing
        ]
