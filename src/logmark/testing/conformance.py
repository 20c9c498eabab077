"""The contract of ``EventStore`` as tests that an engine inherits.

An engine's own test module subclasses ``EventStoreConformance`` under a name that pytest collects and says how its
stores are made. An engine whose data several stores can hold at once subclasses ``SharedStoreConformance`` as well, one
that several processes can open by its URL ``ProcessConformance``, and one whose commits can be made to end with nobody
knowing how ``UncertainConformance``::

    from logmark.testing.conformance import EventStoreConformance, SharedStoreConformance

    class TestMyEngine(EventStoreConformance, SharedStoreConformance):
        @pytest.fixture(autouse=True)
        def _place(self, tmp_path):
            self.path = tmp_path

        def make_store(self):
            return MyEventStore(self.path)

        def reopen(self, store):
            store.close()
            return MyEventStore(self.path)

        def make_second_store(self, store):
            return MyEventStore(self.path)

``make_store`` is called once for each test, and must give it a store that no other test has seen: a directory of its
own, or a schema or stream of its own on a server that the tests share.

Each test's docstring says the promise that it holds the engine to. The functions beside the classes make events and
requests in short words; tests of an engine's own hazards may use them too. Nothing here needs pytest, but the tests are
plain asserts, so they say nothing under ``python -O``.
"""

from __future__ import annotations

from ._conformance_append import IdConformance, NumberingConformance, ReservationConformance
from ._conformance_base import (
    append_answers,
    append_batch,
    append_events,
    make_event,
    make_events,
    raised_by,
    run_together,
    seqs_of,
    texts_of,
)
from ._conformance_halt import HaltConformance, TwoStoresConformance
from ._conformance_lifetimes import LifetimeConformance, TwoStoresLifetimeConformance
from ._conformance_load import LoadConformance
from ._conformance_read import ODD_SESSION_IDS, ReadingConformance, SessionIdConformance, ThreadingConformance
from ._conformance_records import RecordConformance, TwoStoresRecordConformance
from ._conformance_shared import ProcessConformance, RaceConformance
from ._conformance_uncertain import UncertainConformance

__all__ = [
    "ODD_SESSION_IDS",
    "EventStoreConformance",
    "LifetimeConformance",
    "ProcessConformance",
    "RecordConformance",
    "SharedStoreConformance",
    "TwoStoresLifetimeConformance",
    "TwoStoresRecordConformance",
    "UncertainConformance",
    "append_answers",
    "append_batch",
    "append_events",
    "make_event",
    "make_events",
    "raised_by",
    "run_together",
    "seqs_of",
    "texts_of",
]


class EventStoreConformance(
    NumberingConformance,
    IdConformance,
    ReservationConformance,
    ReadingConformance,
    SessionIdConformance,
    ThreadingConformance,
    HaltConformance,
    LoadConformance,
    LifetimeConformance,
    RecordConformance,
):
    """What every engine promises; a subclass says how its stores are made (``make_store`` and ``reopen``)."""


class SharedStoreConformance(
    TwoStoresConformance, RaceConformance, TwoStoresLifetimeConformance, TwoStoresRecordConformance
):
    """For engines that several runtimes can hold at once; a subclass also says how (``make_second_store``)."""
