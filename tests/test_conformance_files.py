"""The file engine keeps the contract of ``EventStore``, in its usual and in its most cramped circumstances."""

from __future__ import annotations

from pathlib import Path

import pytest

from logmark.protocol import Limits
from logmark.storage import EventStore, FileEventStore
from logmark.testing.conformance import EventStoreConformance, SharedStoreConformance


class TestFileEngine(EventStoreConformance, SharedStoreConformance):
    limits = Limits()
    durability = "fsync"

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "store"

    def make_store(self) -> EventStore:
        return FileEventStore(self.path, limits=self.limits, durability=self.durability)

    def reopen(self, store: EventStore) -> EventStore:
        store.close()
        return self.make_store()

    def make_second_store(self, store: EventStore) -> EventStore:
        return self.make_store()


class TestFileEngineInThePageCache(TestFileEngine):
    durability = "os"


class TestFileEngineInTinyPieces(TestFileEngine):
    """A segment for nearly every commit, reads of a few bytes, and hardly a descriptor to keep open."""

    limits = Limits(segment_bytes_max=600, read_chunk_bytes=97, open_sessions_max=2)
