# ruff: noqa: INP001 - a script
"""Three set-ups of structlog for a program that embeds logmark.

    python examples/structlog_setups.py console            # colours, for development
    python examples/structlog_setups.py json               # a JSON object per line, for production
    python examples/structlog_setups.py application        # the same, bound to the application's own context

logmark's events go through whatever ``structlog.configure`` was told, together with the program's own. Nothing has to
be registered. ``logmark trace`` reads what ``json`` and ``application`` write.
"""

from __future__ import annotations

import logging
import sys

import orjson
import structlog

import logmark


def set_up_console() -> None:
    """Colours and columns, everything from debug on: for a person who develops."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S.%f", utc=False),
            structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
    )


def set_up_json() -> None:
    """Write a JSON object per line to standard output, from info on: for machines, and for ``logmark trace``."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=orjson.dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.BytesLoggerFactory(file=sys.stdout.buffer),
        cache_logger_on_first_use=True,
    )


def set_up_application() -> None:
    """Write JSON in which every event, logmark's too, says which service it is of.

    What is the same for the whole process is added by a processor. What belongs to a request is bound with
    ``structlog.contextvars``: that reaches the program's own events. logmark's come from the threads of its actors, for
    many requests at once; they have the session, and the program's events should have it too, so that both are found by
    it.
    """

    def add_service(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {"service": "shop", "version": "2.3.1", **event}

    set_up_json()
    first, *others = structlog.get_config()["processors"]
    structlog.configure(processors=[first, add_service, *others])


SET_UPS = {"console": set_up_console, "json": set_up_json, "application": set_up_application}


def serve(runtime: logmark.Runtime, request_id: str) -> int:
    """Answer a request: log, append, log."""
    log = structlog.get_logger("shop")
    with structlog.contextvars.bound_contextvars(request_id=request_id, session="orders"):
        log.info("order_received")
        seq = runtime.session("orders").append("order.placed", {"request": request_id})
        log.info("order_stored", seq=seq)
    return seq


def main() -> None:
    """Run the example."""
    SET_UPS[sys.argv[1] if len(sys.argv) > 1 else "console"]()
    with logmark.open("memory:") as runtime:
        for request_id in ("r-1", "r-2"):
            serve(runtime, request_id)


if __name__ == "__main__":
    main()
