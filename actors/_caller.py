"""A caller that will wait for its answer anyway gives the turns that lead to it, when nobody else is at it.

An append by a lone caller then changes threads not at all. As soon as there are others, or the caller has its answer,
the turns that are left go to the threads of their dispatchers, where those who come meanwhile become one batch.

In the main thread, a signal handler may raise between any two instructions, and half a turn is no turn. So signals that
have a handler in Python are held while the turns are given, and handled right after. That takes the time of a commit,
never that of waiting for another process.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from ..storage import set_patience
from ._dispatch import LaneItem, give_back, is_lane, open_lane

__all__ = ["CallerLane"]

# The functions beneath the signal module, whose conversions to enums cost more than the calls themselves.
_beneath = sys.modules.get("_signal", signal)
_get_handler: Callable[[int], Any] = _beneath.getsignal
_set_handler: Callable[[int, Any], Any] = _beneath.signal
_SIGNALS = tuple(int(number) for number in sorted(signal.valid_signals()) if number != signal.SIGKILL)
_SETTLED_TURNS_MAX = 4
_last_handlers: tuple[list[Any], list[tuple[int, Any]]] = ([], [])


def _handlers_in_python() -> list[tuple[int, Any]]:
    """Return the signals that have one, with it."""
    global _last_handlers  # noqa: PLW0603 - one entry, replaced as a whole: handlers hardly ever change
    handlers = list(map(_get_handler, _SIGNALS))
    if handlers != _last_handlers[0]:
        in_python = [(number, each) for number, each in zip(_SIGNALS, handlers, strict=True) if callable(each)]
        _last_handlers = (handlers, in_python)
    return _last_handlers[1]


class CallerLane:
    """The turns that the current thread gives itself between ``open`` and the end of the with-block."""

    __slots__ = ("_held", "_is_main", "_lane", "_originals")

    def __init__(self, *, is_main: bool) -> None:
        self._lane: deque[LaneItem] = deque()
        self._is_main = is_main
        self._originals: list[tuple[int, Any]] = []
        self._held: list[int] = []

    @classmethod
    def open(cls, *, is_local: bool) -> Self | None:
        """Return the lane, or None when this thread had better not give turns.

        Args:
            is_local: whether a commit waits for nothing but this machine's disk.
        """
        is_main = threading.current_thread() is threading.main_thread()
        return None if is_main and not is_local else cls(is_main=is_main)

    def __enter__(self) -> Self:
        """Hold the signals, if this is the main thread; travelling actors that become due are due here."""
        if self._is_main:
            self._hold_signals()
            set_patience(may_wait=False)
        open_lane(self._lane)
        return self

    def _hold_signals(self) -> None:
        try:
            for number, handler in _handlers_in_python():
                self._originals.append((number, handler))
                _set_handler(number, self._hold)
        except BaseException:  # a handler that was not held yet
            self._release_signals()
            raise

    def _hold(self, number: int, _frame: FrameType | None) -> None:
        self._held.append(number)

    def give_turns(self, is_settled: Callable[[], bool]) -> None:
        """Give the turns that are due here until the caller has its answer, or had better wait for it.

        Those of actors that never block and that its own append made due, such as the BroadcastActor, are given even
        then: to wake another thread for them takes longer.
        """
        lane, settled = self._lane, 0
        while lane and is_lane(lane):
            if is_settled():
                settled += 1
                if settled > _SETTLED_TURNS_MAX or lane[0][0].may_block:
                    return
            due = lane.popleft()
            if due[1].take_turn():
                lane.append(due)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Pass on what is left, and let a signal through that came meanwhile."""
        try:
            give_back(self._lane)
        finally:
            if self._is_main:
                set_patience(may_wait=True)
                self._release_signals()

    def _release_signals(self) -> None:
        """Put the handlers back and let them handle what came; the first that raises does so after all are back."""
        first: BaseException | None = None
        while self._originals or self._held:
            try:
                if self._originals:
                    _set_handler(*self._originals[-1])
                    self._originals.pop()
                else:
                    number = self._held.pop(0)
                    if number not in self._held:  # as of any signal, one is as good as several
                        signal.raise_signal(number)
            except BaseException as error:
                first = first or error
        if first is not None:
            raise first
