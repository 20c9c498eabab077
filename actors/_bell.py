"""Waking the one thread that waits for something to change."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Bell"]


class Bell:
    """A condition variable for one waiter, who is woken when the mutex is free again.

    Who wakes by ``threading.Condition`` still holds the mutex: the waiter wakes up, finds it taken and sleeps again,
    which costs two changes of threads where one would do. Here the waker takes the bell, leaves the mutex, and rings
    when it suits him.

    Args:
        mutex: guards what is waited for.
    """

    __slots__ = ("_mutex", "_sleep")

    def __init__(self, mutex: threading.Lock) -> None:
        self._mutex = mutex
        self._sleep: threading.Lock | None = None

    def wait(self, timeout_s: float | None) -> None:
        """Leave the mutex, which is held, until rung or the time is over, and take it again.

        As with any condition, what was waited for is to be looked at again.
        """
        sleep = self._sleep = threading.Lock()
        sleep.acquire()
        self._mutex.release()
        try:
            sleep.acquire(timeout=-1 if timeout_s is None else timeout_s)
        finally:
            self._mutex.acquire()
            self._sleep = None

    def take(self) -> Callable[[], None] | None:
        """Return what wakes the waiter, to be called once and soon, or None when nobody waits; the mutex is held."""
        sleep, self._sleep = self._sleep, None
        return None if sleep is None else sleep.release
