"""Durable, ordered event streams for threaded Python programs.

>>> import logmark
>>> with logmark.open("memory:") as rt:
...     session = rt.session("chat-42")
...     session.append("message.created", {"text": "hi"})
1
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import errors
from .errors import (
    AppendRejected,
    AppendUncertain,
    LogCorrupt,
    LogmarkError,
    Overloaded,
    SeqPruned,
    SessionDeleted,
    SessionHalted,
    SessionSealed,
    WrongExpectedSeq,
)
from .protocol import Envelope, JobMark, JobStatusRule, Limits, RawEnvelope, Upcaster

if TYPE_CHECKING:
    from . import actors, aio, gateway, logs, protocol, storage, testing, ui
    from ._cursor import Cursor, CursorMark
    from ._feed import Feed, FeedEvent
    from ._health import Health
    from ._job import Job
    from ._page import Page
    from ._projection import Checkpoint, Projection, ProjectionHalt
    from ._projection_files import FileProjection, ObjectProjection
    from ._projection_sqlite import SqliteProjection
    from ._rows import Row, RowPage
    from ._runtime import Runtime
    from ._session import Session
    from ._subscription import Subscription
    from .actors import Instrumentation
    from .gateway import serve
    from .storage import SessionInfo

__all__ = [
    "AppendRejected",
    "AppendUncertain",
    "Checkpoint",
    "Cursor",
    "CursorMark",
    "Envelope",
    "Feed",
    "FeedEvent",
    "FileProjection",
    "Health",
    "Instrumentation",
    "Job",
    "JobMark",
    "Limits",
    "LogCorrupt",
    "LogmarkError",
    "ObjectProjection",
    "Overloaded",
    "Page",
    "Projection",
    "ProjectionHalt",
    "RawEnvelope",
    "Row",
    "RowPage",
    "Runtime",
    "SeqPruned",
    "Session",
    "SessionDeleted",
    "SessionHalted",
    "SessionInfo",
    "SessionSealed",
    "SqliteProjection",
    "Subscription",
    "WrongExpectedSeq",
    "actors",
    "aio",
    "errors",
    "gateway",
    "logs",
    "open",
    "protocol",
    "serve",
    "storage",
    "testing",
    "ui",
]

# Imported when first asked for: they bring the actors, the engines and structlog, which brings sockets.
_LAZY = {
    "Checkpoint": "._projection",
    "Cursor": "._cursor",
    "CursorMark": "._cursor",
    "Feed": "._feed",
    "FeedEvent": "._feed",
    "FileProjection": "._projection_files",
    "Health": "._health",
    "Instrumentation": ".actors",
    "Job": "._job",
    "ObjectProjection": "._projection_files",
    "Page": "._page",
    "Projection": "._projection",
    "ProjectionHalt": "._projection",
    "Row": "._rows",
    "RowPage": "._rows",
    "Runtime": "._runtime",
    "Session": "._session",
    "SessionInfo": ".storage",
    "SqliteProjection": "._projection_sqlite",
    "Subscription": "._subscription",
    "actors": ".actors",
    "aio": ".aio",
    "gateway": ".gateway",
    "logs": ".logs",
    "otel": ".otel",
    "prometheus": ".prometheus",
    "serve": ".gateway",
    "storage": ".storage",
    "testing": ".testing",
    "ui": ".ui",
}


def open(
    url: str,
    *,
    limits: Limits | None = None,
    durability: str = "fsync",
    control_types: Iterable[str] = (),
    job_status: Mapping[str, JobStatusRule] | None = None,
    create: bool = True,
    instrumentation: Instrumentation | Sequence[Instrumentation] | None = None,
    upcasters: Mapping[tuple[str, int], Upcaster] | None = None,
) -> Runtime:
    """Open a store and return its runtime.

    Args:
        url: a directory (``"data"`` or ``"file:data"``), ``"sqlite:events.db"``, ``"postgresql://…"``, ``"nats://…"``
            or ``"memory:"``; ``docs/engines.md`` says which is for whom.
        limits: every bound of the runtime.
        durability: ``"fsync"``: an append returns when its bytes are on the disk. ``"os"``: when they are in the
            operating system's page cache, which survives the process and not the machine.
        control_types: types of the program that are control: sent with ``Session.send``, never numbered or stored.
        job_status: for a type of the program, the status that it gives its job: text, or a function of the payload.
        create: make the store when there is none; False raises ``StorageUnavailable`` instead.
        instrumentation: is told of commits, warnings and traces: one of ``logmark.prometheus`` or ``logmark.otel``, one
            of your own, or several; ``docs/metrics.md``.
        upcasters: for a type and a version, a function that makes of its payload one of the next version; see
            ``Runtime.upcaster``.

    Raises:
        InvalidArgument: the URL names no engine, or another argument is wrong.
        MissingExtra: the engine's packages are not installed.
        StorageUnavailable: the store cannot be opened.
    """
    from ._runtime import open_runtime

    return open_runtime(
        url,
        limits=limits,
        durability=durability,
        control_types=control_types,
        job_status=job_status,
        create=create,
        instrumentation=instrumentation,
        upcasters=upcasters,
    )


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module = importlib.import_module(_LAZY[name], __name__)
        value = module if _LAZY[name] == f".{name}" else getattr(module, name)
        globals()[name] = value
        return value
    if name == "__version__":
        from importlib.metadata import version

        return version("logmark")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
