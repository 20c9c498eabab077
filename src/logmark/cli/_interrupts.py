"""Ctrl-C for a command that finishes what it has accepted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

__all__ = ["Interrupts"]


class Interrupts:
    """While it is entered, the first Ctrl-C only sets ``requested``; the second ends the process at once.

    A read of a pipe or a terminal may last for ever, so there, and only there, Ctrl-C also raises
    ``KeyboardInterrupt``: ``with interrupts.allowed: …``.

    Args:
        acknowledge: called in the signal handler at the first Ctrl-C, so that the person sees that it was taken.
    """

    def __init__(self, acknowledge: Callable[[], None]) -> None:
        self._acknowledge = acknowledge
        self.requested = False
        self.allowed = _Allowed(self)
        self._installed = False

    def __enter__(self) -> Self:
        """Take over SIGINT, unless the process ignores it (as under nohup) or this is not the main thread."""
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, self._on_signal)
            self._installed = True
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give SIGINT back."""
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._acknowledge()
        if self.allowed.active:
            raise KeyboardInterrupt


class _Allowed:
    """The stretch in which Ctrl-C may raise."""

    __slots__ = ("_interrupts", "active")

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self.active = False

    def __enter__(self) -> None:
        self.active = True
        if self._interrupts.requested:  # it came before this, when it could not raise
            self.active = False
            raise KeyboardInterrupt

    def __exit__(self, *_exc: object) -> None:
        self.active = False
