"""Word of every session that has grown, for those who follow a whole store."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from types import MethodType

__all__ = ["Changes"]


class Changes:
    """Passes on which sessions have grown, to whoever listens. Safe from any thread.

    A hint, as ``EventStore.watch`` gives: it may come twice or for nothing, and the log decides what is there.
    """

    __slots__ = ("_listeners", "_mutex", "has_listeners")

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._listeners: tuple[weakref.ref[MethodType], ...] = ()
        self.has_listeners = False
        """Whether it is worth telling; read without a lock, on the way of every append."""

    def listen(self, listener: Callable[[str | None], None]) -> None:
        """Have a bound method called with each session that has grown, None for any of them; it must not block.

        One whose object is gone is forgotten.
        """
        with self._mutex:
            alive = [each for each in self._listeners if each() is not None]
            self._listeners = (*alive, weakref.WeakMethod(listener))  # type: ignore[arg-type]
            self.has_listeners = True

    def forget(self, listener: Callable[[str | None], None]) -> None:
        """Undo ``listen``."""
        with self._mutex:
            self._listeners = tuple(each for each in self._listeners if each() not in {None, listener})
            self.has_listeners = bool(self._listeners)

    def tell(self, session_id: str | None) -> None:
        """Say that a session has grown; None when it may have been any."""
        for each in self._listeners:
            listener = each()
            if listener is not None:
                listener(session_id)
