"""What a line of a log is here: an event's keys, where the line stands, and when it was written."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Fact", "Place", "moment_of", "pid_of", "process_of", "runtime_of", "text_of", "time_ns_of"]

Fact = Mapping[str, Any]
"""The keys of one log event; see ``docs/log-events.md``."""


class Place(NamedTuple):
    """Where a line stands: the name of the input and the line's number, from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def time_ns_of(value: object) -> int | None:
    """Return a time as structlog writes it, RFC 3339 text or seconds, in nanoseconds since 1970; None: it is none."""
    if isinstance(value, str):
        try:
            found = dt.datetime.fromisoformat(value)
        except ValueError:
            return None
        if found.tzinfo is None:
            found = found.replace(tzinfo=dt.UTC)
        since = found - _EPOCH
        return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1000
    if isinstance(value, int | float) and not isinstance(value, bool):
        return int(value * 1_000_000_000)
    return None


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def moment_of(fact: Fact) -> int | None:
    """Return when an event was logged, in nanoseconds since 1970, or None when its line does not say."""
    return time_ns_of(fact.get("timestamp"))


def runtime_of(fact: Fact, place: Place) -> str:
    """Return the runtime that an event is of; without the key, all of one input count as one."""
    runtime = fact.get("runtime")
    return runtime if isinstance(runtime, str) else f"?{place.file}"


def pid_of(fact: Fact) -> str | None:
    """Return the id of the process that an event is of, as text; None when its line does not say."""
    pid = fact.get("pid")
    if pid is not None:
        return str(pid)
    runtime = fact.get("runtime")
    return runtime.partition("-")[0] if isinstance(runtime, str) else None


def process_of(fact: Fact) -> str:
    """Return the process that an event is of, as a person would call it."""
    pid = pid_of(fact)
    return "a process" if pid is None else f"process {pid}"


def text_of(value: object) -> str:
    """Return a value of a key as text."""
    return value if isinstance(value, str) else repr(value)
