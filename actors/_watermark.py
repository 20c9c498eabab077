"""How far a session is durable, for those who wait for it."""

from __future__ import annotations

import threading

from ..protocol import Clock
from ._changes import Changes

__all__ = ["Watermark"]


class Watermark:
    """A number that only rises. Safe from any thread.

    Args:
        clock: for waiting.
        seq: to begin with.
        changes: is told when it rises.
        session_id: what it is told.
    """

    __slots__ = ("_changed", "_changes", "_clock", "_ended", "_mutex", "_seq", "_session_id", "_waiting")

    def __init__(
        self, clock: Clock, seq: int = 0, *, changes: Changes | None = None, session_id: str | None = None
    ) -> None:
        self._changes = changes
        self._session_id = session_id
        self._clock = clock
        self._mutex = threading.Lock()
        self._changed: threading.Condition | None = None  # a kilobyte, and most sessions are never waited for
        self._seq = seq
        self._waiting = 0
        self._ended = False

    @property
    def seq(self) -> int:
        """The number now."""
        return self._seq

    def rise(self, seq: int) -> None:
        """Rise to a number; lower ones change nothing."""
        if seq <= self._seq:
            return
        with self._mutex:  # the condition's own lock, without its detour
            self._seq = max(self._seq, seq)
            if self._waiting and self._changed is not None:
                self._changed.notify_all()
        if self._changes is not None and self._changes.has_listeners:
            self._changes.tell(self._session_id)

    def wait_for(self, seq: int, timeout_s: float | None) -> bool:
        """Wait until the number is reached; False when the time ran out or the runtime ended."""
        deadline = None if timeout_s is None else self._clock.monotonic() + timeout_s
        with self._mutex:
            changed = self._changed = self._changed or threading.Condition(self._mutex)
            self._waiting += 1
            try:
                while self._seq < seq:
                    if self._ended:
                        return False
                    left = None if deadline is None else deadline - self._clock.monotonic()
                    if left is not None and left <= 0:
                        return False
                    changed.wait(left)
            finally:
                self._waiting -= 1
        return True

    def end(self) -> None:
        """Let go of who waits: nothing will rise any more."""
        with self._mutex:
            self._ended = True
            if self._changed is not None:
                self._changed.notify_all()
