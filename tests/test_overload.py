"""Inboxes are bounded: a producer that outruns the disk waits, and is refused after its deadline; nothing is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import logmark
from logmark import Limits
from logmark.errors import AppendRejected, InvalidEvent, Overloaded, RuntimeClosed
from logmark.storage import BatchResult, MemoryEventStore, SessionBatch
from logmark.testing import eventually

SOON = 10.0


class StalledStore(MemoryEventStore):
    """A disk that answers nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.began = threading.Event()
        self.through = threading.Event()

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        self.began.set()
        assert self.through.wait(SOON)
        return super().append(batches)


CALLS: dict[str, Callable[[logmark.Session], object]] = {
    "append": lambda session: session.append("x", "late"),
    "submit": lambda session: session.submit("x", "late"),
    "append_many": lambda session: session.append_many([("x", "late")]),
}


@pytest.mark.parametrize("how", CALLS)
def test_a_full_inbox_refuses_after_the_deadline(how: str) -> None:
    store = StalledStore()
    limits = Limits(inbox_events_max=3, inbox_wait_s=0.05)
    with logmark.Runtime(store, limits=limits) as runtime:
        session, other = runtime.session("s"), runtime.session("other")
        futures = [session.submit("x", n) for n in range(3)]
        began = time.monotonic()
        with pytest.raises(Overloaded) as caught:
            CALLS[how](session)
        assert time.monotonic() - began >= 0.05
        assert (caught.value.session_id, caught.value.waited_s, caught.value.waiting_events) == ("s", 0.05, 3)
        assert isinstance(caught.value, AppendRejected | TimeoutError)
        elsewhere = other.submit("x")  # every session has an inbox of its own
        store.through.set()
        assert [future.result(SOON) for future in futures] == [1, 2, 3]
        assert elsewhere.result(SOON) == 1
        assert session.append("x", 3) == 4
        assert [event.payload for event in session.read()] == [0, 1, 2, 3]


def test_bytes_are_bounded_as_events_are() -> None:
    store = StalledStore()
    limits = Limits(event_bytes_max=1000, inbox_bytes_max=2000, inbox_wait_s=0.05)
    with logmark.Runtime(store, limits=limits) as runtime:
        session = runtime.session("s")
        first = session.submit("x", "y" * 700)
        second = session.submit("x", "y" * 700)
        with pytest.raises(Overloaded):
            session.append("x", "y" * 700)
        small = session.submit("x")
        store.through.set()
        assert [future.result(SOON) for future in (first, second, small)] == [1, 2, 3]


def test_a_producer_that_waits_gets_the_first_place_that_comes_free() -> None:
    store = StalledStore()
    with logmark.Runtime(store, limits=Limits(inbox_events_max=2)) as runtime:
        session = runtime.session("s")
        futures = [session.submit("x", n) for n in range(2)]
        numbers: list[int] = []
        producers = [threading.Thread(target=lambda: numbers.append(session.append("x"))) for _ in range(10)]
        for producer in producers:
            producer.start()
        assert store.began.wait(SOON)
        assert session._gate is not None
        assert session._gate.events == 2
        store.through.set()
        for producer in producers:
            producer.join(SOON)
        assert [future.result(SOON) for future in futures] == [1, 2]
        assert sorted(numbers) == list(range(3, 13))
        assert session._gate.events == 0


def test_what_can_never_fit_is_refused_at_once() -> None:
    store = StalledStore()
    with logmark.Runtime(store, limits=Limits(inbox_events_max=3)) as runtime:
        session = runtime.session("s")
        future = session.submit("x")
        with pytest.raises(InvalidEvent, match="inbox_events_max"):
            session.append_many([("x", n) for n in range(4)])
        store.through.set()
        assert future.result(SOON) == 1
        assert session.append_many([("x", n) for n in range(3)]) == (2, 4)


def test_a_cancelled_future_gives_its_place_back() -> None:
    store = StalledStore()
    with logmark.Runtime(store, limits=Limits(inbox_events_max=5)) as runtime:
        session = runtime.session("s")
        first = session.submit("x", "first")
        assert store.began.wait(SOON)
        futures = [session.submit("x", n) for n in range(4)]
        assert all(future.cancel() for future in futures)
        store.through.set()
        assert first.result(SOON) == 1
        gate = session._gate
        assert gate is not None
        eventually(lambda: gate.events == 0, SOON)
        assert session.append_many([("x", "next")] * 5) == (2, 6)
        assert [event.payload for event in session.read()] == ["first", *["next"] * 5]


def test_closing_tells_a_producer_that_waits() -> None:
    store = StalledStore()
    runtime = logmark.Runtime(store, limits=Limits(inbox_events_max=1))
    session = runtime.session("s")
    future = session.submit("x")
    outcome: list[Exception] = []

    def produce() -> None:
        try:
            session.append("x")
        except RuntimeClosed as error:
            outcome.append(error)

    producer = threading.Thread(target=produce)
    producer.start()
    closer = threading.Thread(target=runtime.close)
    closer.start()
    producer.join(SOON)
    assert not producer.is_alive()
    assert len(outcome) == 1
    assert not future.done()
    store.through.set()
    closer.join(SOON)
    assert future.result(0) == 1


def test_a_burst_faster_than_the_disk_is_stored_whole_row_63(tmp_path: Path) -> None:
    """Row 63: nothing is dropped on the durable path: the producer is slowed down instead."""
    with logmark.open(str(tmp_path), limits=Limits(inbox_events_max=100)) as runtime:
        session = runtime.session("s")
        futures = [session.submit("x", n) for n in range(5000)]
        assert [future.result(SOON) for future in futures] == list(range(1, 5001))
        assert [event.payload for event in session.read()] == list(range(5000))
