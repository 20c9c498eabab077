"""The feed of a whole store, from an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from .._feed import Feed, FeedEvent
from .._subscription import check_timeout
from ..protocol import SubscriptionClosed, WaitTimeout
from ._bridge import Bell, Bridges, Fetch
from ._reading import BLOCK_BYTES_MAX, BLOCK_EVENTS_MAX, YIELD_EVENTS

__all__ = ["AsyncFeed"]


class AsyncFeed:
    """An asynchronous iterator over the events of all sessions of a store; ``Feed``, from an event loop.

    A thread reads a block of events at a time and looks for new ones; none waits. It is opened when it is entered, or
    when its first event is asked for. Cancelling whoever waits for an event loses none.
    """

    def __init__(self, bridges: Bridges, feed: Callable[[], Feed], timeout: float | None) -> None:
        self._bridges = bridges
        self._make = feed
        self._timeout = check_timeout(timeout)
        self._feed: Feed | None = None
        self._bell: Bell | None = None
        self._fetch = Fetch(bridges)
        self._block: deque[FeedEvent] = deque()
        self._error: Exception | None = None
        self._turn = asyncio.Lock()
        self._handed = 0
        self._closed = False

    async def _open(self) -> tuple[Feed, Bell]:
        if self._feed is None or self._bell is None:
            bell = Bell(self._bridges.here())
            feed = await self._bridges.run(self._make, Feed.close)
            feed.tell(bell.ring)
            weakref.finalize(self, _close_later, bell.bridge.loop, feed).atexit = False
            self._feed, self._bell = feed, bell
            if self._was_closed():
                feed.close()
        return self._feed, self._bell

    def _was_closed(self) -> bool:
        return self._closed

    async def get(self, timeout: float | None = None) -> FeedEvent:
        """Return the next event, waiting for it; see ``Feed.get``, also for what it raises."""
        timeout = check_timeout(timeout)
        async with self._turn:
            if self._closed:
                raise SubscriptionClosed(session_id="*")
            feed, bell = await self._open()
            loop = bell.bridge.loop
            deadline = None if timeout is None else loop.time() + timeout
            self._handed += 1
            if self._handed % YIELD_EVENTS == 0:
                await asyncio.sleep(0)
            while True:
                if self._closed:
                    raise SubscriptionClosed(session_id="*")
                if self._block:
                    return self._block.popleft()
                if self._error is not None:
                    error, self._error = self._error, None
                    raise error
                bell.quiet()
                await self._fetch(lambda: self._read_block(feed))
                if self._block or self._error is not None:
                    continue
                look_at = loop.time() + feed.poll_in_s
                due = look_at if deadline is None else min(look_at, deadline)
                if not await bell.wait(due) and deadline is not None and loop.time() >= deadline:
                    raise WaitTimeout(session_id="", what="an event of the feed", timeout_s=timeout or 0)

    def _read_block(self, feed: Feed) -> None:
        size_bytes = 0
        try:
            for _ in range(BLOCK_EVENTS_MAX):
                event = feed.get(0)
                self._block.append(event)
                size_bytes += event.stored_bytes
                if size_bytes >= BLOCK_BYTES_MAX:
                    return
        except WaitTimeout:
            return
        except Exception as error:  # the feed raises it once: it is met after what came before it
            self._error = error

    def __aiter__(self) -> AsyncIterator[FeedEvent]:
        """Iterate until the feed is closed, or nothing came for ``timeout`` seconds."""
        return self

    async def __anext__(self) -> FeedEvent:
        """Return the next event; StopAsyncIteration at the end. After an error of one session it goes on."""
        try:
            return await self.get(self._timeout)
        except (SubscriptionClosed, WaitTimeout):
            raise StopAsyncIteration from None

    def close(self) -> None:
        """End the iteration, whoever waits in it; at once. In the loop of the feed; ``aclose`` is the same."""
        self._closed = True
        if self._feed is not None:
            self._feed.close()
        if self._bell is not None:
            self._bell.wake()

    async def aclose(self) -> None:
        """End the iteration."""
        self.close()

    async def __aenter__(self) -> Self:
        """Open the feed; leaving closes it."""
        async with self._turn:
            await self._open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the feed."""
        self.close()


def _close_later(loop: asyncio.AbstractEventLoop, feed: Feed) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed; a feed that nobody has is forgotten
        loop.call_soon_threadsafe(feed.close)
