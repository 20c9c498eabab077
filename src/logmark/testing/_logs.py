"""Log events, captured for a test."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator, Mapping
from typing import Any

from ..storage import add_sink, remove_sink

__all__ = ["CapturedLogs", "capture_logs"]


class CapturedLogs:
    """The log events since the capture began, from every thread. Safe from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: list[dict[str, Any]] = []

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take an event; this object is the ``LogSink``."""
        with self._changed:
            self._events.append(dict(event))
            self._changed.notify_all()

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every event so far: its keys, with ``event`` and ``level`` among them."""
        with self._changed:
            return list(self._events)

    def named(self, event: str, **match: Any) -> list[dict[str, Any]]:
        """Return the events of that name whose keys have the values in ``match``."""
        return [each for each in self.events if _matches(each, event, match)]

    def wait_for(self, event: str, *, timeout: float = 5.0, **match: Any) -> dict[str, Any]:
        """Return the first event of that name whose keys have the values in ``match``, waiting for it.

        Raises:
            TimeoutError: none within ``timeout`` seconds of real time; it names the events that were there.
        """
        deadline = time.monotonic() + timeout
        seen = 0
        with self._changed:
            while True:
                for each in self._events[seen:]:
                    if _matches(each, event, match):
                        return each
                seen = len(self._events)
                left = deadline - time.monotonic()
                if left <= 0:
                    names = sorted({str(each["event"]) for each in self._events})
                    message = f"no log event {event!r} with {match!r} in {timeout:g} s; there were {names}"
                    raise TimeoutError(message)
                self._changed.wait(left)


def _matches(found: Mapping[str, Any], event: str, match: Mapping[str, Any]) -> bool:
    return found["event"] == event and all(key in found and found[key] == value for key, value in match.items())


@contextlib.contextmanager
def capture_logs() -> Generator[CapturedLogs]:
    """Capture logmark's log events, of every level and every thread, whatever structlog is set up to do.

    >>> import logmark
    >>> from logmark.testing import capture_logs
    >>> with capture_logs() as logs, logmark.open("memory:") as rt:
    ...     rt.session("chat-42").append("message.created", {"text": "hi"})
    1
    >>> [each["last_seq"] for each in logs.named("batch_persisted")]
    [1]

    Unlike ``structlog.testing.capture_logs`` it changes nobody's set-up, so captures may overlap in any threads. The
    events still go where they would go without it.
    """
    logs = CapturedLogs()
    add_sink(logs)
    try:
        yield logs
    finally:
        remove_sink(logs)
