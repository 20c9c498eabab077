"""How actors and stores reach the time: an interface, so that a test or a simulation can hold it."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Clock"]


class Clock(Protocol):
    """A source of time."""

    def time_ns(self) -> int:
        """Return the wall clock: nanoseconds since 1970 in UTC. It may step."""
        ...

    def monotonic(self) -> float:
        """Return seconds since some fixed moment; never steps back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let that much time pass; only the file engine's wait for a lock uses it."""
        ...
