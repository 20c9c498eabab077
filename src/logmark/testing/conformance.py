"""The contract of ``EventStore`` as tests that an engine inherits.

An engine's own test module subclasses ``EventStoreConformance`` under a name that pytest collects and says how its
stores are made; an engine whose data several stores can hold at once subclasses ``SharedStoreConformance`` as well::

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
from ._conformance_halt import HaltConformance, SharedStoreConformance
from ._conformance_read import ODD_SESSION_IDS, ReadingConformance, SessionIdConformance, ThreadingConformance

__all__ = [
    "ODD_SESSION_IDS",
    "EventStoreConformance",
    "SharedStoreConformance",
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
):
    """What every engine promises; a subclass says how its stores are made (``make_store`` and ``reopen``)."""
