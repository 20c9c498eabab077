"""One line that says what is being measured and how much is left."""

from __future__ import annotations

import sys
import time
from typing import TextIO

__all__ = ["Progress"]

_WIDTH = 100


class Progress:
    """Counts steps, and guesses from those done how long the others take. Writes to standard error."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._began = time.monotonic()
        self._work = ""
        self._sections_done = 0.0
        self._sections = 0
        self._shown = 0.0

    def plan(self, sections: int) -> None:
        """Learn how many sections there are."""
        self._sections = sections

    def begin(self, work: str) -> None:
        """Start a section or a part of one."""
        self._work = work
        if not self._is_terminal:
            self._line(work)

    def step(self, what: str) -> None:
        """Say who is at work."""
        now = time.monotonic()
        if self._is_terminal and now - self._shown > 0.05:
            self._shown = now
            self._line(f"{self._work} · {what}")

    def section_done(self) -> None:
        """Count a section."""
        self._sections_done += 1

    def clear(self) -> None:
        """Take the line away, so that something else can be printed."""
        if self._is_terminal:
            self._stream.write("\r" + " " * _WIDTH + "\r")
            self._stream.flush()

    def _line(self, text: str) -> None:
        elapsed = int(time.monotonic() - self._began)
        share = f"{self._sections_done:.0f}/{self._sections}" if self._sections else ""
        line = f"[{elapsed // 60}:{elapsed % 60:02} {share}] {text}"
        if self._is_terminal:
            self._stream.write("\r" + line[:_WIDTH].ljust(_WIDTH))
        else:
            self._stream.write(line + "\n")
        self._stream.flush()
