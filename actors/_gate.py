"""The bound of a session's inbox: how much may be accepted and not yet answered."""

from __future__ import annotations

import copy
import threading

from ..protocol import AppendError, Clock, InvalidEvent, Limits, Overloaded, RuntimeClosed

__all__ = ["Gate"]


class Gate:
    """Counts what was accepted and not yet answered; makes producers wait when that is too much.

    Producers enter, the SessionActor leaves for them when it has answered. Safe from any thread.
    """

    __slots__ = (
        "_bytes",
        "_bytes_max",
        "_changed",
        "_clock",
        "_closed",
        "_events",
        "_events_max",
        "_session_id",
        "_wait_s",
    )

    def __init__(self, session_id: str, limits: Limits, clock: Clock) -> None:
        self._session_id = session_id
        self._events_max = limits.inbox_events_max
        self._bytes_max = limits.inbox_bytes_max
        self._wait_s = limits.inbox_wait_s
        self._clock = clock
        self._changed = threading.Condition(threading.Lock())
        self._events = 0
        self._bytes = 0
        self._closed: AppendError | None = None

    @property
    def events(self) -> int:
        """Events accepted and not yet answered."""
        return self._events

    def enter(self, events: int, size_bytes: int) -> None:
        """Take places, waiting for them until the deadline.

        Raises:
            InvalidEvent: more than there are places at all.
            Overloaded: the places did not come free in time.
            AppendRejected: what the gate was closed with: nothing is accepted any more.
        """
        with self._changed:
            if self._closed is None and self._has_room(events, size_bytes):
                self._events += events
                self._bytes += size_bytes
                return
            self._enter_late(events, size_bytes)

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
            self._changed.wait(left)
        if self._closed is not None:
            raise copy.copy(self._closed)
        self._events += events
        self._bytes += size_bytes

    def _has_room(self, events: int, size_bytes: int) -> bool:
        return self._events + events <= self._events_max and self._bytes + size_bytes <= self._bytes_max

    def leave(self, events: int, size_bytes: int) -> None:
        """Give places back: their appends were answered."""
        with self._changed:
            # Never below nothing: an interrupt after a submission makes its caller give back what the actor gives.
            self._events = max(0, self._events - events)
            self._bytes = max(0, self._bytes - size_bytes)
            self._changed.notify_all()

    def close(self, error: AppendError | None = None) -> None:
        """Accept nothing more; who waits for a place, or comes for one, is told so: ``RuntimeClosed`` unless given.

        The first reason stays.
        """
        with self._changed:
            self._closed = self._closed or error or RuntimeClosed()
            self._changed.notify_all()

    def wait_empty(self, deadline: float) -> bool:
        """Wait until everything accepted was answered; False when the (monotonic) deadline came first."""
        with self._changed:
            while self._events:
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True
