"""A line of progress for a person who waits."""

from __future__ import annotations

import time
from collections.abc import Callable

from ._console import Messages
from ._text import cut

__all__ = ["Progress"]

_EVERY_S = 0.1
_BAR_COLUMNS = 24


class Progress:
    """Draws how far a command is, at most ten times a second, and only where a terminal shows it.

    Args:
        messages: standard error.
        bytes_total: bytes to read, or None when nobody knows; then there is no bar.
        wanted: False where it would be in the way.
        noun: what is counted.
    """

    def __init__(
        self,
        messages: Messages,
        bytes_total: int | None,
        *,
        wanted: bool = True,
        noun: str = "lines",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._messages = messages
        self._bytes_total = bytes_total
        self._noun = noun
        self._monotonic = monotonic
        self._began_s = monotonic()
        self._due_s = self._began_s + _EVERY_S if wanted and messages.is_terminal else float("inf")

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._monotonic() - self._began_s

    def update(self, bytes_read: int, lines: int) -> None:
        """Draw the line again if it is time to."""
        now_s = self._monotonic()
        if now_s < self._due_s:
            return
        self._due_s = now_s + _EVERY_S
        rate = lines / (now_s - self._began_s)
        text = f"{lines:,} {self._noun}, {rate:,.0f} a second"
        if self._bytes_total:
            done = min(1.0, bytes_read / self._bytes_total)
            filled = round(done * _BAR_COLUMNS)
            text = f"[{'#' * filled}{'.' * (_BAR_COLUMNS - filled)}] {done:4.0%}  {text}"
        self._messages.show_progress(cut(text, self._messages.columns - 1))

    def end(self) -> None:
        """Remove the line."""
        self._messages.show_progress("")
