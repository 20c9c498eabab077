"""Following a session from an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from .._subscription import LogNeeded, Subscription, check_timeout
from ..protocol import Envelope, SubscriptionClosed, WaitTimeout
from ._bridge import Bell, Bridges, Fetch
from ._reading import BLOCK_BYTES_MAX, BLOCK_EVENTS_MAX, YIELD_EVENTS

__all__ = ["AsyncSubscription"]


class AsyncSubscription:
    """An asynchronous iterator over a session's events from some number on: gap-free, in order, each once.

    It is a ``Subscription`` that is polled when there is something to read. What is in memory is taken in the loop;
    what has to be read from the log is fetched by a thread, a block at a time. No thread waits for events.

    It is opened when it is entered (``async with``), when its first event is asked for, or by ``open``; a live-only one
    starts there. It belongs to the loop that opened it. Cancelling whoever waits for an event loses none.
    """

    def __init__(self, bridges: Bridges, session_id: str, subscribe: Callable[[], Subscription]) -> None:
        self.session_id = session_id
        self._bridges = bridges
        self._subscribe = subscribe
        self._subscription: Subscription | None = None
        self._bell: Bell | None = None
        self._block: deque[Envelope] = deque()
        self._fetch = Fetch(bridges)
        self._turn = asyncio.Lock()
        self._handed = 0
        self._closed = False

    @property
    def next_seq(self) -> int:
        """The number that comes next, 0 before the subscription is open."""
        if self._block:
            return self._block[0].event_seq or 0
        return 0 if self._subscription is None else self._subscription.next_seq

    @property
    def lag(self) -> int:
        """How many numbers the log is ahead of what was handed out."""
        return len(self._block) + (0 if self._subscription is None else self._subscription.lag)

    async def open(self) -> Self:
        """Open the subscription, if it is not; raises what ``Session.subscribe`` raises."""
        async with self._turn:
            await self._open()
        return self

    async def _open(self) -> tuple[Subscription, Bell]:
        if self._closed:
            raise SubscriptionClosed(session_id=self.session_id)
        if self._subscription is None or self._bell is None:
            bell = Bell(self._bridges.here())
            subscription = await self._bridges.run(self._subscribe, Subscription.close)
            if self._was_closed():
                subscription.close()
                raise SubscriptionClosed(session_id=self.session_id)
            subscription.tell(bell.ring)
            # Dropped without being closed, as by a break in a loop: the collector may run in any thread, and while
            # that holds any lock, so the loop does the rest.
            weakref.finalize(self, _close_later, bell.bridge.loop, subscription).atexit = False
            self._subscription, self._bell = subscription, bell
        return self._subscription, self._bell

    def _was_closed(self) -> bool:
        return self._closed

    async def get(self, timeout: float | None = None) -> Envelope:
        """Return the next event, waiting for it; as ``Subscription.get``.

        Args:
            timeout: seconds; None waits without end, 0 does not wait.

        Raises:
            WaitTimeout: none came in time. Nothing is lost: the next call goes on.
            SubscriptionClosed: the subscription or its runtime was closed.
            SessionHalted, LogCorrupt, SchemaMismatch, SeqPruned, SessionDeleted: the log cannot be read at this place.
        """
        timeout = check_timeout(timeout)
        async with self._turn:
            subscription, bell = await self._open()
            deadline = None if timeout is None else bell.bridge.loop.time() + timeout
            self._handed += 1
            if self._handed % YIELD_EVENTS == 0:
                await asyncio.sleep(0)
            while True:
                if self._closed:
                    raise SubscriptionClosed(session_id=self.session_id)
                if self._block:
                    return self._block.popleft()
                bell.quiet()
                event, is_in_log = self._poll(subscription)
                if event is not None:
                    return event
                if is_in_log:
                    await self._fetch(lambda: self._read_block(subscription))
                elif not await bell.wait(deadline):
                    what = f"event {subscription.next_seq}"
                    raise WaitTimeout(session_id=self.session_id, what=what, timeout_s=timeout or 0)

    async def reach(self, timeout: float | None = None) -> None:
        """Wait until there is an event to get, and forget it; raises as ``get``. For who waits for a number only."""
        async with self._turn:
            subscription, bell = await self._open()
            deadline = None if timeout is None else bell.bridge.loop.time() + timeout
            while True:
                bell.quiet()
                event, is_in_log = self._poll(subscription)
                if event is not None or is_in_log:
                    return
                if not await bell.wait(deadline):
                    raise WaitTimeout(session_id=self.session_id, what="an event", timeout_s=timeout or 0)

    def _poll(self, subscription: Subscription) -> tuple[Envelope | None, bool]:
        """Return the next event if it is in memory, and whether there is one that has to be read from the log."""
        subscription.may_read = False
        try:
            return subscription.get(0), False
        except LogNeeded:
            return None, True
        except WaitTimeout:
            return None, False
        finally:
            subscription.may_read = True

    def _read_block(self, subscription: Subscription) -> None:
        size_bytes = 0
        for count in range(BLOCK_EVENTS_MAX):
            try:
                event = subscription.get(0)
            except WaitTimeout:
                return
            except Exception:
                if count:
                    return  # who has read so far meets it at the next call
                raise
            self._block.append(event)
            size_bytes += event.stored_bytes
            if size_bytes >= BLOCK_BYTES_MAX:
                return

    def __aiter__(self) -> AsyncIterator[Envelope]:
        """Iterate until the subscription is closed."""
        return self

    async def __anext__(self) -> Envelope:
        """Return the next event; StopAsyncIteration once the subscription is closed."""
        try:
            return await self.get()
        except SubscriptionClosed:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """End the iteration, whoever waits in it; at once. In the loop of the subscription; ``aclose`` is the same."""
        self._closed = True
        if self._subscription is not None:
            self._subscription.close()
        if self._bell is not None:
            self._bell.wake()

    async def aclose(self) -> None:
        """End the iteration."""
        self.close()

    async def __aenter__(self) -> Self:
        """Open the subscription; leaving closes it."""
        return await self.open()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the subscription."""
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"next_seq={self.next_seq} lag={self.lag}"
        return f"<AsyncSubscription {self.session_id!r} {state}>"


def _close_later(loop: asyncio.AbstractEventLoop, subscription: Subscription) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed, and the runtime ends the subscription
        loop.call_soon_threadsafe(subscription.close)
