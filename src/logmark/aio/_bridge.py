"""The way from other threads into an event loop, and from the loop into threads where calls may block."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ..protocol import RuntimeClosed

__all__ = ["Bell", "Bridge", "Bridges", "Fetch", "finish"]

T = TypeVar("T")

_SLICE_S = 0.005


class Bridge:
    """Carries what other threads have to say into one loop: one wake-up for all that waits.

    What waits is done in slices of some milliseconds, so that a large batch of answers does not keep the loop from
    everything else. Once the loop is closed, nobody is left to tell, and what comes is dropped.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._mutex = threading.Lock()
        self._due: deque[Callable[[], None]] = deque()
        self._woken = False
        self._closed = False
        self.rooms: dict[str, Room] = {}
        """For each session, those of this loop that wait for a place in its inbox."""

    def room(self, session_id: str) -> Room:
        """Return where those wait who found a session's inbox full."""
        return self.rooms.setdefault(session_id, Room())

    def post(self, call: Callable[[], None]) -> bool:
        """Have ``call`` called in the loop, after what was posted before; from any thread. False: the loop is closed.

        It must not block or raise.
        """
        with self._mutex:
            if self._closed:
                return False
            self._due.append(call)
            if self._woken:
                return True
            self._woken = True
        try:
            self.loop.call_soon_threadsafe(self._run)
        except RuntimeError:  # it is closed
            with self._mutex:
                self._closed = True
                self._due.clear()
            return False
        return True

    def _run(self) -> None:
        until = self.loop.time() + _SLICE_S
        while True:
            with self._mutex:
                if not self._due:
                    self._woken = False
                    return
                call = self._due.popleft()
            call()
            if self.loop.time() >= until:
                self.loop.call_soon(self._run)
                return


class Room:
    """Those who wait for a place in a session's inbox, in the order in which they came."""

    __slots__ = ("turn", "waiting")

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.waiting = 0


class Bridges:
    """The bridge of each loop that uses a runtime, and the threads that all of them share."""

    def __init__(self, threads_max: int) -> None:
        self._bridges: dict[asyncio.AbstractEventLoop, Bridge] = {}
        self._mutex = threading.Lock()
        self._executor = ThreadPoolExecutor(threads_max, thread_name_prefix="logmark-aio")

    def here(self) -> Bridge:
        """Return the bridge into the running loop."""
        loop = asyncio.get_running_loop()
        bridge = self._bridges.get(loop)
        if bridge is None:
            with self._mutex:
                for other in [each for each in self._bridges if each.is_closed()]:
                    del self._bridges[other]
                bridge = self._bridges.setdefault(loop, Bridge(loop))
        return bridge

    def start(
        self, call: Callable[[], T], undo: Callable[[T], object] | None = None, *, apart: bool = False
    ) -> asyncio.Future[T]:
        """Do what may block in a thread, and return a future of the running loop for what comes of it.

        Args:
            call: runs to its end, also when the future is cancelled meanwhile.
            undo: gets, in a thread, the result that nobody was left to take.
            apart: in a thread of its own, for what must go on while all others are busy.
        """
        bridge = self.here()
        answer: asyncio.Future[T] = bridge.loop.create_future()

        def work() -> None:
            try:
                result = call()
            except BaseException as error:
                bridge.post(functools.partial(_settle, answer, error))
                return
            if not bridge.post(functools.partial(self._take, answer, result, undo)) and undo is not None:
                undo(result)

        try:
            if apart:
                threading.Thread(target=work, name="logmark-aio-close", daemon=True).start()
            else:
                self._executor.submit(work)
        except RuntimeError as error:  # it was shut down, or there is no thread to be had
            raise RuntimeClosed from error
        return answer

    def _take(self, answer: asyncio.Future[T], result: T, undo: Callable[[T], object] | None) -> None:
        if not answer.done():
            answer.set_result(result)
        elif undo is not None:
            try:
                self._executor.submit(undo, result)
            except RuntimeError:
                threading.Thread(target=undo, args=(result,), name="logmark-aio-undo", daemon=True).start()

    async def run(self, call: Callable[[], T], undo: Callable[[T], object] | None = None, *, apart: bool = False) -> T:
        """Do what may block in a thread, and wait for it."""
        return await self.start(call, undo, apart=apart)

    def close(self) -> None:
        """Start nothing more; what runs is finished by its thread."""
        self._executor.shutdown(wait=False)


class Bell:
    """Rung in any thread, heard in the loop: once for any number of rings."""

    __slots__ = ("_has_rung", "_is_told", "_waiter", "bridge")

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self._waiter: asyncio.Future[None] | None = None
        self._has_rung = False
        self._is_told = False

    def ring(self) -> None:
        """Say that there may be something to read; called in an actor's turn."""
        # First the mark, then the look at the waiter, who looks in the other order: one of both sees the other.
        self._has_rung = True
        if self._waiter is not None and not self._is_told:
            self._is_told = True
            self.bridge.post(self.wake)

    def quiet(self) -> None:
        """Forget the rings so far, as what they tell of is looked at now."""
        self._has_rung = False

    def wake(self) -> None:
        """Wake who waits; in the loop."""
        self._is_told = False
        if self._waiter is not None:
            finish(self._waiter)

    async def wait(self, deadline: float | None) -> bool:
        """Wait for a ring; False when the deadline (of the loop's clock) came first."""
        loop = self.bridge.loop
        if deadline is not None and loop.time() >= deadline:
            return False
        waiter = self._waiter = loop.create_future()
        timer = None if deadline is None else loop.call_at(deadline, finish, waiter)
        try:
            if not self._has_rung:
                await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
        return True


class Fetch:
    """Something fetched by a thread, one after the other; who is cancelled as he waits leaves it to the next."""

    __slots__ = ("_bridges", "_under_way")

    def __init__(self, bridges: Bridges) -> None:
        self._bridges = bridges
        self._under_way: asyncio.Future[None] | None = None

    async def __call__(self, call: Callable[[], None]) -> None:
        """Wait for ``call``, or for the one that is under way; raises what it has raised."""
        if self._under_way is None:
            self._under_way = self._bridges.start(call)
            self._under_way.add_done_callback(_look)
        fetching = self._under_way
        await asyncio.wait([fetching])
        self._under_way = None
        fetching.result()


def _look(fetching: asyncio.Future[None]) -> None:
    """Count an error as seen: the next who fetches meets it again."""
    if not fetching.cancelled():
        fetching.exception()


def _settle(answer: asyncio.Future[Any], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)


def finish(waiter: asyncio.Future[None]) -> None:
    """Wake who waits, unless he was cancelled."""
    if not waiter.done():
        waiter.set_result(None)
