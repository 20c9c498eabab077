"""Logs as they are found: several files, gzip, a pipe, foreign lines in between, a last line that was cut off."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gzip
import io
import json
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, cast

import orjson

from ._facts import Fact, Place, moment_of

__all__ = ["LogReader", "LogSource", "find_sources", "readable_twice"]

_STDIN = "-"
_GZIP = b"\x1f\x8b"
_LINE_BYTES_MAX = 16 * 1024 * 1024  # a line that is longer is none of ours, and is not kept in memory
_BUFFER_BYTES = 1024 * 1024
_PEEK_LINES_MAX = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class LogSource:
    """One input.

    Attributes:
        name: what messages call it.
        path: the file, or None for standard input.
    """

    name: str
    path: str | None

    @contextlib.contextmanager
    def open(self) -> Generator[BinaryIO]:
        """Open it for reading, unpacked if it is gzip; standard input stays open afterwards.

        Raises:
            OSError: it cannot be read.
        """
        if self.path is None:
            if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison] - so it is when the descriptor is closed
                raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.name)
            raw = io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False), _BUFFER_BYTES)
        else:
            raw = io.BufferedReader(io.FileIO(self.path), _BUFFER_BYTES)
        with raw:
            if raw.peek(2)[:2] == _GZIP:
                with gzip.open(raw) as unpacked:
                    yield cast("BinaryIO", unpacked)
            else:
                yield raw


def find_sources(names: Sequence[str]) -> list[LogSource]:
    """Return the inputs that a command line names; ``-`` is standard input.

    Regular files come in the order of their first events, so that the parts of a log that was rotated may be named in
    any order; what can be read only once comes after them, in the order given.

    Raises:
        OSError: one of them is not there or cannot be read.
    """
    files: list[tuple[int, LogSource]] = []
    streams: list[LogSource] = []
    for name in dict.fromkeys(names):
        if name == _STDIN:
            streams.append(LogSource("<stdin>", None))
            continue
        os.stat(name)
        source = LogSource(name, name)
        if os.path.isdir(name):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        if os.path.isfile(name):
            files.append((_first_moment(source), source))
        else:
            streams.append(source)
    files.sort(key=lambda pair: pair[0])  # stable: what has no time stays where it was named
    return [source for _, source in files] + streams


def _first_moment(source: LogSource) -> int:
    reader = LogReader([source], lines_max=_PEEK_LINES_MAX)
    for fact, _ in reader.facts():
        moment = moment_of(fact)
        if moment is not None:
            return moment
    return 0


class LogReader:
    """Reads log events, one input after the other, in one pass.

    Args:
        sources: the inputs.
        session: read only lines that may concern this session; what concerns no session is read too.
        lines_max: read no more lines than that of each input.

    Attributes:
        lines: how many lines there were.
        events: how many of them were events of logmark.
        others: how many were JSON, but not of logmark.
        foreign: how many were no JSON.
        cut: inputs whose last line was cut off in the middle.
        broken: inputs that could not be read to their end, and why.
    """

    def __init__(self, sources: Sequence[LogSource], *, session: str | None = None, lines_max: int = 0) -> None:
        self._sources = sources
        self._needles = () if session is None else tuple({orjson.dumps(session), json.dumps(session).encode()})
        self._lines_max = lines_max
        self.lines = 0
        self.events = 0
        self.others = 0
        self.foreign = 0
        self.cut: list[str] = []
        self.broken: list[tuple[str, str]] = []

    def facts(self) -> Iterator[tuple[Fact, Place]]:
        """Iterate over the events and their places.

        Raises:
            OSError: an input cannot be read. One that is packed and ends too early is noted in ``broken``.
        """
        for source in self._sources:
            with source.open() as file:
                try:
                    yield from self._facts_of(file, source.name)
                except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                    self.broken.append((source.name, str(error)))

    def _facts_of(self, file: BinaryIO, name: str) -> Iterator[tuple[Fact, Place]]:
        loads, needles, number, line = orjson.loads, self._needles, 0, b""
        for number, line in enumerate(_lines(file), 1):
            self.lines += 1
            if self._lines_max and number > self._lines_max:
                return
            if b'"event"' not in line:
                self._count_foreign(line)
                continue
            if needles and b'"session"' in line and not any(needle in line for needle in needles):
                continue
            try:
                fact: Any = loads(line)
            except ValueError:
                fact = _behind_a_prefix(line)
                if fact is None:
                    self.foreign += 1
                    continue
            if type(fact) is not dict or not _is_ours(cast("dict[str, Any]", fact)):
                self.others += 1
                continue
            self.events += 1
            yield cast("Fact", fact), Place(name, number)
        if line and not line.endswith(b"\n") and line.lstrip().startswith(b"{") and not _is_json(line):
            self.foreign -= 1
            self.cut.append(name)

    def _count_foreign(self, line: bytes) -> None:
        if line.lstrip().startswith(b"{") and _is_json(line):
            self.others += 1
        elif not line.isspace():
            self.foreign += 1


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Iterate over lines; what is too long for a line is given in pieces that are no JSON."""
    while line := file.readline(_LINE_BYTES_MAX):
        yield line


def _is_ours(fact: dict[str, Any]) -> bool:
    if type(fact.get("event")) is not str or type(fact.get("level")) is not str:
        return False
    return "runtime" in fact or "pid" in fact or "actor" in fact or fact["event"] in _WITHOUT_ACTOR


_WITHOUT_ACTOR = frozenset({"runtime_opened", "runtime_closed", "close_timed_out"})


def _behind_a_prefix(line: bytes) -> Any:
    """Return the object at the end of a line that begins with something else, such as a collector's time and stream."""
    start = line.find(b"{", 1)
    if start < 0:
        return None
    try:
        return orjson.loads(line[start:])
    except ValueError:
        return None


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def readable_twice(sources: Iterable[LogSource]) -> Generator[list[LogSource]]:
    """Yield inputs that can be read more than once: what can be read only once is copied into a temporary file."""
    with contextlib.ExitStack() as stack:
        found: list[LogSource] = []
        for source in sources:
            if source.path is not None and os.path.isfile(source.path):
                found.append(source)
                continue
            copy = stack.enter_context(tempfile.NamedTemporaryFile())
            with source.open() as stream:
                shutil.copyfileobj(stream, copy)
            copy.flush()
            found.append(LogSource(source.name, copy.name))
        yield found
