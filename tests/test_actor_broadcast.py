"""Subscribers are isolated from each other and from the session (row 64), and learn how far the log goes (row 60)."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest

from logmark import Runtime
from logmark.actors import BroadcastActor
from logmark.actors.messages import Subscribe
from logmark.protocol import Limits, RawEnvelope
from logmark.storage import MemoryEventStore, SessionBatch
from logmark.testing import ActorHarness, CapturedLogs, RecordingSubscriber, encoded_event, request_of

SOON = 5.0


class Failing(RecordingSubscriber):
    """Raises at one of its offers, and, if so told, in everything else as well."""

    def __init__(self, error: BaseException, *, at: int = 1, rude: bool = False) -> None:
        super().__init__()
        self._error = error
        self._at = at
        self._rude = rude

    def offer(self, envelopes: tuple[RawEnvelope, ...], last_seq: int) -> None:
        super().offer(envelopes, last_seq)
        if len(self.offers) >= self._at:
            raise self._error

    def end(self) -> None:
        super().end()
        if self._rude:
            raise self._error

    def __repr__(self) -> str:
        if self._rude:
            raise self._error
        return super().__repr__()


class Ended(BaseException):
    """Stands for SystemExit, a test framework's outcome, a cancelled task: not an Exception."""


@pytest.mark.parametrize("rude", [False, True], ids=["plain", "rude"])
@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), Ended()], ids=["exception", "exit", "outcome"])
@pytest.mark.parametrize("at", [1, 3])
def test_a_subscriber_that_raises_is_detached_and_the_rest_receive_all_row_64(
    error: BaseException, rude: bool, at: int, logs: CapturedLogs
) -> None:
    with ActorHarness() as harness:
        failing, behind = Failing(error, at=at, rude=rude), RecordingSubscriber()
        harness.subscribe(failing)
        harness.subscribe(behind)
        assert [harness.append().result(SOON) for _ in range(5)] == [1, 2, 3, 4, 5]
        harness.subscriber.wait_for(5)
        behind.wait_for(5)

        assert harness.subscriber.seqs == behind.seqs == [1, 2, 3, 4, 5]
        assert failing.seqs == list(range(1, at + 1))
        assert failing.ended  # better an end than a silence
        event = logs.wait_for("subscriber_detached", session="session")
        assert event["level"] == "error"
        assert len(logs.named("subscriber_detached", session="session")) == 1
    assert (harness.subscriber.ends, behind.ends, failing.ends) == (1, 1, 1)


def test_a_subscriber_whose_end_raises_keeps_the_end_from_nobody_row_64(logs: CapturedLogs) -> None:
    with ActorHarness() as harness:
        harness.subscribe(Failing(SystemExit(1), at=99, rude=True))
        behind = RecordingSubscriber()
        harness.subscribe(behind)
        harness.append().result(SOON)
    assert (harness.subscriber.ends, behind.ends) == (1, 1)
    assert logs.named("subscriber_end_failed", session="session")


def test_a_subscriber_that_comes_after_the_end_is_told_so() -> None:
    with ActorHarness(stepped=True) as harness:
        harness.append()
        harness.run()
        assert harness.broadcast is not None
        harness.broadcast.stop(block=False)
        late, rude = RecordingSubscriber(), Failing(ValueError("no"), rude=True)
        harness.broadcast.tell(Subscribe(rude))
        harness.broadcast.tell(Subscribe(late))
        harness.run()

        assert (rude.ends, late.ends) == (1, 1)


def test_a_subscriber_that_left_is_offered_nothing_more() -> None:
    with ActorHarness(stepped=True) as harness:
        first, second = RecordingSubscriber(), RecordingSubscriber()
        harness.unsubscribe(first)  # never subscribed
        for subscriber in (first, second):
            harness.subscribe(subscriber)
        harness.append()
        harness.run()
        harness.unsubscribe(first)
        harness.append()
        harness.run()

        assert (first.seqs, second.seqs) == ([1], [1, 2])
        assert first.ends == 0


def test_subscribers_may_leave_and_come_while_they_are_offered() -> None:
    """A subscriber may call back into the session from ``offer``: it takes effect with the next batch."""
    with ActorHarness(stepped=True) as harness:
        newcomer = RecordingSubscriber()

        class Changing(RecordingSubscriber):
            def offer(self, envelopes: tuple[RawEnvelope, ...], last_seq: int) -> None:
                super().offer(envelopes, last_seq)
                harness.unsubscribe(self)
                harness.subscribe(newcomer)

        changing = Changing()
        harness.subscribe(changing)
        harness.append()
        harness.run()
        harness.append()
        harness.run()

        assert changing.seqs == [1]
        assert newcomer.seqs == [2]
        assert harness.subscriber.seqs == [1, 2]


def test_a_batch_is_offered_whole_and_once() -> None:
    with ActorHarness(stepped=True) as harness:
        harness.append_many([encoded_event() for _ in range(3)])
        harness.append()
        harness.run()

        ((envelopes, last_seq),) = harness.subscriber.offers
        assert [envelope.event_seq for envelope in envelopes] == [1, 2, 3, 4]
        assert last_seq == 4


def test_news_of_other_processes_is_passed_on_without_events_row_60() -> None:
    with ActorHarness(stepped=True) as harness:
        harness.observe(5)
        harness.observe(3)  # old news
        harness.observe(5)
        harness.run()

        assert harness.subscriber.offers == [((), 5)]
        assert harness.last_seq == 5


def test_a_restarted_broadcast_actor_says_at_once_how_far_the_log_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that, a subscriber that missed the last batch would wait for it until somebody appends again."""
    with ActorHarness(stepped=True, failures_ok=True) as harness:
        harness.append()
        harness.run()

        def fails(*_: Any) -> None:
            raise ValueError("in the middle")

        monkeypatch.setattr(BroadcastActor, "_offer", fails)
        harness.append()
        harness.run()

        assert harness.subscriber.seqs == [1]
        assert harness.subscriber.offers[-1] == ((), 2)


# -- with the front door: history and live without a seam -----------------------------------------------------------


class Interleaved(MemoryEventStore):
    """A store in which somebody else appends at a chosen moment: before the n-th look at a session."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at
        self.looks = 0
        self.armed = False
        self.other: Any = None

    def info(self, session_id: str) -> Any:
        if self.armed:
            self.looks += 1
            if self.looks == self._at:
                self.armed = False
                self.other()
        return super().info(session_id)


@pytest.mark.parametrize("of_another_process", [False, True], ids=["own", "other process"])
@pytest.mark.parametrize("from_seq", [None, 1, 3, 4])
def test_an_append_at_any_moment_of_a_subscribe_is_neither_skipped_nor_repeated_row_59_row_60(
    from_seq: int | None, of_another_process: bool
) -> None:
    for at in itertools.count(1):
        store = Interleaved(at)
        with Runtime(store) as runtime:
            session = runtime.session("session")
            for n in range(3):
                session.append("message.created", n)

            def somebody_appends(store: Interleaved = store, session: Any = session) -> None:
                if of_another_process:
                    store.append([SessionBatch("session", (request_of(),))])
                else:
                    session.append("message.created", "in between")

            store.other, store.armed = somebody_appends, True
            with session.subscribe(from_seq=from_seq) as subscription:
                happened, store.armed = not store.armed, False
                last = session.append("message.created", "after")
                seen = [subscription.get(timeout=SOON).event_seq]
                while seen[-1] != last:
                    seen.append(subscription.get(timeout=SOON).event_seq)
            # Live begins with the call or after it; wherever it begins, there is no gap and nothing comes twice.
            assert seen == list(range(seen[0] or 0, last + 1))
            assert seen[0] == from_seq or (from_seq is None and seen[0] in (4, 5))
            if not happened:
                assert at > 1
                return


def test_a_page_and_what_follows_it_have_no_gap_row_59() -> None:
    """The position is taken before the body is read: what is appended in between is read twice or once, never not."""
    store = Interleaved(1)
    with Runtime(store) as runtime:
        session = runtime.session("session")
        for n in range(5):
            session.append("message.created", n)
        store.other, store.armed = lambda: session.append("message.created", "in between"), True
        page = session.page(limit=3)
        with session.subscribe(from_seq=page.last_seq + 1) as subscription:
            session.append("message.created", "after")
            seen = [event.event_seq for event in page.events]
            while seen[-1] != 7:
                seen.append(subscription.get(timeout=SOON).event_seq)
        assert seen == list(range(seen[0] or 0, 8))


def test_catch_up_then_live_while_two_writers_append_row_60() -> None:
    with Runtime(MemoryEventStore(), limits=Limits(subscriber_events_max=16, batch_events_max=5)) as runtime:
        session = runtime.session("session")
        for n in range(20):
            session.append("message.created", n)

        def produce() -> None:
            for n in range(150):
                session.append("message.created", n)

        writers = [threading.Thread(target=produce) for _ in range(2)]
        for thread in writers:
            thread.start()
        subscriptions = [session.subscribe(from_seq=n) for n in (1, 7, 20)]
        seen: dict[int, list[int | None]] = {}

        def follow(index: int) -> None:
            seen[index] = []
            for event in subscriptions[index]:
                seen[index].append(event.event_seq)
                if event.event_seq == 320:
                    return

        readers = [threading.Thread(target=follow, args=(index,)) for index in range(3)]
        for thread in readers:
            thread.start()
        for thread in (*writers, *readers):
            thread.join(20)
        for subscription in subscriptions:
            subscription.close()

        assert seen == {0: list(range(1, 321)), 1: list(range(7, 321)), 2: list(range(20, 321))}
