"""Where log events go: structlog as the embedding program set it up, or the standard library's ``logging``.

structlog without any set-up prints every level to standard output, which a library must not do to its host. So until
the program calls ``structlog.configure`` (or ``logmark.logs.configure``), events go to the standard logger "logmark",
where warnings reach standard error and the rest nothing. The choice is made at each event, so a later set-up counts.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import structlog

__all__ = ["LogSink", "LogTap", "Logger", "add_sink", "get_logger", "remove_sink"]

LogSink = Callable[[Mapping[str, Any]], None]
"""Gets each log event as a mapping with ``event`` and ``level``; called in the thread that logs."""
LogTap = Callable[[str, str, Mapping[str, Any]], None]
"""Gets each warning and error of one logger as its level, its name and its keys; called in the thread that logs."""

_sinks: tuple[LogSink, ...] = ()
_sinks_mutex = threading.Lock()  # for those who change it: two at once would lose one of the sinks
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def add_sink(sink: LogSink) -> None:
    """Show every later log event to ``sink`` as well, whatever structlog is set up to do."""
    global _sinks  # noqa: PLW0603 - replaced as a whole, so that a logging thread reads the old or the new tuple
    with _sinks_mutex:
        _sinks = (*_sinks, sink)


def remove_sink(sink: LogSink) -> None:
    """Undo ``add_sink``."""
    global _sinks  # noqa: PLW0603 - see add_sink
    with _sinks_mutex:
        _sinks = tuple(other for other in _sinks if other is not sink)


@functools.cache  # one for all: every session has loggers of its own bound to it
def _standard_logger() -> Any:
    return structlog.wrap_logger(
        logging.getLogger("logmark"),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
    ).bind()


class Logger:
    """A logger with bound keys. Safe from any thread."""

    __slots__ = ("_bound", "_logger", "_made_for", "_taps")

    def __init__(self, bound: Mapping[str, Any], taps: list[LogTap] | None = None) -> None:
        self._bound = dict(bound)
        self._taps: list[LogTap] = [] if taps is None else taps
        self._made_for: object = None
        self._logger: Any = None

    def bind(self, **keys: Any) -> Logger:
        """Return a logger that adds these keys to each event."""
        return Logger({**self._bound, **keys}, self._taps)

    def apart(self) -> Logger:
        """Return a logger with the same keys that is tapped by itself."""
        return Logger(self._bound)

    def tap(self, tap: LogTap) -> None:
        """Show ``tap`` every later warning and error of this logger and of all that were or will be bound from it.

        Whatever the program lets through to its log, so that what is counted does not depend on a level.
        """
        self._taps.append(tap)

    def untap(self, tap: LogTap) -> None:
        """Undo ``tap``."""
        if tap in self._taps:
            self._taps.remove(tap)

    def _target(self) -> Any:
        made_for: object = structlog.get_config()["processors"] if structlog.is_configured() else Logger
        if self._made_for is not made_for:
            base = _standard_logger() if made_for is Logger else structlog.get_logger("logmark")
            self._logger = base.bind(**self._bound)
            self._made_for = made_for
        return self._logger

    def enabled(self, level: str) -> bool:
        """Say whether an event of this level would go anywhere; lets a hot path skip the work of describing it."""
        if _sinks:
            return True
        try:
            # Not bound to anything for that: half a kilobyte for each session, and most events go nowhere.
            target = self._target() if structlog.is_configured() else _standard_logger()
            ask = getattr(target, "is_enabled_for", None) or getattr(target, "isEnabledFor", None)
            return ask is None or bool(ask(_LEVELS[level]))
        except Exception:
            return True  # the event itself will say so

    def _log(self, level: str, event: str, keys: dict[str, Any]) -> None:
        if "runtime" not in self._bound:
            keys["pid"] = os.getpid()  # what is of no runtime, or of a store that does not know whose it is
        # A broken pipe or a processor that raises may cost the event, never an append or an actor's thread.
        for sink in _sinks:
            try:
                sink({"event": event, "level": level, **self._bound, **keys})
            except Exception as error:
                _report_lost(event, error)
        if self._taps and _LEVELS[level] >= _LEVELS["warning"]:
            for tap in tuple(self._taps):
                try:
                    tap(level, event, {**self._bound, **keys})
                except Exception as error:
                    _report_lost(event, error)
        # A pipeline drops by itself what is below its level; the standard library's is not even bound for that.
        if not _sinks and not structlog.is_configured() and not self.enabled(level):
            return
        try:
            getattr(self._target(), level)(event, **keys)
        except Exception as error:
            _report_lost(event, error)

    def debug(self, event: str, **keys: Any) -> None:
        """Log what only a developer wants to see."""
        self._log("debug", event, keys)

    def info(self, event: str, **keys: Any) -> None:
        """Log what happened."""
        self._log("info", event, keys)

    def warning(self, event: str, **keys: Any) -> None:
        """Log what someone should look at when there is time."""
        self._log("warning", event, keys)

    def error(self, event: str, **keys: Any) -> None:
        """Log what someone should look at now."""
        self._log("error", event, keys)


def _report_lost(event: str, error: Exception) -> None:
    with contextlib.suppress(Exception):  # if this cannot be told either, there is nobody left to tell
        logging.getLogger("logmark").error("log event %s was lost: %r", event, error)


def get_logger(**bound: Any) -> Logger:
    """Return a logger of this package with bound keys."""
    return Logger(bound)
