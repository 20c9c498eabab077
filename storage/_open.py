"""From a URL to an engine, imported only when it is asked for."""

from __future__ import annotations

import re

from ..protocol import InvalidArgument, Limits, MissingExtra
from ._store import EventStore

__all__ = ["open_store"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.]+):")  # two letters or more: "C:\\data" is a path
_DURABILITIES = ("fsync", "os")
_PLANNED = frozenset({"sqlite", "postgresql", "postgres", "nats"})


def open_store(url: str, *, limits: Limits | None = None, durability: str = "fsync", create: bool = True) -> EventStore:
    """Open the store that a URL names: a path or ``file:PATH`` (the default engine), or ``memory:``.

    Raises:
        InvalidArgument: the URL names no engine, or there is no such durability.
        MissingExtra: the engine is not installed.
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
    if scheme == "file":
        from ._file_store import FileEventStore

        path = rest.removeprefix("//") if rest.startswith("///") else rest
        if not path or path.startswith("//") or "\0" in path:
            message = f"{url!r} names no directory; use file:PATH, or file:///PATH for an absolute one"
            raise InvalidArgument(message)
        return FileEventStore(path, limits=limits, durability=durability, create=create)
    if scheme in _PLANNED:
        raise MissingExtra(engine=scheme, extra=None)
    message = f"{url!r} names no engine that is known; use a path, file:PATH or memory:"
    raise InvalidArgument(message)
