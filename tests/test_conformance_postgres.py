"""The PostgreSQL engine keeps the contract of ``EventStore``, on a real server and in tiny pages."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator

import pytest

from logmark.protocol import Limits
from logmark.storage import EventStore, open_store
from logmark.testing import FaultyProxy, PostgresServer
from logmark.testing.conformance import (
    EventStoreConformance,
    ProcessConformance,
    SharedStoreConformance,
    UncertainConformance,
)

_numbers = itertools.count(1)


class TestPostgresEngine(
    EventStoreConformance,
    SharedStoreConformance,
):
    limits = Limits()

    @pytest.fixture(autouse=True)
    def _place(self, postgres_server: PostgresServer) -> None:
        self.url = postgres_server.url(schema=f"conformance_{next(_numbers)}")

    def make_store(self) -> EventStore:
        return open_store(self.url, limits=self.limits)

    def reopen(self, store: EventStore) -> EventStore:
        store.close()
        return self.make_store()

    def make_second_store(self, store: EventStore) -> EventStore:
        return self.make_store()


class TestPostgresEngineInProcesses(ProcessConformance):
    @pytest.fixture(autouse=True)
    def _place(self, postgres_server: PostgresServer) -> None:
        self.url = postgres_server.url(schema=f"conformance_{next(_numbers)}")

    def make_store(self) -> EventStore:
        return open_store(self.url)


@pytest.mark.parametrize("moment", ["before", "sent", "answered"])
class TestPostgresEngineInDoubt(UncertainConformance):
    """The connection is lost with the append on it; the server is asked what has become of it."""

    @pytest.fixture(autouse=True)
    def _place(self, postgres_server: PostgresServer, moment: str) -> Iterator[None]:
        self.moment = moment
        with FaultyProxy(postgres_server.port) as self.proxy:
            self.url = postgres_server.url(schema=f"conformance_{next(_numbers)}", port=self.proxy.port)
            yield

    def make_store(self) -> EventStore:
        return open_store(self.url)

    def reopen(self, store: EventStore) -> EventStore:
        store.close()
        return self.make_store()

    @contextlib.contextmanager
    def unknown_outcome(self, store: EventStore) -> Generator[None]:
        fault = self.proxy.fault(b"", self.moment)  # type: ignore[arg-type]
        yield
        fault.wait()
