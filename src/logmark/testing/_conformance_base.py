"""What the conformance classes share: making stores, events and requests, and saying what was raised."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from ..protocol import AppendError, EncodedEvent, RawEnvelope
from ..storage import Appended, AppendRequest, BatchResult, EventStore, SessionBatch
from ._events import encoded_event

__all__ = [
    "StoreHarness",
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

E = TypeVar("E", bound=BaseException)
_DEADLINE_S = 60.0


def make_event(text: str = "hello", *, id: str | None = None) -> EncodedEvent:
    """Return an event that says ``text``; without ``id`` it gets one that no other event has."""
    return encoded_event("note", {"text": text}, id=id)


def make_events(texts: str, *, ids: Iterable[str] | None = None) -> tuple[EncodedEvent, ...]:
    """Return an event for each word of ``texts``, with fresh ids or the given ones."""
    words = texts.split()
    given = [None] * len(words) if ids is None else list(ids)
    return tuple(make_event(text, id=id_) for text, id_ in zip(words, given, strict=True))


def append_batch(store: EventStore, session_id: str, *requests: AppendRequest) -> BatchResult:
    """Append the requests as one batch of one session and return its result."""
    (result,) = store.append([SessionBatch(session_id, requests)])
    return result


def append_answers(store: EventStore, session_id: str, *requests: AppendRequest) -> tuple[Appended | AppendError, ...]:
    """Append the requests as one batch of one session and return the answers."""
    return append_batch(store, session_id, *requests).answers


def append_events(
    store: EventStore, session_id: str, *events: EncodedEvent, expected_seq: int | None = None
) -> Appended:
    """Append events as one request, and return its numbers or raise what it was answered with."""
    (answer,) = append_answers(store, session_id, AppendRequest(events, expected_seq))
    if isinstance(answer, AppendError):
        raise answer
    return answer


def raised_by(kind: type[E], call: Callable[..., object], *arguments: object, **named: object) -> E:
    """Return the error of this kind that a call raises; it is a failure when the call raises none."""
    try:
        found = call(*arguments, **named)
    except kind as error:
        return error
    message = f"{kind.__name__} was not raised; the call returned {found!r}"
    raise AssertionError(message)


def seqs_of(events: Iterable[RawEnvelope]) -> list[int | None]:
    """Return the numbers of events."""
    return [event.event_seq for event in events]


def texts_of(events: Iterable[RawEnvelope]) -> list[str]:
    """Return what events made by ``make_event`` say."""
    return [event.decode().payload["text"] for event in events]


def run_together(*calls: Callable[[], None]) -> None:
    """Run the calls in a thread each, and raise the first error when all have ended."""
    errors: list[BaseException] = []

    def run(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_DEADLINE_S)
    if errors:
        raise errors[0]
    if any(thread.is_alive() for thread in threads):
        message = f"a thread has not ended within {_DEADLINE_S:g} s"
        raise AssertionError(message)


class StoreHarness:
    """Makes the stores of a test, and closes them after it.

    ``setup_method`` and ``teardown_method`` are called by pytest; a subclass that has its own calls these too.
    """

    def make_store(self) -> EventStore:
        """Return a store without any session, which no other test sees."""
        raise NotImplementedError

    def reopen(self, store: EventStore) -> EventStore:
        """Close a store and return another on the same data, as a restarted program would open it.

        An engine that keeps nothing beyond its process returns the store as it is.
        """
        raise NotImplementedError

    def make_second_store(self, store: EventStore) -> EventStore:
        """Return another store on the data of ``store``, which stays open, as another process would open it."""
        raise NotImplementedError

    def url_of(self, store: EventStore) -> str:
        """Return what another process opens the store's data by."""
        return store.url

    def two_stores(self) -> tuple[EventStore, EventStore]:
        """Return two stores on the same data, to be closed after the test."""
        store = self.opened()
        return store, self.closed_later(self.make_second_store(store))

    def setup_method(self) -> None:
        """Start a test without stores."""
        self._stores: list[EventStore] = []

    def teardown_method(self) -> None:
        """Close what the test has opened."""
        for store in reversed(self._stores):
            store.close()

    def opened(self) -> EventStore:
        """Return the test's store, to be closed after it."""
        return self.closed_later(self.make_store())

    def reopened(self, store: EventStore) -> EventStore:
        """Return the store as a restarted program sees it, to be closed after the test."""
        return self.closed_later(self.reopen(store))

    def before_and_after_restart(self, store: EventStore) -> Iterator[EventStore]:
        """Yield the store, then the same data as a restarted program sees it."""
        yield store
        yield self.reopened(store)

    def closed_later(self, store: EventStore) -> EventStore:
        """Close a store after the test."""
        self._stores.append(store)
        return store
