"""The NATS engine keeps the contract of ``EventStore``, on a real server."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator

import pytest

from logmark.storage import EventStore, open_store
from logmark.testing import FaultyProxy, NatsServer
from logmark.testing.conformance import (
    EventStoreConformance,
    ProcessConformance,
    SharedStoreConformance,
    UncertainConformance,
)

_numbers = itertools.count(1)


class TestNatsEngine(
    EventStoreConformance,
    SharedStoreConformance,
):
    @pytest.fixture(autouse=True)
    def _place(self, nats_server: NatsServer) -> None:
        self.url = nats_server.url(f"conformance_{next(_numbers)}")

    def make_store(self) -> EventStore:
        return open_store(self.url)

    def reopen(self, store: EventStore) -> EventStore:
        store.close()
        return self.make_store()

    def make_second_store(self, store: EventStore) -> EventStore:
        return self.make_store()


class TestNatsEngineInProcesses(ProcessConformance):
    @pytest.fixture(autouse=True)
    def _place(self, nats_server: NatsServer) -> None:
        self.url = nats_server.url(f"conformance_{next(_numbers)}")

    def make_store(self) -> EventStore:
        return open_store(self.url)


@pytest.mark.parametrize("moment", ["before", "sent", "answered"])
class TestNatsEngineInDoubt(UncertainConformance):
    """The connection is lost with the append on it; the server is asked what has become of it."""

    @pytest.fixture(autouse=True)
    def _place(self, nats_server: NatsServer, moment: str) -> Iterator[None]:
        self.moment = moment
        with FaultyProxy(nats_server.port) as self.proxy:
            self.url = nats_server.url(f"conformance_{next(_numbers)}", port=self.proxy.port)
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
