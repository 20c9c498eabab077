"""The test kit does what it says: it would be a poor witness otherwise."""

from __future__ import annotations

import doctest
import importlib
import itertools
import pkgutil
import threading
from concurrent.futures import wait
from typing import Any

import pykka
import pytest

import logmark
from logmark import testing
from logmark.actors.messages import HaltSession, Persist, Persisted, Subscriber
from logmark.protocol import (
    AppendUncertain,
    InvalidEvent,
    Limits,
    RuntimeClosed,
    SessionHalted,
    StorageRejected,
)
from logmark.storage import Appended, MemoryEventStore, SessionBatch
from logmark.testing import (
    ActorHarness,
    HeldCommit,
    MockWriter,
    RecordingSubscriber,
    StepDispatcher,
    encoded_event,
    request_of,
)

SOON = 5.0
NO_SPACE = StorageRejected(session_id="session", reason="no space left", errno=28)


class Asker:
    """Stands for a SessionActor: collects what a writer answers."""

    def __init__(self, **options: Any) -> None:
        self.dispatcher = StepDispatcher()
        self.writer = MockWriter(dispatcher=self.dispatcher, **options)
        self._inbox = MockWriter(dispatcher=StepDispatcher())
        self._batches = 0

    def ask(self, *requests: Any, session_id: str = "session") -> None:
        self._batches += 1
        batch = SessionBatch(session_id, tuple(requests) or (request_of(),))
        self.writer.choose().tell(Persist(self._batches, batch, self._inbox.actor_ref))

    def answers(self) -> list[tuple[int, tuple[Any, ...]]]:
        self.dispatcher.run_until_idle()
        told = self._inbox.actor_inbox.take()
        assert all(isinstance(message, Persisted) for message in told)
        return [(message.batch_id, message.result.answers) for message in told]


# -- MockWriter -----------------------------------------------------------------------------------------------------


def test_a_mock_writer_numbers_like_a_store() -> None:
    asker = Asker()
    asker.ask(request_of(encoded_event(id="a")), request_of(encoded_event(), encoded_event()))
    asker.ask(request_of(encoded_event(id="a")))
    asker.ask(session_id="other")

    assert asker.answers() == [
        (1, (Appended(1, 1), Appended(2, 3))),
        (2, (Appended(1, 1, written=False),)),
        (3, (Appended(1, 1),)),
    ]
    assert [event.event_seq for event in asker.writer.store.read("session")] == [1, 2, 3]
    assert [batch.session_id for batch in asker.writer.asked] == ["session", "session", "other"]


def test_a_held_commit_blocks_what_is_behind_it() -> None:
    asker = Asker()
    held = asker.writer.hold()
    asker.ask()
    asker.ask(session_id="other")
    asker.writer.choose().tell(HaltSession("session", "a doubt", None))
    assert asker.answers() == []
    assert held.wait(0).session_id == "session"
    assert asker.writer.store.last_seq("session") == 0
    assert asker.writer.store.halted("session") is None

    held.release()
    held.release()
    assert [batch_id for batch_id, _ in asker.answers()] == [1, 2]
    assert [halt.reason for halt in asker.writer.halts] == ["a doubt"]


def test_a_commit_that_was_released_early_is_not_held() -> None:
    asker = Asker()
    held = asker.writer.hold()
    held.release()
    asker.ask()
    asker.ask()
    assert [batch_id for batch_id, _ in asker.answers()] == [1, 2]


def test_plans_are_used_up_in_their_order_one_for_each_commit() -> None:
    asker = Asker()
    asker.writer.fail_next(NO_SPACE)
    held = asker.writer.hold()
    asker.writer.fail_next(NO_SPACE, request=1)
    asker.writer.fail_next(NO_SPACE, request=7)
    for _ in range(2):
        asker.ask()
    asker.ask(request_of(), request_of(), request_of())
    asker.ask()
    asker.ask()
    assert asker.answers() == [(1, (NO_SPACE,))]
    held.fail(NO_SPACE)
    assert asker.answers() == [
        (2, (NO_SPACE,)),
        (3, (Appended(1, 1), NO_SPACE, Appended(2, 2))),
        (4, (NO_SPACE,)),
        (5, (Appended(3, 3),)),
    ]


def test_an_uncertain_failure_halts_as_in_a_real_store() -> None:
    asker = Asker()
    asker.writer.fail_next(AppendUncertain(session_id="session", reason="fsync failed", first_event_id="x"))
    asker.ask()
    asker.ask()
    (_, (first,)), (_, (second,)) = asker.answers()
    assert isinstance(first, AppendUncertain)
    assert isinstance(second, SessionHalted)
    record = asker.writer.store.halted("session")
    assert record is not None
    assert record.first_event_id == "x"


@pytest.mark.parametrize("written", [False, True])
def test_a_silent_death_tells_nobody(written: bool) -> None:
    asker = Asker()
    asker.writer.die_next(silent=True, written=written)
    asker.ask()
    asker.ask()
    assert asker.answers() == []
    assert asker.writer.store.last_seq("session") == int(written)
    assert not asker.writer.choose().is_alive()
    assert asker.writer.choose() not in pykka.ActorRegistry.get_all()
    with pytest.raises(pykka.ActorDeadError):
        asker.ask()


def test_a_death_with_a_word_answers_as_a_persist_actor_that_gives_up() -> None:
    asker = Asker()
    asker.writer.die_next(silent=False)
    asker.ask()
    asker.ask()
    (_, (first,)), (_, (second,)) = asker.answers()
    assert isinstance(first, AppendUncertain)
    assert isinstance(second, RuntimeClosed)
    assert asker.writer.store.halted("session")


def test_a_commit_may_finish_after_the_death_of_its_writer() -> None:
    asker = Asker()
    held = asker.writer.hold()
    asker.ask()
    asker.ask()
    assert asker.answers() == []
    asker.writer.die()
    held.release()
    assert asker.answers() == [(1, (Appended(1, 1),))]


def test_a_stopped_writer_answers_what_is_behind_a_held_commit() -> None:
    asker = Asker()
    asker.writer.hold()
    asker.ask()
    asker.ask()
    asker.writer.choose().stop(block=False)
    ((batch_id, (error,)),) = asker.answers()
    assert batch_id == 2
    assert isinstance(error, RuntimeClosed)


def test_a_mock_writer_can_stand_on_any_store_and_starts_like_every_actor() -> None:
    store = MemoryEventStore()
    ref = MockWriter.start(store=store)
    try:
        assert ref.proxy().asked.get(timeout=SOON) == ()
        with ActorHarness(store=store, writer=ref) as harness:
            assert harness.append().result(SOON) == 1
        assert store.last_seq("session") == 1
    finally:
        ref.stop(block=True, timeout=SOON)


def test_waiting_for_a_mock_writer_says_what_it_saw_instead() -> None:
    asker = Asker()
    asker.ask(request_of(), request_of())
    asker.answers()
    assert len(asker.writer.wait_for_asked(1, 0)) == 1
    with pytest.raises(TimeoutError, match=r"2 batches.*\[2\] requests and 0 halts"):
        asker.writer.wait_for_asked(2, timeout=0.01)
    with pytest.raises(TimeoutError, match="1 halts"):
        asker.writer.wait_for_halts(1, timeout=0.01)
    with pytest.raises(TimeoutError, match="no commit"):
        asker.writer.hold().wait(timeout=0.01)


def test_waiting_for_a_mock_writer_ends_when_it_is_asked() -> None:
    with ActorHarness() as harness:
        held = harness.writer.hold()
        seen: list[Any] = []
        waiters = [
            threading.Thread(target=lambda: seen.append(harness.writer.wait_for_asked(1))),
            threading.Thread(target=lambda: seen.append(held.wait())),
        ]
        for waiter in waiters:
            waiter.start()
        harness.append(id="it")
        for waiter in waiters:
            waiter.join(SOON)
        held.release()
        assert len(seen) == 2


# -- ActorHarness ---------------------------------------------------------------------------------------------------


def test_the_harness_takes_five_lines() -> None:
    with ActorHarness() as harness:
        future = harness.append("message.created", {"text": "hi"})
        assert future.result(SOON) == 1
        (envelope,) = harness.subscriber.wait_for(1)
        assert envelope.decode().payload == {"text": "hi"}


def test_the_harness_raises_what_an_actor_raised(raise_once: Any) -> None:
    from logmark.actors import SessionActor

    raise_once(SessionActor, "_on_observed")

    def fail(error: Exception | None) -> None:
        with ActorHarness(stepped=True) as harness:
            harness.observe(3)
            harness.run()
            assert len(harness.failures) == 1
            if error is not None:
                raise error

    with pytest.raises(Exception, match="_on_observed"):
        fail(None)
    raise_once(SessionActor, "_on_observed")
    with pytest.raises(KeyError):
        fail(KeyError())  # what the block itself raises comes first


def test_harnesses_do_not_mistake_each_others_failures_for_their_own(raise_once: Any) -> None:
    from logmark.actors import SessionActor

    with (
        ActorHarness(stepped=True) as sound,
        ActorHarness(stepped=True, failures_ok=True) as broken,
    ):
        raise_once(SessionActor, "_on_observed")
        broken.observe(3)
        broken.run()
        assert (len(broken.failures), sound.failures) == (1, [])


def test_a_stepped_harness_does_nothing_by_itself() -> None:
    with ActorHarness(stepped=True) as harness:
        threads = threading.active_count()
        future = harness.append()
        assert not future.done()
        assert harness.run() > 0
        assert future.result(0) == 1
        assert threading.active_count() == threads
        assert harness.run() == 0


def test_a_harness_on_threads_is_not_run_by_the_test() -> None:
    with ActorHarness() as harness:
        with pytest.raises(RuntimeError, match="threads"):
            harness.run()
        with pytest.raises(RuntimeError, match="ManualTimers"):
            harness.advance(1.0)


def test_a_stopped_harness_leaves_no_thread_and_no_actor() -> None:
    threads, actors = set(threading.enumerate()), set(pykka.ActorRegistry.get_all())
    for persist, stepped in itertools.product([False, True], repeat=2):
        with ActorHarness(persist=persist, stepped=stepped) as harness:
            harness.append("job.event", job_id="a")
            harness.stop()
        harness.stop()
    left = {thread for thread in threading.enumerate() if thread.name != "logmark-mock-writers-1"} - threads
    assert left == set()
    assert set(pykka.ActorRegistry.get_all()) - actors == set()


def test_the_harness_keeps_the_bounds_of_the_inbox() -> None:
    with ActorHarness(stepped=True, limits=Limits(inbox_events_max=2)) as harness:
        with pytest.raises(InvalidEvent):
            harness.append_many([encoded_event()] * 3)
        harness.session.stop(block=False)
        harness.run()
        with pytest.raises(pykka.ActorDeadError):
            harness.append()
        assert harness.gate.events == 0


# -- RecordingSubscriber --------------------------------------------------------------------------------------------


def test_a_recording_subscriber_records_and_waits() -> None:
    subscriber: Subscriber = RecordingSubscriber()
    assert isinstance(subscriber, RecordingSubscriber)
    events = tuple(encoded_event("a").stamped("session", seq) for seq in (1, 2))
    ping = encoded_event("session.ping").stamped("session", None)
    offering = threading.Thread(target=lambda: (subscriber.offer(events, 2), subscriber.offer((ping,), 2)))  # type: ignore[func-returns-value]
    offering.start()
    assert len(subscriber.wait_for(3)) == 3
    offering.join(SOON)

    assert subscriber.offers == [(events, 2), ((ping,), 2)]
    assert (subscriber.seqs, subscriber.types) == ([1, 2], ["a", "a", "session.ping"])
    subscriber.offer((), 7)
    subscriber.wait_for_seq(7, 0)
    assert subscriber.last_seq == 7
    assert not subscriber.ended
    subscriber.end()
    subscriber.wait_ended(0)
    assert (subscriber.ended, subscriber.ends) == (True, 1)


def test_a_recording_subscriber_that_waits_in_vain_says_what_it_got() -> None:
    subscriber = RecordingSubscriber()
    subscriber.offer((encoded_event("session.ping").stamped("session", None),), 3)
    with pytest.raises(TimeoutError, match=r"2 envelopes.*\(\['session.ping'\], 3\)"):
        subscriber.wait_for(2, timeout=0.01)
    with pytest.raises(TimeoutError, match="last_seq 4"):
        subscriber.wait_for_seq(4, timeout=0.01)
    with pytest.raises(TimeoutError, match="the end"):
        subscriber.wait_ended(timeout=0.01)


# -- the whole ------------------------------------------------------------------------------------------------------


def test_made_up_events_have_ids_of_their_own_and_stored_fields() -> None:
    first, second = encoded_event(), encoded_event()
    assert first.id != second.id
    assert first.id_is_fresh
    given = encoded_event("a", {"n": 1}, id="it", job_id="j", source="s", stream_seq=3)
    assert (given.id, given.type, given.job_id, given.id_is_fresh) == ("it", "a", "j", False)
    envelope = given.stamped("session", 4).decode()
    assert (envelope.source, envelope.stream_seq, envelope.payload, envelope.event_seq) == ("s", 3, {"n": 1}, 4)
    with pytest.raises(InvalidEvent):
        encoded_event(payload=float("nan"))
    assert request_of(first, second, expected_seq=4).expected_seq == 4
    assert len(request_of().events) == 1


def test_the_kit_is_part_of_the_package_and_its_examples_run() -> None:
    assert logmark.testing is testing
    assert sorted(testing.__all__) == sorted(set(testing.__all__))
    assert all(hasattr(testing, name) for name in testing.__all__)
    ran = 0
    for module in pkgutil.iter_modules(testing.__path__):
        if module.name in ("_harness", "_logs", "_writer"):
            result = doctest.testmod(importlib.import_module(f"logmark.testing.{module.name}"))
            assert result.failed == 0
            ran += result.attempted
    assert ran >= 4
    assert isinstance(MockWriter().hold(), HeldCommit)


def test_an_embedding_program_can_wait_for_many_futures() -> None:
    with ActorHarness() as harness:
        futures = [harness.append() for _ in range(10)]
        done, not_done = wait(futures, SOON)
        assert len(done) == 10
        assert not not_done
