"""The real clock."""

from __future__ import annotations

import time

__all__ = ["SystemClock", "rfc3339"]


class SystemClock:
    """The operating system's clock; implements ``logmark.protocol.Clock``."""

    __slots__ = ()

    time_ns = staticmethod(time.time_ns)
    monotonic = staticmethod(time.monotonic)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)


def rfc3339(time_ns: int) -> str:
    """Return a wall-clock time as RFC 3339 text in UTC, to the microsecond."""
    seconds = time_ns // 1_000_000_000
    micros = time_ns // 1000 - seconds * 1_000_000
    global _second  # noqa: PLW0603 - a cache of one entry, replaced as a whole
    cached = _second
    if cached[0] != seconds:
        cached = _second = (seconds, time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(seconds)))
    millis = micros // 1000
    return cached[1] + _THREE_DIGITS[millis] + _THREE_DIGITS[micros - millis * 1000] + "Z"


_second: tuple[int, str] = (-1, "")
_THREE_DIGITS = tuple(f"{number:03d}" for number in range(1000))
