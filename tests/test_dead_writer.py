"""A writer that dies leaves nobody waiting (row 46): its callers fail within a second, typed, and nothing is shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pykka
import pytest
from pykka._envelope import Envelope

from logmark.actors import WriterPool
from logmark.actors.messages import HaltSession, Persist
from logmark.protocol import (
    AppendRejected,
    AppendUncertain,
    Limits,
    RuntimeClosed,
    SessionHalted,
    StorageRejected,
)
from logmark.storage import MemoryEventStore, SessionBatch
from logmark.testing import ActorHarness, CapturedLogs, MockWriter, encoded_event, eventually, request_of

SOON = 5.0
PROMPTLY = 1.0


class Mortal(pykka.ThreadingActor):
    """A plain pykka actor as a writer: an exception stops it, and it tells nobody."""

    use_daemon_thread = True

    def on_receive(self, message: Any) -> None:
        raise OSError(5, "Input/output error")


@pytest.fixture
def mortal() -> Iterator[pykka.ActorRef[Mortal]]:
    ref = Mortal.start()
    yield ref
    ref.stop()


def shown(harness: ActorHarness) -> list[int]:
    """Return what the subscriber was shown, after everything told so far has passed through both actors."""
    before = harness.subscriber.types.count("session.fence")
    harness.send("session.fence")
    eventually(lambda: harness.subscriber.types.count("session.fence") > before)
    return harness.subscriber.seqs


def kill_silently(harness: ActorHarness) -> None:
    harness.writer.die_next(silent=True)


def kill_with_a_word(harness: ActorHarness) -> None:
    harness.writer.die_next(silent=False)


def kill_after_the_write(harness: ActorHarness) -> None:
    harness.writer.die_next(silent=True, written=True)


@pytest.mark.parametrize("kill", [kill_silently, kill_with_a_word, kill_after_the_write])
def test_the_caller_in_flight_fails_promptly_row_46(kill: Callable[[ActorHarness], None]) -> None:
    with ActorHarness() as harness:
        harness.append().result(SOON)
        kill(harness)
        began = time.monotonic()
        future = harness.append()

        assert isinstance(future.exception(PROMPTLY), AppendUncertain)
        assert time.monotonic() - began < PROMPTLY
        assert harness.gate.events == 0
        assert shown(harness) == [1]
        assert harness.last_seq == 1


def test_a_plain_pykka_actor_that_dies_is_noticed_row_46(mortal: pykka.ActorRef[Mortal]) -> None:
    with ActorHarness(writer=mortal) as harness:
        futures = [harness.append() for _ in range(3)]
        errors = [future.exception(PROMPTLY) for future in futures]

        assert isinstance(errors[0], AppendUncertain)
        assert {isinstance(error, AppendUncertain | AppendRejected) for error in errors} == {True}
        assert isinstance(harness.append().exception(PROMPTLY), AppendRejected)
        assert harness.gate.events == 0
        assert shown(harness) == []
        assert harness.last_seq == 0


def test_a_stopped_writer_rejects_row_46() -> None:
    with ActorHarness() as harness:
        harness.append().result(SOON)
        harness.writer.choose().stop(block=True, timeout=SOON)
        future = harness.append()

        assert isinstance(future.exception(PROMPTLY), StorageRejected)
        assert harness.gate.events == 0
        assert shown(harness) == [1]
        assert len(harness.log) == 1


@pytest.mark.parametrize("persist", [False, True], ids=["mock", "persist"])
def test_a_batch_behind_a_stop_in_the_writers_inbox_is_rejected_row_46(persist: bool) -> None:
    """What the writer has not taken up is certainly not written: no session halts for it."""
    with ActorHarness(stepped=True, persist=persist) as harness:
        harness.run()
        writer = harness.choose_writer()
        writer.stop(block=False)
        writer.tell(Persist(1, SessionBatch("session", (request_of(),)), harness.session))
        future = harness.append()
        harness.run()

        assert persist or isinstance(future.exception(0), StorageRejected)
        assert harness.store.halted("session") is None
        assert harness.gate.events == 0
        assert not writer.is_alive()


def test_what_waits_behind_an_unknown_write_is_rejected_and_not_written_row_46() -> None:
    """Another writer takes over, yet nothing may be appended across a write of which nobody knows whether it is there.

    The halt is recorded by one writer and the next batch goes to another: the first must be done before the second.
    """
    with ActorHarness() as harness:
        harness.append().result(SOON)
        first = harness.writer
        held = first.hold()
        in_flight = harness.append()
        held.wait()
        waiting = [harness.append() for _ in range(3)]
        # The pool's next choices: a writer that is slow to record the halt, then one that has nothing to do.
        recorder, idle = MockWriter(store=harness.store), MockWriter(store=harness.store)
        slow = recorder.hold()
        recorder.choose().tell(Persist(99, SessionBatch("other", (request_of(),)), harness.session))
        slow.wait()
        choices = iter([recorder, idle, idle, idle, idle])
        harness.choose_writer = lambda: next(choices).choose()
        first.die()

        assert isinstance(in_flight.exception(PROMPTLY), AppendUncertain)
        assert harness.marks().result(SOON) == []  # the session's turn is over: it has handed over what waited
        slow.release()
        errors = [future.exception(PROMPTLY) for future in waiting]
        assert idle.asked == ()
        assert [type(error) for error in errors] == [SessionHalted] * 3
        assert isinstance(harness.append().exception(PROMPTLY), SessionHalted)
        assert len(harness.log) == 1
        assert shown(harness) == [1]
        assert harness.gate.events == 0
        for writer in (recorder, idle):
            writer.choose().stop(block=True, timeout=SOON)


def test_the_halt_names_the_first_event_in_doubt_and_is_recorded_by_another_writer_row_46() -> None:
    with ActorHarness() as harness:
        held = harness.writer.hold()
        future = harness.append(id="in-doubt")
        held.wait()
        dead, harness.writer = harness.writer, MockWriter(store=harness.store)
        dead.die()

        error = future.exception(PROMPTLY)
        assert isinstance(error, AppendUncertain)
        assert error.first_event_id == "in-doubt"
        (halt,) = harness.writer.wait_for_halts(1)
        assert (halt.session_id, halt.first_event_id) == ("session", "in-doubt")
        record = eventually(lambda: harness.store.halted("session"))
        assert record is not None
        assert record.first_event_id == "in-doubt"
        assert isinstance(harness.append().exception(PROMPTLY), SessionHalted)


def test_a_cleared_halt_lets_the_session_go_on_and_a_retry_settles_the_doubt_row_46() -> None:
    with ActorHarness() as harness:
        dead = harness.writer
        dead.die_next(silent=True, written=True)
        future = harness.append(id="in-doubt", payload="first")
        dead.wait_for_asked(1)
        harness.writer = MockWriter(store=harness.store)
        assert isinstance(future.exception(PROMPTLY), AppendUncertain)
        assert not dead.actor_ref.is_alive()
        harness.writer.wait_for_halts(1)
        harness.store.clear_halt("session")

        assert harness.append(id="in-doubt", payload="first").result(SOON) == 1
        assert harness.append().result(SOON) == 2
        assert [event.event_seq for event in harness.log] == [1, 2]


def test_a_late_answer_is_not_lost_for_subscribers_and_answers_nobody_twice_row_46() -> None:
    with ActorHarness() as harness:
        held = harness.writer.hold()
        future: Future[int] = harness.append()
        answers: list[Future[int]] = []
        future.add_done_callback(answers.append)
        held.wait()
        harness.writer.die()
        assert isinstance(future.exception(PROMPTLY), AppendUncertain)

        held.release()  # the disk has finished after all, and the dead writer's thread says so
        harness.subscriber.wait_for_seq(1)
        assert harness.subscriber.envelopes == []  # they find the event in the log: it was not theirs to be shown
        assert harness.last_seq == 1
        assert [event.event_seq for event in harness.log] == [1]
        assert answers == [future]
        assert harness.gate.events == 0


def test_a_late_answer_does_not_pass_for_the_answer_to_the_next_batch_row_46() -> None:
    with ActorHarness() as harness:
        held = harness.writer.hold()
        lost = harness.append(id="lost")
        held.wait()
        dead, harness.writer = harness.writer, MockWriter()  # another store: it knows of no halt
        dead.die()
        assert isinstance(lost.exception(PROMPTLY), AppendUncertain)
        harness.writer.wait_for_halts(1)
        harness.writer.store.clear_halt("session")
        second = harness.writer.hold()
        next_one = harness.append(id="next")
        second.wait()
        held.release()
        harness.subscriber.wait_for_seq(1)

        assert not next_one.done()
        second.release()
        assert next_one.result(SOON) == 1


def test_a_recorder_that_died_meanwhile_does_not_fail_the_next_append_row_46() -> None:
    with ActorHarness() as harness:
        harness.writer.die_next(silent=False)
        assert isinstance(harness.append().exception(PROMPTLY), AppendUncertain)
        harness.writer = MockWriter(store=harness.store)
        held = harness.writer.hold()
        harness.store.clear_halt("session")
        doubtful = harness.append()
        held.wait()
        dead, harness.writer = harness.writer, MockWriter(store=harness.store)
        dead.die()
        assert isinstance(doubtful.exception(PROMPTLY), AppendUncertain)
        harness.writer.wait_for_halts(1)
        recorder, harness.writer = harness.writer, MockWriter(store=harness.store)
        recorder.choose().stop(block=True, timeout=SOON)
        harness.store.clear_halt("session")

        assert harness.append().result(SOON) == 1


def test_every_writer_dies_and_still_nobody_hangs_row_46(logs: CapturedLogs) -> None:
    with ActorHarness() as harness:
        for _ in range(3):
            harness.writer.die_next(silent=True)
            futures = [harness.append() for _ in range(3)]
            errors = [future.exception(PROMPTLY) for future in futures]
            assert {isinstance(error, AppendUncertain | AppendRejected) for error in errors} == {True}
            harness.writer = MockWriter()
        assert harness.gate.events == 0
        assert shown(harness) == []
        assert logs.named("append_uncertain", session="session")


@pytest.mark.parametrize("error", [pykka.ActorDeadError("gone"), RuntimeError("can't start new thread")])
def test_callers_are_told_when_no_writer_can_be_chosen_row_46(error: Exception) -> None:
    with ActorHarness(failures_ok=True) as harness:

        def nobody() -> pykka.ActorRef[Any]:
            raise error

        chosen = harness.choose_writer
        harness.choose_writer = nobody
        futures = [harness.append() for _ in range(3)]
        errors = [future.exception(PROMPTLY) for future in futures]
        harness.choose_writer = chosen

        assert {isinstance(each, AppendRejected) for each in errors} == {True}
        assert harness.append().result(SOON) == 1
        assert harness.gate.events == 0


def test_no_writer_for_the_halt_leaves_nobody_waiting_row_46(logs: CapturedLogs) -> None:
    with ActorHarness(failures_ok=True) as harness:
        held = harness.writer.hold()
        future = harness.append()
        held.wait()

        def nobody() -> pykka.ActorRef[Any]:
            raise RuntimeError("can't start new thread")

        harness.choose_writer = nobody
        harness.writer.die()

        assert isinstance(future.exception(PROMPTLY), AppendUncertain)
        logs.wait_for("halt_not_recorded", session="session")
        assert harness.gate.events == 0


def test_a_halt_that_found_no_writer_is_recorded_before_anything_else_is_written_row_46(logs: CapturedLogs) -> None:
    with ActorHarness(failures_ok=True) as harness:
        held = harness.writer.hold()
        future = harness.append(id="in doubt")
        held.wait()
        chosen, lacking = harness.choose_writer, 2

        def nobody_at_first() -> pykka.ActorRef[Any]:
            nonlocal lacking
            lacking -= 1
            if lacking >= 0:
                raise RuntimeError("can't start new thread")
            return chosen()

        harness.choose_writer = nobody_at_first
        harness.writer.die()
        assert isinstance(future.exception(PROMPTLY), AppendUncertain)
        logs.wait_for("halt_not_recorded", session="session")
        replacement = MockWriter(store=harness.store)
        harness.writer = replacement

        assert isinstance(harness.append().exception(PROMPTLY), StorageRejected)  # still no writer
        assert isinstance(harness.append().exception(PROMPTLY), SessionHalted)
        record = harness.store.halted("session")
        assert record is not None
        assert record.first_event_id == "in doubt"
        assert harness.gate.events == 0


def test_a_pool_replaces_a_dead_writer() -> None:
    with ActorHarness(persist=True) as harness:
        assert harness.append().result(SOON) == 1
        (writer,) = harness.writers.refs()
        writer.stop(block=True, timeout=SOON)

        assert harness.append().result(SOON) == 2
        assert writer not in harness.writers.refs()


def test_a_real_writer_that_cannot_even_record_the_halt_still_answers(
    monkeypatch: pytest.MonkeyPatch, logs: CapturedLogs
) -> None:
    def fails(*_args: Any, **_options: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(MemoryEventStore, "append", fails)
    monkeypatch.setattr(MemoryEventStore, "halt", fails)
    with ActorHarness(persist=True, failures_ok=True) as harness:
        futures = [harness.append() for _ in range(3)]
        errors = [future.exception(PROMPTLY) for future in futures]

        assert {isinstance(error, AppendUncertain | AppendRejected) for error in errors} == {True}
        assert harness.gate.events == 0
        assert shown(harness) == []


def test_a_writer_that_gives_up_answers_its_batch_and_those_behind_it() -> None:
    """Row 46: the batch that made it fail is in doubt; what it had not taken up was certainly not written."""

    class Broken(MemoryEventStore):
        def append(self, batches: Any) -> Any:
            raise OSError(5, "Input/output error")

    limits = Limits(actor_restarts_max=1, persist_threads_max=1)
    store = Broken()
    with (
        ActorHarness("a", store=store, persist=True, limits=limits, stepped=True, failures_ok=True) as a,
    ):
        pool = a.writers
        futures = []
        for _ in range(3):
            futures.append(a.append())
            a.run()
        assert [type(future.exception(0)) for future in futures] == [AppendUncertain] * 3
        assert len(pool.refs()) == 1
        assert a.gate.events == 0


def test_a_pool_counts_each_batch_once_and_prefers_who_is_idle() -> None:
    started: list[MockWriter] = []
    answered: list[Callable[[pykka.ActorRef[Any]], None]] = []

    def start(when_answered: Callable[[pykka.ActorRef[Any]], None]) -> pykka.ActorRef[Any]:
        started.append(MockWriter())
        answered.append(when_answered)
        return started[-1].choose()

    pool = WriterPool(start, 2)
    first, second = pool.choose(), pool.choose()
    assert first is not second
    assert pool.choose() in (first, second)  # both are busy, and there are as many as there may be
    answered[1](second)
    answered[1](second)
    assert pool.choose() is second
    started[0].die()
    assert first not in {pool.choose() for _ in range(4)}
    for writer in started:
        writer.choose().stop()


def test_a_batch_that_reaches_a_writer_after_its_end_is_answered() -> None:
    """Between looking whether the writer lives and putting the batch into its inbox, it may stop (row 46)."""
    with ActorHarness(stepped=True, persist=True) as harness:
        writer = harness.choose_writer()
        harness.choose_writer = lambda: writer
        inbox, stopped = writer.actor_inbox, writer.actor_stopped
        writer.stop(block=False)
        harness.run()
        assert stopped.is_set()

        answers = MockWriter()  # any actor: only its inbox is looked at
        inbox.put(Envelope(Persist(7, SessionBatch("session", (request_of(),)), answers.actor_ref)))
        inbox.put(Envelope(HaltSession("session", "late", None)))
        harness.run()
        (answer,) = answers.actor_inbox.take()
        (error,) = answer.result.answers
        assert isinstance(error, RuntimeClosed)
        assert harness.log == []
        assert harness.store.halted("session")  # a halt is recorded even then


def test_persist_actor_is_what_the_mock_stands_in_for() -> None:
    """Both answer the same messages, so that a test with the one says something about the other."""
    seen: dict[str, list[Any]] = {}
    for name, persist in (("mock", False), ("persist", True)):
        with ActorHarness(persist=persist) as harness:
            seen[name] = [
                harness.append(id="a").result(SOON),
                harness.append_many([encoded_event(id="b"), encoded_event(id="c")]).result(SOON),
                harness.append(id="a").result(SOON),
                type(harness.append(expected_seq=9).exception(SOON)),
                [event.id for event in harness.subscriber.wait_for(3)],
            ]
    assert seen["mock"] == seen["persist"]
