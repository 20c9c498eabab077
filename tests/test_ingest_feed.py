"""The way of ingested events into the store: batched, in order, and nothing behind a failed append."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from logmark import Envelope, LogmarkError, Runtime
from logmark.cli import _ingest_feed
from logmark.cli._ingest_feed import Feed
from logmark.errors import InvalidEvent, LogCorrupt, StorageRejected
from logmark.storage import BatchResult, MemoryEventStore, SessionBatch, SessionInfo
from logmark.testing import eventually


class ScriptedStore(MemoryEventStore):
    """Holds commits while ``open_for_writes`` is clear, and refuses the commits of the named sessions."""

    def __init__(self) -> None:
        super().__init__()
        self.open_for_writes = threading.Event()
        self.open_for_writes.set()
        self.begun = threading.Event()
        self.refusals: dict[str, list[LogmarkError]] = {}
        self.commits: list[tuple[str, int]] = []

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        self.begun.set()
        assert self.open_for_writes.wait(10)
        results: list[BatchResult] = []
        for batch in batches:
            self.commits.append((batch.session_id, len(batch.requests)))
            errors = self.refusals.get(batch.session_id)
            if errors:
                error = errors.pop(0)
                before = super().info(batch.session_id).last_seq
                answers = (error,) * len(batch.requests)
                results.append(
                    BatchResult(session_id=batch.session_id, answers=answers, last_seq_before=before, last_seq=before)  # type: ignore[arg-type]
                )
            else:
                results += super().append([batch])
        return results


@pytest.fixture
def store() -> ScriptedStore:
    return ScriptedStore()


@pytest.fixture
def runtime(store: ScriptedStore) -> Iterator[Runtime]:
    with Runtime(store) as runtime:
        yield runtime
        store.open_for_writes.set()


def put(feed: Feed, session_id: str, *numbers: int) -> None:
    for number in numbers:
        feed.put(session_id, Envelope(type="a", payload=number, id=f"id-{number}"), 10)


def payloads(runtime: Runtime, session_id: str) -> list[int]:
    return [event.payload for event in runtime.session(session_id).read()]


def test_many_events_are_under_way_at_once(runtime: Runtime, store: ScriptedStore) -> None:
    feed = Feed(runtime)
    store.open_for_writes.clear()
    put(feed, "s", 0)
    assert store.begun.wait(10)  # the first commit is held, so that all others wait behind it
    put(feed, "s", *range(1, 500))
    store.open_for_writes.set()
    feed.finish()

    assert feed.stored == 500
    assert payloads(runtime, "s") == list(range(500))
    assert len(store.commits) == 2


def test_no_more_is_under_way_than_the_window(
    runtime: Runtime, store: ScriptedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ingest_feed, "_SESSION_EVENTS_MAX", 3)
    feed = Feed(runtime)
    store.open_for_writes.clear()
    put(feed, "s", 0, 1, 2)
    fourth = threading.Thread(target=put, args=(feed, "s", 3))
    fourth.start()
    assert store.begun.wait(10)
    fourth.join(0.05)  # it cannot end: nothing is answered while the store is held

    assert fourth.is_alive()
    assert runtime.session("s")._gate is not None
    assert runtime.session("s")._gate.events == 3  # type: ignore[union-attr]
    store.open_for_writes.set()
    fourth.join(10)
    feed.finish()
    assert payloads(runtime, "s") == [0, 1, 2, 3]


def test_bytes_under_way_are_bounded_over_all_sessions(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ingest_feed, "_BYTES_MAX", 25)
    feed = Feed(runtime)
    for number in range(20):
        put(feed, f"s{number % 3}", number)
        assert feed._bytes <= 25
    feed.finish()

    assert feed._bytes == 0
    assert (feed.stored, feed.sessions) == (20, 3)


def test_repetitions_are_told_from_new_events(runtime: Runtime) -> None:
    """Row 40: the same id again is the same number, first content wins."""
    runtime.session("s").append("a", "before", id="id-1")
    feed = Feed(runtime)
    put(feed, "s", 1, 2, 3, 3, 1, 4)
    put(feed, "t", 1)
    feed.finish()

    assert (feed.stored, feed.repeated, feed.refused) == (4, 3, 0)
    assert payloads(runtime, "s") == ["before", 2, 3, 4]
    assert payloads(runtime, "t") == [1]


def test_nothing_is_stored_behind_an_append_that_failed(runtime: Runtime, store: ScriptedStore) -> None:
    """Row 22: the next commit would succeed, and leave a hole that a second ingest could only fill out of order."""
    store.refusals["s"] = [StorageRejected(session_id="s", reason="full for a moment")]
    feed = Feed(runtime)
    store.open_for_writes.clear()
    put(feed, "s", 0)
    assert store.begun.wait(10)
    put(feed, "s", *range(1, 50))
    put(feed, "t", *range(50))
    store.open_for_writes.set()
    eventually(feed.failed)
    put(feed, "s", 50)
    feed.finish()

    assert payloads(runtime, "s") == []
    assert payloads(runtime, "t") == list(range(50))
    (failed,) = feed.failed()
    assert (failed.session_id, failed.refused) == ("s", 51)
    assert isinstance(failed.error, StorageRejected)
    assert (feed.stored, feed.refused) == (50, 51)


def test_a_session_that_was_refused_is_completed_by_the_next_ingest(runtime: Runtime, store: ScriptedStore) -> None:
    first = Feed(runtime)
    put(first, "s", 0, 1)
    first.finish()
    store.refusals["s"] = [StorageRejected(session_id="s", reason="full for a moment")]
    second = Feed(runtime)
    put(second, "s", *range(10))
    second.finish()
    third = Feed(runtime)
    put(third, "s", *range(10))
    third.finish()

    assert second.stored == 0
    assert (third.stored, third.repeated) == (8, 2)
    assert payloads(runtime, "s") == list(range(10))


def test_an_event_that_cannot_be_stored_does_not_stop_its_session(runtime: Runtime) -> None:
    feed = Feed(runtime)
    put(feed, "s", 0)
    with pytest.raises(InvalidEvent):
        feed.put("s", Envelope(type="x" * 500, id="id-1"), 10)
    put(feed, "s", 2)
    feed.finish()

    assert payloads(runtime, "s") == [0, 2]
    assert feed.failed() == []


def test_a_session_that_cannot_be_opened_does_not_stop_the_others(
    runtime: Runtime, store: ScriptedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = store.info

    def info(session_id: str) -> SessionInfo:
        if session_id == "damaged":
            raise LogCorrupt(session_id=session_id, reason="test", event_seq=1, segment=None, offset=None)
        return known(session_id)

    monkeypatch.setattr(store, "info", info)
    feed = Feed(runtime)
    put(feed, "damaged", 0, 1)
    put(feed, "s", 0, 1)
    feed.finish()

    assert [(failed.session_id, failed.refused) for failed in feed.failed()] == [("damaged", 2)]
    assert payloads(runtime, "s") == [0, 1]
