"""Reading in blocks: what stands in the log is fetched by a thread, some of it at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Generic, TypeVar

from ..protocol import Envelope
from ._bridge import Bridges, Fetch

__all__ = ["BLOCK_BYTES_MAX", "BLOCK_EVENTS_MAX", "YIELD_EVENTS", "AsyncEvents", "AsyncItems"]

T = TypeVar("T")

BLOCK_EVENTS_MAX = 256
BLOCK_BYTES_MAX = 256 * 1024
YIELD_EVENTS = 32
"""After so many events at hand, everybody else in the loop has a turn."""


class AsyncItems(Generic[T]):
    """An asynchronous iterator over what a blocking one yields, fetched in blocks by a thread."""

    def __init__(
        self, bridges: Bridges, start: Callable[[], Iterator[T]], size_bytes: Callable[[T], int] | None = None
    ) -> None:
        self._fetch = Fetch(bridges)
        self._start = start
        self._size_bytes = size_bytes
        self._items: Iterator[T] | None = None
        self._block: deque[T] = deque()
        self._error: Exception | None = None
        self._ended = False
        self._handed = 0
        self._turn = asyncio.Lock()

    def __aiter__(self) -> AsyncIterator[T]:
        """Iterate; what is not consumed is not read."""
        return self

    async def __anext__(self) -> T:
        """Return the next one; raises what the blocking iterator raises, at its place."""
        async with self._turn:
            self._handed += 1
            if self._handed % YIELD_EVENTS == 0:
                await asyncio.sleep(0)
            while not self._block:
                if self._error is not None:
                    error, self._error = self._error, None
                    raise error
                if self._ended:
                    raise StopAsyncIteration
                await self._fetch(self._next_block)
            return self._block.popleft()

    def _next_block(self) -> None:
        """Fetch the next block; runs in a thread, one at a time."""
        size_bytes = 0
        try:
            if self._items is None:
                self._items = self._start()
            for count, item in enumerate(self._items, 1):
                self._block.append(item)
                size_bytes += 0 if self._size_bytes is None else self._size_bytes(item)
                if count >= BLOCK_EVENTS_MAX or size_bytes >= BLOCK_BYTES_MAX:
                    return
        except Exception as error:  # it is met after what came before it
            self._error = error
        self._ended = True


class AsyncEvents(AsyncItems[Envelope]):
    """An asynchronous iterator over the durable events of a session: ``AsyncSession.read``."""

    def __init__(self, bridges: Bridges, start: Callable[[], Iterator[Envelope]]) -> None:
        super().__init__(bridges, start, _stored_bytes)


def _stored_bytes(event: Envelope) -> int:
    return event.stored_bytes
