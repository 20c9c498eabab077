"""Log events: where they go, and a set-up for programs that have none.

Nothing is configured at import. A program that uses structlog sees logmark's events in its own pipeline; any other gets
warnings on standard error through the standard library's ``logging``, or calls ``configure``. The events are listed in
``docs/log-events.md``.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, TextIO

import orjson
import structlog

from .protocol import InvalidArgument
from .storage import LogSink, add_sink, get_logger, remove_sink, rfc3339

__all__ = ["LogSink", "add_sink", "configure", "get_logger", "remove_sink"]


def configure(*, json: bool = False, level: str = "info", stream: TextIO | None = None) -> None:
    """Set structlog up for the whole program: one event per line, with time and level.

    For programs without a structlog set-up of their own; it replaces one that is there.

    Args:
        json: a JSON object per line, for machines; else columns, for a person.
        level: the least important level that is written: debug, info, warning or error.
        stream: where to, standard error by default. It is looked up at each event, so a redirection counts.

    Raises:
        InvalidArgument: no such level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        message = f"level is one of debug, info, warning, error, not {level!r}"
        raise InvalidArgument(message)
    processors: list[Any] = [structlog.contextvars.merge_contextvars]
    if json:
        processors.append(_json_line)
    else:
        processors += [
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
            structlog.dev.ConsoleRenderer(colors=False, sort_keys=False),
        ]
    structlog.configure(
        processors=processors,
        wrapper_class=_quick(structlog.make_filtering_bound_logger(number), number),
        logger_factory=lambda *_args: _LineLogger(stream),
        cache_logger_on_first_use=False,
    )


def _quick(base: Any, level: int) -> Any:
    """Return a bound logger like ``base`` that hands its keys on once where structlog copies them four times."""

    def method(name: str, inherited: Any) -> Any:
        def log(self: Any, event: str | None = None, *args: Any, **keys: Any) -> Any:
            if args:
                return inherited(self, event, *args, **keys)
            entry: Any = {**self._context, **keys}
            if event is not None:
                entry["event"] = event
            try:
                for process in self._processors:
                    entry = process(self._logger, name, entry)
            except structlog.DropEvent:
                return None
            write = getattr(self._logger, name)
            if isinstance(entry, dict):  # so another tool's processors may end
                return write(**entry)
            return write(*entry[0], **entry[1]) if isinstance(entry, tuple) else write(entry)

        return log

    numbers = logging.getLevelNamesMapping()
    names = [name for name in ("debug", "info", "warning", "error") if numbers[name.upper()] >= level]
    return type("BoundLogger", (base,), {name: method(name, getattr(base, name)) for name in names})


def _json_line(logger: Any, method: str, event: Any) -> str:
    """Do what add_log_level, TimeStamper, format_exc_info and JSONRenderer do, in half their time."""
    event["level"] = _LEVEL_OF.get(method, method)
    event["timestamp"] = rfc3339(time.time_ns())
    if event.get("exc_info"):
        event = structlog.processors.format_exc_info(logger, method, event)
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()


_LEVEL_OF = {"warn": "warning", "exception": "error"}


class _LineLogger:
    """Writes each event as one line with one call, so that threads and processes do not mix theirs."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def msg(self, message: str) -> None:
        stream = self._stream or sys.stderr
        stream.write(message + "\n")
        stream.flush()

    debug = info = warning = error = critical = msg
