"""Times for a person: of the day, of a span, and from one moment to another."""

from __future__ import annotations

import time

__all__ = ["clock_of", "day_of", "span_of"]

_MS, _S = 1_000_000, 1_000_000_000


def day_of(moment_ns: int) -> str:
    """Return the date, in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(moment_ns // _S))


def clock_of(moment_ns: int | None) -> str:
    """Return the time of the day in UTC, to the millisecond; dashes for none."""
    if moment_ns is None:
        return "--:--:--.---"
    seconds, rest = divmod(moment_ns, _S)
    return time.strftime("%H:%M:%S", time.gmtime(seconds)) + f".{rest // _MS:03d}"


def span_of(span_ns: float) -> str:
    """Return a span of time with three digits and a unit."""
    span = abs(span_ns)
    sign = "-" if span_ns < 0 else ""
    if span < _MS / 1000 * 999.5:
        return f"{sign}{span / 1000:.0f} µs"
    if span < 999.5 * _MS:
        return f"{sign}{_three(span / _MS)} ms"
    if span < 99.95 * _S:
        return f"{sign}{_three(span / _S)} s"
    minutes, seconds = divmod(round(span / _S), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{sign}{hours} h {minutes:02d} min" if hours else f"{sign}{minutes} min {seconds:02d} s"


def _three(value: float) -> str:
    """Return a number below a thousand with three digits."""
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0  # noqa: PLR2004 - where rounding needs one digit more
    return f"{value:.{decimals}f}"
