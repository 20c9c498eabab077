"""What a participant can do: open a store, append from many threads, say afterwards what is there."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar

__all__ = ["Caller", "Events", "Missing", "Participant", "Payload", "Tally"]

Payload = dict[str, Any]

Events = Generator[tuple[int, Any], None, None]
"""Number and decoded payload of each event, read as they are asked for; closing it gives back what that takes."""


class Missing(Exception):
    """A participant cannot take part; the text says why, and what would help."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tally:
    """What a store says afterwards about one session: how many events, and their first and last number."""

    count: int
    first: int
    last: int


class Caller(abc.ABC):
    """One thread's access to one session. Made and used in that thread, so that it may hold its own connection."""

    @abc.abstractmethod
    def append(self, payload: Payload) -> int:
        """Append one event; return its number once it is on disk."""

    def append_batch(self, payloads: Sequence[Payload]) -> int:
        """Append several events in one call; return the last number once all are on disk."""
        raise NotImplementedError

    def submit(self, payload: Payload) -> Future[int]:
        """Append one event without waiting."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what the caller holds."""


class Participant(abc.ABC):
    """A way to store events durably. Every append that it answers must be on the disk."""

    name: ClassVar[str]
    label: ClassVar[str]
    """How it is called in tables."""
    has_batches: ClassVar[bool] = True
    has_submit: ClassVar[bool] = False
    reads_ahead: ClassVar[bool] = False
    """Whether ``replay`` has read everything before it yields the first event."""
    syncs_through_libc: ClassVar[bool] = True
    """Whether a preloaded library can slow its syncs."""

    @abc.abstractmethod
    def open(self, directory: str) -> None:
        """Start, with an empty store in a directory.

        Raises:
            Missing: a package, a server or a permission is lacking.
        """

    @abc.abstractmethod
    def caller(self, session_id: str) -> Caller:
        """Return the calling thread's access to a session, which is made if it is not there."""

    @abc.abstractmethod
    def tally(self, session_id: str) -> Tally:
        """Ask the store itself what is in a session."""

    @abc.abstractmethod
    def replay(self, session_id: str, from_seq: int = 1, *, ahead: int = 1000) -> Events:
        """Yield number and decoded payload of each event from a number on.

        Args:
            session_id: the session.
            from_seq: the first number wanted.
            ahead: how many events may be fetched at a time, by those who fetch them.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Stop; what was started is gone afterwards."""
