"""The file engine keeps the contract of ``EventStore``, in its usual and in its most cramped circumstances."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path

import pytest

from logmark.protocol import Limits
from logmark.storage import EventStore, FileEventStore
from logmark.testing import FaultyFiles
from logmark.testing.conformance import (
    EventStoreConformance,
    ProcessConformance,
    SharedStoreConformance,
    UncertainConformance,
)


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
    event_bytes_max = 100_000


class TestFileEngineInProcesses(ProcessConformance):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "store"

    def make_store(self) -> EventStore:
        return FileEventStore(self.path)


@pytest.mark.parametrize("failing", ["sync", "write"])
class TestFileEngineInDoubt(UncertainConformance):
    """A disk that fails at the rows, whatever reaches it."""

    @pytest.fixture(autouse=True)
    def _disk(self, failing: str) -> None:
        self.files = FaultyFiles()
        self.failing = failing

    def make_store(self) -> EventStore:
        return FileEventStore("store", files=self.files)

    def reopen(self, store: EventStore) -> EventStore:
        store.close()
        return self.make_store()

    @contextlib.contextmanager
    def unknown_outcome(self, store: EventStore) -> Generator[None]:
        self.files.fail(self.failing, path="*.jsonl*", times=None)
        yield
        self.files.heal()
