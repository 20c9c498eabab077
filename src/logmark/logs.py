"""Log events: where they go, and a set-up for programs that have none.

Nothing is configured at import. A program that uses structlog sees logmark's events in its own pipeline; any other gets
warnings on standard error through the standard library's ``logging``, or calls ``configure``. The events are listed in
``docs/log-events.md``.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog

from .protocol import InvalidArgument
from .storage import LogSink, add_sink, get_logger, remove_sink

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
    renderer: Any
    if json:
        renderer = structlog.processors.JSONRenderer(serializer=_to_json)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=False, sort_keys=False)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
            structlog.processors.format_exc_info if json else _pass,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_args: _LineLogger(stream),
        cache_logger_on_first_use=False,
    )


def _to_json(event: Any, **_options: Any) -> str:
    import orjson

    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()


def _pass(_logger: Any, _name: str, event: Any) -> Any:
    return event


class _LineLogger:
    """Writes each event as one line with one call, so that threads and processes do not mix theirs."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def msg(self, message: str) -> None:
        stream = self._stream or sys.stderr
        stream.write(message + "\n")
        stream.flush()

    debug = info = warning = error = critical = msg
