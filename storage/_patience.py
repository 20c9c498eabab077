"""What the current thread may wait for, and what it does before it waits.

The main thread of a program, while it commits its own append, cannot be interrupted (see ``actors/_caller.py``): it may
spend the time that its disk takes, but not the time that another process takes.

A writer's thread that has a next batch already puts off answering the callers of the last one until that batch is on
its way to the disk: the callers then run while the disk works, and do not get in the way of the thread that feeds it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["WouldWait", "catch_up", "may_put_off", "may_wait", "put_off", "puts_off", "set_patience"]


class WouldWait(Exception):
    """Nothing was done: somebody else holds the lock, and this thread must not wait for it. Never leaves an actor."""


class _Thread(threading.local):
    may_wait = True
    put_off: list[Callable[[], None]] | None = None


_thread = _Thread()


def may_wait() -> bool:
    """Say whether the current thread may wait for locks."""
    return _thread.may_wait


def set_patience(*, may_wait: bool) -> None:
    """Say whether the current thread may wait for locks from now on."""
    _thread.may_wait = may_wait


def may_put_off() -> None:
    """From now on, this thread may put work off; whoever gives it work sees to it that it catches up."""
    _thread.put_off = []


def puts_off() -> bool:
    """Say whether the current thread is a writer's, which may put work off."""
    return _thread.put_off is not None


def put_off(work: Callable[[], None]) -> bool:
    """Have ``work``, which must not raise, done when this thread next waits; False when it does not put off."""
    if _thread.put_off is None:
        return False
    _thread.put_off.append(work)
    return True


def catch_up() -> None:
    """Do what was put off: called before a wait for the disk or for a lock, and behind the last thing that is due."""
    while _thread.put_off:
        _thread.put_off.pop(0)()
