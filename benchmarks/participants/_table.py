"""The peers by name; each module is loaded only when its peer is asked for."""

from __future__ import annotations

import importlib

from ._base import Participant

__all__ = ["PEERS", "label_of", "make"]

PEERS: dict[str, tuple[str, str]] = {
    "sqlite": ("._sqlite", "SqlitePlain"),
    "sqlite-group": ("._sqlite", "SqliteGroup"),
    "eventsourcing": ("._eventsourcing", "EventSourcing"),
    "persist-queue": ("._persist_queue", "PersistQueue"),
    "arcp-sdk": ("._arcp_sdk", "ArcpSdk"),
    "redis": ("._redis", "RedisStreams"),
    "postgres": ("._postgres", "PostgreSql"),
    "nats": ("._nats", "NatsJetStream"),
}
"""Name to module and class."""


def make(name: str) -> Participant:
    """Return a peer that is not open yet.

    Raises:
        Missing: a package or a program is not installed.
    """
    return _class(name)()


def label_of(name: str) -> str:
    """Return how a peer is called in tables, whether or not it can take part."""
    return _class(name).label


def _class(name: str) -> type[Participant]:
    module, cls = PEERS[name]
    found: type[Participant] = getattr(importlib.import_module(module, __package__), cls)
    return found
