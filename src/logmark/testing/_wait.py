"""Waiting in tests: for a condition, with a deadline, never for a length of time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["eventually"]

T = TypeVar("T")

_POLL_S = 0.002


def eventually(predicate: Callable[[], T], timeout: float = 5.0, *, what: str | None = None) -> T:
    """Call ``predicate`` until what it returns is true, and return that.

    For conditions that nobody announces; where there is something to wait on (``RecordingSubscriber.wait_for``,
    ``MockWriter.wait_for_asked``, ``CapturedLogs.wait_for``), waiting on it is faster and says more when it fails.

    Args:
        predicate: called in this thread, every two milliseconds; what it raises is raised here.
        timeout: seconds of real time.
        what: names the condition in the error.

    Raises:
        TimeoutError: it was still false at the deadline.
    """
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not (found := predicate()):
        if time.monotonic() >= deadline:
            message = f"{what or 'the condition'} did not become true in {timeout:g} s; it was {found!r}"
            raise TimeoutError(message)
        pause.wait(_POLL_S)
    return found
