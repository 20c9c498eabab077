"""Waking the callers of a commit one by one: each, as soon as it is awake, wakes the next.

Who wakes many threads at once has them all queue up for the interpreter, and each of them sleeps a second time until it
is its turn. Here a thread wakes up while the one before it still works, and finds the interpreter free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

__all__ = ["Relay", "Sleeper"]


class Sleeper(Protocol):
    """A thread that sleeps until it is woken."""

    def wake(self, then: Callable[[], None] | None = None, /) -> None:
        """Wake it; ``then`` is the first thing that it does. Called once; must not block or raise."""
        ...


class Relay:
    """Sleepers that are woken one after the other. Safe from any thread.

    A sleeper that does not get to wake the next, such as one that an interrupt took away, would leave the others
    asleep: whoever starts a relay sees to it that ``finish`` is called soon.
    """

    __slots__ = ("_sleepers",)

    def __init__(self, sleepers: Iterable[Sleeper]) -> None:
        self._sleepers = deque(sleepers)

    def advance(self) -> None:
        """Wake the next, who wakes the one after it."""
        try:
            sleeper = self._sleepers.popleft()
        except IndexError:
            return
        sleeper.wake(self.advance)

    def finish(self) -> None:
        """Wake all who are left."""
        while self._sleepers:
            self.advance()
