"""The rules of ``logmark trace --check``, applied to what a test makes the runtime log."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

from ..storage import add_sink, remove_sink
from ..trace import Checker, LogReader, Place, Violation, find_sources

__all__ = ["LogCheck", "check_log_files", "checked_logs"]


class LogCheck:
    """Takes log events as a ``LogSink`` and knows, in the end, which promises they show to be broken.

    Only what runtimes log is looked at: actors that a test drives by hand may be told anything. Safe from any thread;
    events count as logged in the order in which they come here.

    Args:
        wanted: says which events; by default those of every runtime.
    """

    def __init__(self, wanted: Callable[[Mapping[str, Any]], bool] | None = None) -> None:
        self._checker = Checker()
        self._wanted = wanted
        self._mutex = threading.Lock()
        self._lines = 0

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take an event."""
        if "runtime" not in event or (self._wanted is not None and not self._wanted(event)):
            return
        with self._mutex:
            self._lines += 1
            self._checker.feed(event, Place("log", self._lines))

    def violations(self) -> list[Violation]:
        """Return what the log shows to be broken; to be asked when nothing is logged any more."""
        with self._mutex:
            return self._checker.finish()

    def verify(self) -> None:
        """Raise unless every rule held.

        Raises:
            AssertionError: it names each violation.
        """
        _raise(self.violations())


def _raise(violations: Iterable[Violation]) -> None:
    found = list(violations)
    if found:
        shown = "\n".join(f"  {violation}" for violation in found[:20])
        message = f"the log shows {len(found)} broken promises:\n{shown}"
        raise AssertionError(message)


@contextlib.contextmanager
def checked_logs() -> Generator[LogCheck]:
    """Check what runtimes log within the block, at its end; a broken promise is an ``AssertionError``.

    >>> import logmark
    >>> from logmark.testing import checked_logs
    >>> with checked_logs(), logmark.open("memory:") as rt:
    ...     rt.session("chat-42").append("message.created", {"text": "hi"})
    1
    """
    check = LogCheck()
    add_sink(check)
    try:
        yield check
    finally:
        remove_sink(check)
    check.verify()


def check_log_files(paths: Iterable[str | os.PathLike[str]]) -> LogReader:
    """Check the logs that other processes have written, as ``logmark trace --check`` does; return their reader.

    Raises:
        AssertionError: it names each violation with its file and line.
    """
    reader, checker = LogReader(find_sources([os.fspath(path) for path in paths])), Checker()
    for fact, place in reader.facts():
        checker.feed(fact, place)
    _raise(checker.finish())
    return reader
