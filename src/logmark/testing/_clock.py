"""A clock that a test holds in its hand."""

from __future__ import annotations

import threading

__all__ = ["ManualClock"]

_START_NS = 1_767_225_600_000_000_000  # 2026-01-01T00:00:00Z
_NS = 1_000_000_000


class ManualClock:
    """Time that moves when it is told to; implements ``logmark.protocol.Clock``. Safe from any thread.

    Whoever sleeps on it lets its time pass at once and waits for nobody. A thread that waits on a condition until a
    deadline of this clock (a full inbox, ``Session.wait_for``) is not woken by ``advance``: it is real time that it
    waits in, so tests of those use the real clock and a short limit.

    Args:
        time_ns: the wall clock at the start, in nanoseconds since 1970; 2026-01-01T00:00:00Z when it is not given.
        monotonic: the monotonic clock at the start, in seconds.
    """

    def __init__(self, *, time_ns: int = _START_NS, monotonic: float = 0.0) -> None:
        self._mutex = threading.Lock()
        self._time_ns = time_ns
        self._monotonic = monotonic

    def time_ns(self) -> int:
        """Return the wall clock: nanoseconds since 1970 in UTC."""
        with self._mutex:
            return self._time_ns

    def monotonic(self) -> float:
        """Return seconds since some fixed moment."""
        with self._mutex:
            return self._monotonic

    def sleep(self, seconds: float) -> None:
        """Let that much time pass, at once."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move both clocks forward.

        Raises:
            ValueError: backwards; only the wall clock may step back, see ``step_wall_clock``.
        """
        if seconds < 0:
            message = f"time does not run backwards: {seconds!r} s"
            raise ValueError(message)
        with self._mutex:
            self._monotonic += seconds
            self._time_ns += round(seconds * _NS)

    def step_wall_clock(self, seconds: float) -> None:
        """Move the wall clock alone, back or forth, as an operator or a time server does."""
        with self._mutex:
            self._time_ns += round(seconds * _NS)
