"""The two streams of a command: results on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import select
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import orjson

from ._text import printable

__all__ = ["Console", "Messages", "Output"]

_COLUMNS = 80
_BOLD = "1"
_WAITING_BYTES_MAX = 32 * 1024


class Output:
    """Standard output: text or JSON lines, as bytes, so that JSON is UTF-8 whatever the locale says.

    When the reader has gone (``| head``), ``gone`` becomes True and what is written afterwards goes nowhere: a command
    that only prints may stop, one that does work finishes it.
    """

    def __init__(self, stream: TextIO | None) -> None:
        if stream is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), "standard output")
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self.gone = False
        self.is_terminal = stream.isatty()
        self._colour = self.is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        # A program that runs the command line in its own process may have put a text-only stream here.
        self._binary = hasattr(stream, "buffer")
        self._waiting = bytearray()

    @property
    def columns(self) -> int | None:
        """The width of the terminal, None when lines go elsewhere and may be of any length."""
        return shutil.get_terminal_size().columns if self.is_terminal else None

    @property
    def has_colours(self) -> bool:
        """Whether it is a terminal that shows colours, and they are wanted."""
        return self._colour

    def coloured(self, text: str, code: str) -> str:
        """Return the text in a colour (an SGR code), or as it is where colours are not wanted."""
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and text else text

    def line(self, text: str) -> None:
        """Write one line of text, which must be printable already."""
        self._write((text + "\n").encode(self._encoding, "backslashreplace"))

    def table(self, lines: Sequence[str]) -> None:
        """Write lines whose first is a header."""
        for index, line in enumerate(lines):
            self.line(line if index else self.coloured(line, _BOLD))

    def json(self, value: Mapping[str, Any]) -> None:
        """Write one object."""
        self.json_line(orjson.dumps(value))

    def json_line(self, data: bytes) -> None:
        """Write one object that is JSON already."""
        if self.is_terminal:
            # JSON leaves C1 and bidirectional controls as they are. They stand in strings only, where an escape is
            # the same character.
            data = printable(data.decode()).encode()
        self._write(data + b"\n")

    def _write(self, data: bytes) -> None:
        if self.gone:
            return
        self._waiting += data
        if self.is_terminal or len(self._waiting) >= _WAITING_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """Hand on what was written.

        Raises:
            OSError: it could not be, such as on a full disk.
        """
        if self.gone:
            return
        try:
            self._hand_on()
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _hand_on(self) -> None:
        waiting, self._waiting = self._waiting, bytearray()
        if not self._binary:
            self._stream.write(waiting.decode())
            return
        rest = memoryview(waiting)
        while rest:  # under PYTHONUNBUFFERED the stream is a bare descriptor, which may take a part
            rest = rest[self._stream.buffer.write(rest) :]

    def _failed(self, error: OSError) -> None:
        self.abandon()
        if not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, error.strerror, "standard output") from error

    def abandon(self) -> None:
        """Write nothing more, and lead what is buffered nowhere: the interpreter flushes it at its exit."""
        self.gone = True
        self._waiting.clear()
        with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor is not flushed into one
            descriptor = self._stream.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)

    def reader_left(self) -> bool:
        """Say whether the reader of a pipe has gone, without writing to it; a follower may have nothing to write."""
        if not self.gone and hasattr(select, "poll") and not self.is_terminal and self._binary:
            watch = select.poll()
            watch.register(self._stream.fileno(), 0)
            if any(events & select.POLLERR for _, events in watch.poll(0)):
                self.abandon()
        return self.gone


class Messages:
    """Standard error: lines for a person, and below them one line of progress that is redrawn in place.

    Log events go through it as well, from any thread, so it takes the place of a stream for them.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._mutex = threading.Lock()
        self._progress = ""
        self.is_terminal = stream is not None and stream.isatty()

    @property
    def columns(self) -> int:
        """The width of the terminal."""
        try:
            return os.get_terminal_size(self._stream.fileno() if self._stream else 2).columns or _COLUMNS
        except (OSError, ValueError):
            return _COLUMNS

    def say(self, text: str) -> None:
        """Write one line in the program's name."""
        self.line(f"logmark: {text}")

    def line(self, text: str) -> None:
        """Write one line."""
        self.write(printable(text) + "\n")

    def say_at_once(self, text: str) -> None:
        """Write one line from a signal handler, which may have interrupted this object at any point."""
        if self._stream is not None:
            start = "\r\x1b[K" if self.is_terminal else ""
            with contextlib.suppress(OSError, ValueError):
                os.write(self._stream.fileno(), f"{start}logmark: {text}\n".encode())

    def end_line(self) -> None:
        """Leave the line on which the terminal has shown ``^C``."""
        if self.is_terminal:
            self.write("\n")

    def write(self, text: str) -> int:
        """Write lines above the progress; what could steer the terminal is escaped."""
        text = "\n".join(map(printable, text.split("\n")))
        with self._mutex:
            progress, self._progress = self._progress, ""
            self._put(("\r\x1b[K" if progress else "") + text + progress)
            self._progress = progress
        return len(text)

    def flush(self) -> None:
        """Do nothing: every line was flushed when it was written."""

    def show_progress(self, text: str) -> None:
        """Draw the line of progress; empty text removes it."""
        with self._mutex:
            if text != self._progress:
                self._put("\r" + text + "\x1b[K")
                self._progress = text

    def _put(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None  # nobody reads it any more, and there is nowhere else to say so


@dataclasses.dataclass(frozen=True, slots=True)
class Console:
    """Where a command writes: its results to ``out``, everything else to ``err``."""

    out: Output
    err: Messages

    @classmethod
    def of_process(cls) -> Console:
        """Return the console of this process.

        Raises:
            OSError: standard output is closed.
        """
        return cls(Output(sys.stdout), Messages(sys.stderr))
