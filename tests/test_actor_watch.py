"""The WatchActor learns what other processes append, and no failure of the store ends its watch (row 60)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pykka
import pytest

from logmark.actors import WatchActor
from logmark.actors.messages import Changed, Unwatch, Watch
from logmark.protocol import Limits, StorageUnavailable
from logmark.storage import MemoryEventStore, SessionBatch, SessionInfo, get_logger
from logmark.testing import CapturedLogs, InlineReads, ManualClock, ManualTimers, StepDispatcher, request_of

INTERVAL_S = 0.5


class Store(MemoryEventStore):
    """Counts the looks, and fails them while ``error`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: list[str] = []
        self.error: Exception | None = None

    def info(self, session_id: str) -> SessionInfo:
        self.looks.append(session_id)
        if self.error is not None:
            raise self.error
        return super().info(session_id)


class Watching:
    """A WatchActor on virtual time, and what it has observed."""

    def __init__(self) -> None:
        self.store = Store()
        self.seen: list[tuple[str, int]] = []
        self.dispatcher = StepDispatcher()
        self.reads = InlineReads()
        self.timers = ManualTimers(ManualClock())
        self.ref: pykka.ActorRef[WatchActor] = WatchActor.start(
            store=self.store,
            observed=lambda session_id, last_seq: self.seen.append((session_id, last_seq)),
            timers=self.timers,
            reads=self.reads,
            limits=Limits(watch_interval_s=INTERVAL_S),
            dispatcher=self.dispatcher,
            clock=self.timers.clock,
            log=get_logger(),
        )

    def write(self, session_id: str) -> None:
        self.store.append([SessionBatch(session_id, (request_of(),))])

    def tell(self, *messages: Any) -> None:
        for message in messages:
            self.ref.tell(message)
        self.dispatcher.run_until_idle()

    def pass_time(self, intervals: int = 1) -> None:
        for _ in range(intervals):
            self.timers.advance(INTERVAL_S)
            self.dispatcher.run_until_idle()


@pytest.fixture
def watching() -> Iterator[Watching]:
    made = Watching()
    yield made
    made.ref.stop(block=False)
    made.dispatcher.run_until_idle()


def test_watched_sessions_are_looked_at_once_in_each_interval(watching: Watching) -> None:
    watching.write("a")
    watching.tell(Watch("a"), Watch("b"))
    assert watching.store.looks == []
    watching.pass_time()
    assert sorted(watching.seen) == [("a", 1), ("b", 0)]
    watching.write("b")
    watching.pass_time(2)
    assert watching.seen[2:] == [("a", 1), ("b", 1)] * 2


def test_a_watch_ends_with_as_many_unwatches_and_costs_nothing_after(watching: Watching) -> None:
    watching.tell(Watch("a"), Watch("a"), Unwatch("a"), Unwatch("never watched"))
    watching.pass_time()
    assert watching.store.looks == ["a"]
    watching.tell(Unwatch("a"))
    watching.pass_time(3)
    assert len(watching.store.looks) <= 2  # a look that was due already may still find nobody to look for
    assert watching.timers.pending == []
    watching.tell(Watch("a"))
    watching.pass_time()
    assert watching.seen[-1] == ("a", 0)


def test_a_slow_store_is_asked_once_at_a_time(watching: Watching) -> None:
    watching.reads.hold()
    watching.tell(Watch("a"))
    watching.pass_time(5)
    assert watching.reads.waiting == 1
    watching.reads.release()
    watching.dispatcher.run_until_idle()
    watching.pass_time()
    assert watching.seen == [("a", 0), ("a", 0)]


@pytest.mark.parametrize(
    "error",
    [StorageUnavailable(store="memory:", reason="gone"), OSError(5, "Input/output error"), RuntimeError("a bug")],
    ids=["unavailable", "oserror", "bug"],
)
def test_a_store_that_fails_is_logged_once_and_asked_again(
    watching: Watching, error: Exception, logs: CapturedLogs
) -> None:
    watching.write("a")
    watching.store.error = error
    watching.tell(Watch("a"))
    watching.pass_time(3)
    assert watching.seen == []
    assert len(logs.named("watch_failed", session="a")) == 1
    watching.store.error = None
    watching.pass_time()
    assert watching.seen == [("a", 1)]
    watching.store.error = error
    watching.pass_time()
    assert len(logs.named("watch_failed", session="a")) == 2


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ["on_receive", "_on_looked", "on_drained"])
def test_a_watch_goes_on_after_a_failure(
    watching: Watching, raise_once: Callable[..., list[Any]], name: str, after: bool
) -> None:
    watching.write("a")
    watching.tell(Watch("a"))
    raised = raise_once(WatchActor, name, after=after)
    watching.pass_time(3)
    assert raised
    watching.write("a")
    watching.pass_time()
    assert watching.seen[-1] == ("a", 2)


def test_a_stopped_watch_looks_no_more(watching: Watching) -> None:
    watching.reads.hold()
    watching.tell(Watch("a"))
    watching.pass_time()
    watching.ref.stop(block=False)
    watching.dispatcher.run_until_idle()
    watching.reads.release()  # the look that is still on its way finds nobody
    watching.pass_time(3)
    assert watching.store.looks == ["a"]
    assert watching.seen == []


# -- a store that says by itself what has changed --------------------------------------------------------------------


class TellingStore(Store):
    """Has hints, and wants to be asked without one every ten intervals only."""

    def watch(self, changed: Callable[[str | None], None]) -> float | None:
        self.changed = changed
        return 10 * INTERVAL_S


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watching]:
    monkeypatch.setitem(globals(), "Store", TellingStore)
    made = Watching()
    yield made
    made.ref.stop(block=False)
    made.dispatcher.run_until_idle()


def test_a_hint_is_followed_at_once_and_without_one_the_store_is_asked_rarely(told: Watching) -> None:
    told.write("a")
    told.tell(Watch("a"))
    assert told.seen == [("a", 1)]  # a hint may have come before anybody watched
    told.pass_time(9)
    assert told.store.looks == ["a"]
    told.write("a")
    told.store.changed("a")  # type: ignore[attr-defined]
    told.dispatcher.run_until_idle()
    assert told.seen == [("a", 1), ("a", 2)]
    told.pass_time(2)
    assert len(told.store.looks) == 3


def test_hints_concern_what_is_watched_and_one_without_a_session_concerns_all_of_it(told: Watching) -> None:
    told.tell(Watch("a"), Watch("b"))
    looks = len(told.store.looks)
    told.tell(Changed("a stranger"))
    assert len(told.store.looks) == looks
    told.tell(Changed(None))
    assert sorted(told.store.looks[looks:]) == ["a", "b"]


def test_hints_that_come_during_a_look_are_followed_after_it_together(told: Watching) -> None:
    told.tell(Watch("a"))
    told.reads.hold()
    told.write("a")
    told.tell(Changed("a"))
    told.tell(*[Changed("a")] * 20)
    assert told.reads.waiting == 1
    told.reads.release()
    told.dispatcher.run_until_idle()
    assert told.seen[-1] == ("a", 1)
    assert len(told.store.looks) == 3


def test_a_hint_after_the_end_is_dropped(told: Watching) -> None:
    told.tell(Watch("a"))
    told.ref.stop(block=False)
    told.dispatcher.run_until_idle()
    told.store.changed("a")  # type: ignore[attr-defined]
