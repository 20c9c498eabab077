"""The SQLite engine keeps the contract of ``EventStore``, in its usual and in its most cramped circumstances."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator
from pathlib import Path

import pytest

from logmark.protocol import Limits
from logmark.storage import EventStore, open_store
from logmark.storage._sqlite_db import CommitUncertain, Database
from logmark.testing.conformance import (
    EventStoreConformance,
    ProcessConformance,
    SharedStoreConformance,
    UncertainConformance,
)


class TestSqliteEngine(
    EventStoreConformance,
    SharedStoreConformance,
):
    limits = Limits()
    durability = "fsync"

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.url = f"sqlite:{tmp_path / 'events.db'}"

    def make_store(self) -> EventStore:
        return open_store(self.url, limits=self.limits, durability=self.durability)

    def reopen(self, store: EventStore) -> EventStore:
        store.close()
        return self.make_store()

    def make_second_store(self, store: EventStore) -> EventStore:
        return self.make_store()


class TestSqliteEngineInTinyPieces(TestSqliteEngine):
    """Reads of a row at a time, and commits that end in the page cache."""

    limits = Limits(read_chunk_bytes=97)
    durability = "os"


class TestSqliteEngineInProcesses(ProcessConformance):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.url = f"sqlite:{tmp_path / 'events.db'}"

    def make_store(self) -> EventStore:
        return open_store(self.url)


@pytest.mark.parametrize("is_there", [True, False])
class TestSqliteEngineInDoubt(UncertainConformance):
    """A commit that fails, and is there or not."""

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool) -> None:
        self.url = f"sqlite:{tmp_path / 'events.db'}"
        self.monkeypatch = monkeypatch
        self.is_there = is_there

    def make_store(self) -> EventStore:
        return open_store(self.url)

    def reopen(self, store: EventStore) -> EventStore:
        store.close()
        return self.make_store()

    @contextlib.contextmanager
    def unknown_outcome(self, store: EventStore) -> Generator[None]:
        def commit(_self: Database, connection: sqlite3.Connection) -> float:
            connection.execute("COMMIT" if self.is_there else "ROLLBACK")
            message = "commit failed: disk I/O error"
            raise CommitUncertain(message)

        with self.monkeypatch.context() as patch:
            patch.setattr(Database, "commit", commit)
            yield
