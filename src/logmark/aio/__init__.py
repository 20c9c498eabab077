"""The same runtime, seen from an event loop.

Appends are submitted and their answers brought back, many with one wake-up; subscriptions are told when there is
something to read; whatever may block runs in a few threads. Nothing here keeps events, numbers or order of its own.
"""

from __future__ import annotations

from ._cancelled import CancelledAppend, cancelled_append
from ._cursor import AsyncCursor
from ._feed import AsyncFeed
from ._job import AsyncJob
from ._reading import AsyncEvents
from ._runtime import AsyncRuntime, Opening, open, wrap
from ._session import AsyncSession
from ._subscription import AsyncSubscription

__all__ = [
    "AsyncCursor",
    "AsyncEvents",
    "AsyncFeed",
    "AsyncJob",
    "AsyncRuntime",
    "AsyncSession",
    "AsyncSubscription",
    "CancelledAppend",
    "Opening",
    "cancelled_append",
    "open",
    "wrap",
]
