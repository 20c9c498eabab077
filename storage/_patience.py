"""Whether the current thread may wait for a lock that somebody else holds.

The main thread of a program, while it commits its own append, cannot be interrupted (see ``actors/_caller.py``): it may
spend the time that its disk takes, but not the time that another process takes.
"""

from __future__ import annotations

import threading

__all__ = ["WouldWait", "may_wait", "set_patience"]


class WouldWait(Exception):
    """Nothing was done: somebody else holds the lock, and this thread must not wait for it. Never leaves an actor."""


class _Thread(threading.local):
    may_wait = True


_thread = _Thread()


def may_wait() -> bool:
    """Say whether the current thread may wait for locks."""
    return _thread.may_wait


def set_patience(*, may_wait: bool) -> None:
    """Say whether the current thread may wait for locks from now on."""
    _thread.may_wait = may_wait
