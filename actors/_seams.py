"""What actors are given instead of reaching for it: time to come, and blocking reads done elsewhere."""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol

from pykka import ActorDeadError, ActorRef

from ..protocol import Clock
from ..storage import get_logger

__all__ = ["BlockingReads", "SessionChildren", "ThreadBlockingReads", "ThreadTimers", "Timers"]

_log = get_logger()


class Timers(Protocol):
    """Sends a message later."""

    def after(self, delay_s: float, ref: ActorRef[Any], message: Any) -> None:
        """Tell ``ref`` the message after that many seconds, unless it has stopped by then."""
        ...


class BlockingReads(Protocol):
    """Runs what may block, away from the actors that must not."""

    def submit(self, work: Callable[[], None]) -> None:
        """Run ``work`` soon, in some other turn or thread; RuntimeError when there is no thread for it."""
        ...


class SessionChildren(Protocol):
    """Starts the actors behind a SessionActor, each when it is first needed."""

    def start_broadcast(self) -> ActorRef[Any]:
        """Start the session's BroadcastActor."""
        ...

    def start_jobs(self) -> ActorRef[Any]:
        """Start the session's JobActor."""
        ...

    def start_rows(self) -> ActorRef[Any]:
        """Start the session's RowActor."""
        ...


class ThreadTimers:
    """Timers on one thread, started when the first is set."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: list[tuple[float, int, ActorRef[Any], Any]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def after(self, delay_s: float, ref: ActorRef[Any], message: Any) -> None:
        """See ``Timers.after``."""
        with self._changed:
            if self._stopped:
                return
            heapq.heappush(self._due, (self._clock.monotonic() + delay_s, next(self._order), ref, message))
            if self._thread is not None:
                self._changed.notify()
                return
            thread = threading.Thread(target=self._run, name="logmark-timers", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads to be had: what is due waits for the next timer to start one
                return
            self._thread = thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopped:
                    wait_s = self._due[0][0] - self._clock.monotonic() if self._due else None
                    if wait_s is not None and wait_s <= 0:
                        break
                    self._changed.wait(wait_s)
                if self._stopped:
                    return
                _, _, ref, message = heapq.heappop(self._due)
            try:
                ref.tell(message)
            except ActorDeadError:
                _log.debug("timer_dropped", actor=str(ref), message=type(message).__name__)

    def stop(self) -> None:
        """Forget what is due and end the thread."""
        with self._changed:
            self._stopped = True
            self._due.clear()
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()


class ThreadBlockingReads:
    """Blocking work on a few threads, started as they are needed."""

    def __init__(self, threads_max: int) -> None:
        self._threads_max = threads_max
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._mutex = threading.Lock()
        self._stopped = False

    def submit(self, work: Callable[[], None]) -> None:
        """See ``BlockingReads.submit``."""
        with self._mutex:
            if self._stopped:
                return
            if len(self._threads) < self._threads_max:
                thread = threading.Thread(target=self._run, name="logmark-reads", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no more threads to be had: those that run do the work
                    if not self._threads:
                        raise
                else:
                    self._threads.append(thread)
            self._work.put(work)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception as error:
                _log.error("blocking_read_failed", error=repr(error))

    def stop(self) -> None:
        """End the threads after the work they are in."""
        with self._mutex:
            self._stopped = True
            threads = list(self._threads)
        for _ in threads:
            self._work.put(None)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()
