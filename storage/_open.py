"""From a URL to an engine, imported only when it is asked for."""

from __future__ import annotations

import importlib
import re
from typing import NamedTuple

from ..protocol import InvalidArgument, Limits, MissingExtra
from ._store import EventStore

__all__ = ["local_path", "open_store"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.]+):")  # two letters or more: "C:\\data" is a path
_DURABILITIES = ("fsync", "os")


class _Engine(NamedTuple):
    """Where an engine is: ``cls(place, limits=, durability=, create=)``; the place is a path, or a server's URL."""

    name: str
    module: str
    cls: str
    extra: str | None = None


_FILES = {
    "file": _Engine("file", "._file_store", "FileEventStore"),
    "sqlite": _Engine("SQLite", "._sqlite", "SqliteEventStore"),
}
_POSTGRES = _Engine("PostgreSQL", "._postgres", "PostgresEventStore", extra="postgres")
_SERVERS = {
    "postgresql": _POSTGRES,
    "postgres": _POSTGRES,
    "nats": _Engine("NATS", "._nats", "NatsEventStore", extra="nats"),
}


def open_store(url: str, *, limits: Limits | None = None, durability: str = "fsync", create: bool = True) -> EventStore:
    """Open the store that a URL names.

    A path or ``file:PATH`` is the file engine, ``sqlite:FILE`` the SQLite engine, ``postgresql://…`` (as libpq reads
    it) is a server, ``nats://…`` a stream of NATS servers, ``memory:`` is nothing but memory. ``docs/engines.md`` says
    which is for whom.

    Raises:
        InvalidArgument: the URL names no engine, or there is no such durability.
        MissingExtra: the engine's packages are not installed.
        StorageUnavailable: the store cannot be opened.
    """
    if not url:
        message = f"a store is a path or a URL, not {url!r}"
        raise InvalidArgument(message)
    if durability not in _DURABILITIES:
        message = f"durability is one of {', '.join(_DURABILITIES)}, not {durability!r}"
        raise InvalidArgument(message)
    match = _SCHEME.match(url)
    scheme = "file" if match is None else match[1].lower()
    rest = url if match is None else url[match.end() :]
    if scheme == "memory":
        from ._memory import MemoryEventStore

        if rest:
            message = f"memory: takes nothing after it, got {rest!r}; every memory store is a new one"
            raise InvalidArgument(message)
        return MemoryEventStore()
    if scheme in _FILES:
        return _made(_FILES[scheme], _path_of(url, scheme, rest), limits, durability, create=create)
    if scheme in _SERVERS:
        return _made(_SERVERS[scheme], url, limits, durability, create=create)
    message = f"{url!r} names no engine that is known; use a path, file:, sqlite:, postgresql:, nats: or memory:"
    raise InvalidArgument(message)


def local_path(url: str) -> str | None:
    """Return the directory or the file of this machine that a store's URL names; None when it names none.

    Raises:
        InvalidArgument: the URL names an engine of files and no path.
    """
    match = _SCHEME.match(url)
    scheme = "file" if match is None else match[1].lower()
    return _path_of(url, scheme, url if match is None else url[match.end() :]) if scheme in _FILES else None


def _path_of(url: str, scheme: str, rest: str) -> str:
    path = rest.removeprefix("//") if rest.startswith("///") else rest
    if not path or path.startswith("//") or "\0" in path:
        message = f"{url!r} names no path; use {scheme}:PATH, or {scheme}:///PATH for an absolute one"
        raise InvalidArgument(message)
    if scheme == "sqlite" and path == ":memory:":
        message = f"{url!r} is gone with its connection; use memory:, or sqlite:./:memory: for a file of that name"
        raise InvalidArgument(message)
    return path


def _made(engine: _Engine, place: str, limits: Limits | None, durability: str, *, create: bool) -> EventStore:
    try:
        cls = getattr(importlib.import_module(engine.module, __package__), engine.cls)
    except ImportError as error:
        ours = (error.name or "").startswith(__package__ or "logmark")
        if ours and error.name != f"{__package__}{engine.module}":
            raise  # a fault of this package, which no installation mends
        raise MissingExtra(engine=engine.name, extra=None if ours else engine.extra) from error
    store: EventStore = cls(place, limits=limits, durability=durability, create=create)
    return store
