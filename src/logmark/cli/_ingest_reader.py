"""Files of foreign logs: which there are, their lines, and what each line is."""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, cast

from ..protocol import DecodeError, Limits, decode_json
from ._ingest_events import ForeignEvent, MalformedLine, NotStored
from ._ingest_rows import ROWS_SUFFIX, highest_number_given_out, read_row, row_files
from ._ingest_wire import read_frame, read_record

__all__ = ["LineReader", "LogFile", "find_files"]

_STDIN = "-"
_LINE_PER_EVENT = 4  # \uXXXX takes up to three times the bytes of UTF-8, and a record adds members of its own
_DEPTH_MORE = 3  # an event's payload lies inside a frame inside a record
_SHOWN_MAX = 60
_BUFFER_BYTES = 1024 * 1024  # each read gives the interpreter to the writing threads; the fewer, the steadier the feed


@dataclasses.dataclass(frozen=True, slots=True)
class LogFile:
    """One input.

    Attributes:
        name: what messages call it.
        path: the file, or None for standard input.
        size_bytes: its size, or None when that cannot be known beforehand.
    """

    name: str
    path: str | None
    size_bytes: int | None

    @property
    def session_id(self) -> str | None:
        """The session whose rows the file has, if it is of an event store; None for standard input."""
        return None if self.path is None else os.path.basename(self.path).removesuffix(ROWS_SUFFIX)

    @property
    def is_typed(self) -> bool:
        """Say whether a person types it, at a terminal."""
        return self.path is None and sys.stdin is not None and sys.stdin.isatty()  # pyright: ignore[reportUnnecessaryComparison] - see open

    @property
    def given_out(self) -> int | None:
        """The highest number that its event store has given out, if there is a sequence file that says so."""
        return None if self.path is None else highest_number_given_out(self.path)

    def open(self) -> BinaryIO:
        """Open it for reading; closing it leaves the process's standard input open."""
        if self.path is not None:
            return open(self.path, "rb", buffering=_BUFFER_BYTES)
        if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison] - so it is when the descriptor is closed
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return open(sys.stdin.fileno(), "rb", buffering=_BUFFER_BYTES, closefd=False)


def find_files(names: Sequence[str]) -> list[LogFile]:
    """Return the inputs that the command line names: files, directories of an event store, ``-``.

    Raises:
        OSError: one of them is not there or cannot be read, or is a directory without logs.
    """
    files: list[LogFile] = []
    for name in names:
        if name == _STDIN:
            files.append(LogFile("<stdin>", None, None))
        elif os.path.isdir(name):
            paths = row_files(name)
            if not paths:
                raise OSError(errno.ENOENT, f"no <session>{ROWS_SUFFIX} in this directory or in events/ below it", name)
            files += [_log_file(path) for path in paths]
        else:
            files.append(_log_file(name))
    return files


def _log_file(path: str) -> LogFile:
    size_bytes = os.stat(path).st_size
    if not os.path.isfile(path):
        return LogFile(path, path, None)  # a pipe, which must not be opened before it is read
    with open(path, "rb"):
        return LogFile(path, path, size_bytes)


class LineReader:
    """Reads one input line by line. Each line tells its own form, so that one input may hold several.

    Args:
        file: the open input.
        session_id: the session that rows of an event store belong to, or None when they must tell it themselves.
        limits: bounds of an event; a line is bounded by a multiple of them, and a longer one is not kept in memory.
        is_countable: says which types are events.
    """

    def __init__(
        self, file: BinaryIO, session_id: str | None, limits: Limits, is_countable: Callable[[str], bool]
    ) -> None:
        self._file = file
        self._session_id = session_id
        self._bytes_max = limits.event_bytes_max * _LINE_PER_EVENT
        self._depth_max = limits.depth_max + _DEPTH_MORE
        self._is_countable = is_countable
        self._row_seq = 0
        self.line_number = 0
        """Number of the line that was read last, from 1."""
        self.bytes_read = 0
        """Bytes taken from the input so far."""

    def next_line(self) -> bytes | None:
        """Return the next line that is not blank, or None at the end; may wait for a pipe or a terminal."""
        while True:
            line = self._file.readline(self._bytes_max + 1)
            if not line:
                return None
            self.line_number += 1
            self.bytes_read += len(line)
            rest = line
            while len(rest) > self._bytes_max and not rest.endswith(b"\n"):
                rest = self._file.readline(self._bytes_max + 1)
                self.bytes_read += len(rest)
            if not line.isspace():
                return line

    def decode(self, line: bytes) -> ForeignEvent | NotStored:
        """Say what a line is.

        Raises:
            MalformedLine: it is nothing that is known here.
        """
        members = self._members(line)
        if "type" in members:
            return read_frame(members, self._is_countable)
        if "frame" in members:
            return read_record(members, self._is_countable)
        if "schema_version" in members or {"seq", "event"} <= members.keys():
            return self._row(members)
        message = f"neither an envelope nor a {{conn, dir, frame}} record nor a row of an event store: {_shown(line)}"
        raise MalformedLine(message)

    def _members(self, line: bytes) -> dict[str, Any]:
        if len(line) > self._bytes_max:
            message = f"longer than {self._bytes_max} bytes"
            raise MalformedLine(message)
        try:
            value = decode_json(line, bytes_max=self._bytes_max, depth_max=self._depth_max)
        except DecodeError as error:
            raise MalformedLine(str(error)) from error
        if not isinstance(value, dict):
            message = f"not a JSON object: {_shown(line)}"
            raise MalformedLine(message)
        return cast("dict[str, Any]", value)

    def _row(self, members: dict[str, Any]) -> ForeignEvent:
        event = read_row(members, self._session_id)
        seq = event.origin_seq or 0
        if self._session_id is not None:  # one file is one session; a stream of rows may hold several
            if seq <= self._row_seq:
                # Its id is made of its number, so that it would pass for the row that had the number before.
                message = f"row {seq} comes after row {self._row_seq}"
                raise MalformedLine(message)
            self._row_seq = seq
        return event


def _shown(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}…"
