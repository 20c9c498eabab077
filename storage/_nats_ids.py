"""The ids of a session's events, as far as this process had to learn them: 8 bytes for each event."""

from __future__ import annotations

import array
from collections.abc import Iterable, Iterator

from ._id_table import OFFSET_MAX, hash_of_id, matches

__all__ = ["SessionIds"]

_RECENT_MAX = 4096


class SessionIds:
    """Which message of a session may have an event id: by 28 bits of its hash, so the message has the last word.

    Not thread-safe.

    Attributes:
        covered: number in the stream of the last message whose ids are known.
    """

    __slots__ = ("_recent", "_runs", "covered")

    def __init__(self) -> None:
        self.covered = 0
        self._recent: dict[int, list[int]] = {}
        self._runs: list[array.array[int]] = []

    def add(self, ids: Iterable[bytes], message_seq: int) -> None:
        """Learn the ids of one message, the next of the session."""
        if message_seq > OFFSET_MAX:
            message = f"a stream has at most {OFFSET_MAX} messages"
            raise OverflowError(message)
        for event_id in ids:
            found = self._recent.setdefault(hash_of_id(event_id), [])
            if not found or found[-1] != message_seq:
                found.append(message_seq)
        self.covered = message_seq
        if len(self._recent) > _RECENT_MAX:
            self._compact()

    def _compact(self) -> None:
        """Move the last ids into a sorted run; each run is at least twice as long as the next, so that they are few."""
        self._runs.append(array.array("Q", sorted(hash_ | seq for hash_, seqs in self._recent.items() for seq in seqs)))
        self._recent = {}
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = array.array("Q", sorted([*self._runs[-1], *last]))

    def places(self, event_id: str) -> Iterator[int]:
        """Yield the messages that may have an id."""
        hash_ = hash_of_id(event_id.encode())
        yield from self._recent.get(hash_, ())
        for run in self._runs:
            yield from matches(run, hash_)
