"""The memory engine keeps the contract of ``EventStore``."""

from __future__ import annotations

from logmark.storage import EventStore, MemoryEventStore
from logmark.testing.conformance import EventStoreConformance


class TestMemoryEngine(EventStoreConformance):
    def make_store(self) -> EventStore:
        return MemoryEventStore()

    def reopen(self, store: EventStore) -> EventStore:
        return store  # memory is gone with its process, so there is nothing that could be opened again
