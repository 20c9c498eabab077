"""The bound of a session's inbox: how much may be accepted and not yet answered."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

from ..protocol import AppendError, Clock, InvalidEvent, Limits, Overloaded, RuntimeClosed

__all__ = ["Gate"]


class Gate:
    """Counts what was accepted and not yet answered; makes producers wait when that is too much.

    Producers enter, the SessionActor leaves for them when it has answered. Safe from any thread.
    """

    __slots__ = (
        "_bytes",
        "_bytes_max",
        "_calm_s",
        "_changed",
        "_clock",
        "_closed",
        "_events",
        "_events_max",
        "_mutex",
        "_session_id",
        "_told",
        "_wait_s",
        "_waiting",
        "accepted",
        "answered",
        "oldest_ns",
    )

    def __init__(self, session_id: str, limits: Limits, clock: Clock) -> None:
        self._session_id = session_id
        self._events_max = limits.inbox_events_max
        self._bytes_max = limits.inbox_bytes_max
        self._wait_s = limits.inbox_wait_s
        self._clock = clock
        self._mutex = threading.Lock()
        self._changed: threading.Condition | None = None  # a kilobyte, and in most sessions nobody ever waits
        self._events = 0
        self._bytes = 0
        self._closed: AppendError | None = None
        self._waiting = 0
        self._told: tuple[Callable[[], None], ...] = ()
        self._calm_s: float | None = None
        self.accepted = 0
        """Appends that came in."""
        self.answered = 0
        """Appends that were answered, or that nobody wanted any more when their turn came."""
        self.oldest_ns: int | None = None
        """Wall clock of the submission of the oldest append that a writer was last handed; the SessionActor's note."""

    @property
    def events(self) -> int:
        """Events accepted and not yet answered."""
        return self._events

    @property
    def size_bytes(self) -> int:
        """Bytes accepted and not yet answered."""
        return self._bytes

    def is_calm(self, commit_s_max: float) -> bool:
        """Say whether nobody waits, and the last batch was one append that took no longer than that many seconds."""
        calm_s = self._calm_s
        return calm_s is not None and calm_s <= commit_s_max and not self._events

    def note(self, appends: int, commit_s: float) -> None:
        """Learn what the last batch was."""
        self._calm_s = commit_s if appends == 1 else None

    def enter(self, events: int, size_bytes: int) -> None:
        """Take places, waiting for them until the deadline.

        Raises:
            InvalidEvent: more than there are places at all.
            Overloaded: the places did not come free in time.
            AppendRejected: what the gate was closed with: nothing is accepted any more.
        """
        with self._mutex:  # the condition's own lock, without its detour
            if self._closed is None and self._has_room(events, size_bytes):
                self._events += events
                self._bytes += size_bytes
                self.accepted += 1
                return
            self._enter_late(events, size_bytes)

    def try_enter(self, events: int, size_bytes: int) -> bool:
        """Take places if they are free now; False when they are not. Otherwise as ``enter``."""
        with self._mutex:
            fits = events <= self._events_max and size_bytes <= self._bytes_max
            if self._closed is None and fits and not self._has_room(events, size_bytes):
                return False
            self._enter_late(events, size_bytes)  # which has nothing to wait for
            return True

    def when_room(self, told: Callable[[], None]) -> None:
        """Have ``told`` called once, in any thread, as soon as places are given back or the gate is closed.

        It must neither block nor raise. Places may have come free before the call: try once more after it.
        """
        with self._mutex:
            if self._closed is None:
                self._told = (*self._told, told)
                return
        told()

    def _enter_late(self, events: int, size_bytes: int) -> None:
        if events > self._events_max or size_bytes > self._bytes_max:
            message = (
                f"{events} events of {size_bytes} bytes in one append: the limits are {self._events_max} events and"
                f" {self._bytes_max} bytes (Limits.inbox_events_max, inbox_bytes_max); append them in parts"
            )
            raise InvalidEvent(message)
        began = self._clock.monotonic()
        while self._closed is None and not self._has_room(events, size_bytes):
            left = began + self._wait_s - self._clock.monotonic()
            if left <= 0:
                raise Overloaded(session_id=self._session_id, waited_s=self._wait_s, waiting_events=self._events)
            self._wait(left)
        if self._closed is not None:
            raise copy.copy(self._closed)
        self._events += events
        self._bytes += size_bytes
        self.accepted += 1

    def _has_room(self, events: int, size_bytes: int) -> bool:
        return self._events + events <= self._events_max and self._bytes + size_bytes <= self._bytes_max

    def leave(self, events: int, size_bytes: int, appends: int = 1) -> None:
        """Give places back: so many appends were answered."""
        with self._mutex:
            self.answered += appends
            # Never below nothing: an interrupt after a submission makes its caller give back what the actor gives.
            self._events = max(0, self._events - events)
            self._bytes = max(0, self._bytes - size_bytes)
            if self._waiting and self._changed is not None:
                self._changed.notify_all()
            if not self._told:
                return
            told, self._told = self._told, ()
        for tell in told:
            tell()

    def withdraw(self, events: int, size_bytes: int) -> None:
        """Give the places of an append back that did not come to the actor."""
        with self._mutex:
            self.accepted -= 1
        self.leave(events, size_bytes, appends=0)

    def close(self, error: AppendError | None = None) -> None:
        """Accept nothing more; who waits for a place, or comes for one, is told so: ``RuntimeClosed`` unless given.

        The first reason stays.
        """
        with self._mutex:
            self._closed = self._closed or error or RuntimeClosed()
            if self._changed is not None:
                self._changed.notify_all()
            told, self._told = self._told, ()
        for tell in told:
            tell()

    def wait_empty(self, deadline: float) -> bool:
        """Wait until everything accepted was answered; False when the (monotonic) deadline came first."""
        with self._mutex:
            while self._events:
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    return False
                self._wait(left)
        return True

    def _wait(self, timeout_s: float) -> None:
        changed = self._changed = self._changed or threading.Condition(self._mutex)
        self._waiting += 1
        try:
            changed.wait(timeout_s)
        finally:
            self._waiting -= 1
