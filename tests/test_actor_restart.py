"""An actor that raises is restarted: who waits gets a typed error promptly, and nothing is missed afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pykka
import pytest

from logmark.actors import BroadcastActor, JobActor, PersistActor, SessionActor
from logmark.protocol import (
    ActorRestarted,
    AppendError,
    AppendRejected,
    AppendUncertain,
    Limits,
    LogmarkError,
    RuntimeClosed,
    SessionHalted,
)
from logmark.storage import MemoryEventStore, SessionBatch
from logmark.testing import (
    ActorHarness,
    CapturedLogs,
    RecordingSubscriber,
    request_of,
)

SOON = 5.0
RaiseOnce = Callable[..., list[Any]]

SESSION_METHODS = [
    "on_receive",
    "on_drained",
    "_hand_over",
    "_on_persisted",
    "_announce",
    "_finish",
    "_for_broadcast",
    "_for_jobs",
    "_check_writer",
    "_watch_writer",
]


def do_everything(harness: ActorHarness) -> tuple[list[Any], list[Any]]:
    """Use the session in every way; return the futures of its appends and of its questions."""
    appends, questions = [], []
    harness.subscribe(RecordingSubscriber())
    for n in range(3):
        appends.append(harness.append("job.event", n, job_id="build"))
        harness.send(f"session.{n}")
        questions.append(harness.marks())
        appends.append(harness.append())
        harness.run()
        harness.advance(0.3)
    return appends, questions


def check_sound(harness: ActorHarness, appends: list[Any], questions: list[Any]) -> None:
    """See that nobody waits, that nobody was told a falsehood, and that everything goes on."""
    late = RecordingSubscriber()
    harness.subscribe(late)
    last = harness.append("job.event", "last", id="last", job_id="build")
    harness.run()
    harness.advance(1.0)
    log = {event.event_seq or 0: event for event in harness.log}

    assert last.result(0) == max(log)
    for future in appends:
        assert future.done(), "a caller was left without an answer"
        error = future.exception(0)
        assert error is None or isinstance(error, AppendError)
        if error is None:
            assert future.result(0) in log
    for future in questions:
        assert future.done(), "an asker was left without an answer"
        assert isinstance(future.exception(0), LogmarkError | None)
    rejected = sum(isinstance(future.exception(0), AppendRejected) for future in appends)
    assert len(log) == 1 + len(appends) + 1 - rejected
    assert harness.gate.events == 0
    assert harness.last_seq == max(log)
    assert late.seqs == [max(log)]
    if not harness.subscriber.ended:
        # What it was not shown, it knows to be there, and what it was shown is in order and what is stored.
        assert harness.subscriber.last_seq == max(log)
    seqs = harness.subscriber.seqs
    assert seqs == sorted(set(seqs))
    assert [log[each.event_seq] for each in harness.subscriber.envelopes if each.event_seq] == [log[n] for n in seqs]
    (mark,) = [each for each in run_marks(harness) if each.job_id == "build"]
    own = [seq for seq, event in log.items() if event.job_id == "build"]
    assert (mark.first_seq, mark.last_seq, mark.count) == (own[0], own[-1], len(own))


def run_marks(harness: ActorHarness) -> list[Any]:
    question = harness.marks()
    harness.run()
    return question.result(0)


def each_call(
    raise_once: RaiseOnce, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, *, after: bool, **options: Any
) -> Iterator[tuple[ActorHarness, list[Any], list[Any]]]:
    """Do everything with a method that fails at its first call, then with one that fails at its second, and so on."""
    for call in itertools.count(1):
        with ActorHarness(stepped=True, failures_ok=True, store=MemoryEventStore(), **options) as harness:
            harness.store.append([SessionBatch("session", (request_of(),))])  # somebody was here before
            raised = raise_once(owner, name, call=call, after=after)
            appends, questions = do_everything(harness)
            monkeypatch.undo()
            yield harness, appends, questions
            if not raised:
                assert call > 1, f"{name} is never called"
                return
            harness.run()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", SESSION_METHODS)
def test_a_session_actor_that_raises_leaves_nobody_waiting(
    raise_once: RaiseOnce, monkeypatch: pytest.MonkeyPatch, name: str, after: bool
) -> None:
    """Whichever of its methods fails, at whichever call, before or after it has done its work."""
    for harness, appends, questions in each_call(raise_once, monkeypatch, SessionActor, name, after=after):
        check_sound(harness, appends, questions)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ["on_receive", "on_drained", "_offer"])
def test_a_broadcast_actor_that_raises_lets_subscribers_miss_nothing(
    raise_once: RaiseOnce, monkeypatch: pytest.MonkeyPatch, name: str, after: bool
) -> None:
    for harness, appends, questions in each_call(raise_once, monkeypatch, BroadcastActor, name, after=after):
        assert harness.subscriber.last_seq == 7  # at once, not with the next event
        assert [future.result(0) for future in appends] == [2, 3, 4, 5, 6, 7]
        check_sound(harness, appends, questions)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ["on_receive", "on_drained", "_fold", "_on_loaded"])
def test_a_job_actor_that_raises_answers_and_has_the_right_marks_again(
    raise_once: RaiseOnce, monkeypatch: pytest.MonkeyPatch, name: str, after: bool
) -> None:
    for harness, appends, questions in each_call(raise_once, monkeypatch, JobActor, name, after=after):
        for question, count in zip(questions, [None, 1, 2], strict=True):
            marks = question.result(0)
            assert count is None or marks[0].count >= count
        check_sound(harness, appends, questions)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ["on_receive", "_answer", "on_drained"])
def test_a_persist_actor_that_raises_answers_its_batch(
    raise_once: RaiseOnce, monkeypatch: pytest.MonkeyPatch, name: str, after: bool
) -> None:
    """A failure around the write leaves a doubt, and the session halts until the doubt is cleared."""
    for harness, appends, questions in each_call(
        raise_once, monkeypatch, PersistActor, name, after=after, persist=True
    ):
        assert all(future.done() for future in (*appends, *questions))
        for future in appends:
            assert isinstance(future.exception(0), AppendUncertain | SessionHalted | None)
        harness.store.clear_halt("session")
        check_sound_after_doubt(harness, appends)


def check_sound_after_doubt(harness: ActorHarness, appends: list[Any]) -> None:
    log = {event.event_seq for event in harness.log}
    assert {future.result(0) for future in appends if future.exception(0) is None} <= log
    assert harness.gate.events == 0
    last = harness.append()
    harness.run()
    assert last.result(0) == len(log) + 1


def test_who_waits_gets_a_typed_error_and_who_comes_later_is_served(raise_once: RaiseOnce) -> None:
    with ActorHarness(failures_ok=True) as harness:
        held = harness.writer.hold()
        in_flight = harness.append()
        held.wait()
        waiting = [harness.append() for _ in range(3)]
        assert harness.marks().result(SOON) == []
        raised = raise_once(SessionActor, "_on_observed")
        harness.observe(7)

        errors = [future.exception(SOON) for future in waiting]
        assert [type(error) for error in errors] == [ActorRestarted] * 3
        assert raised
        assert not in_flight.done()  # its answer is on the way: the writer has it
        held.release()
        assert in_flight.result(SOON) == 1
        assert harness.append().result(SOON) == 2
        assert [event.event_seq for event in harness.log] == [1, 2]
        assert harness.gate.events == 0


def test_the_writer_is_still_watched_after_a_restart(raise_once: RaiseOnce) -> None:
    with ActorHarness(stepped=True, failures_ok=True) as harness:
        harness.writer.hold()
        future = harness.append()
        harness.run()
        raise_once(SessionActor, "_check_writer")
        harness.advance(0.3)
        harness.writer.die()
        harness.advance(1.0)

        assert isinstance(future.exception(0), AppendUncertain)


def test_a_known_answer_survives_the_failure_that_follows_it(raise_once: RaiseOnce) -> None:
    """The writer has said that it is on disk: a caller may not be told otherwise, and the log is not in doubt."""
    limits = Limits(actor_restarts_max=1)
    with ActorHarness(stepped=True, failures_ok=True, limits=limits) as harness:
        harness.run()
        raise_once(SessionActor, "_announce", times=4)
        futures = [harness.append()]
        harness.run()

        assert futures[0].result(0) == 1
        assert harness.gate.events == 0


def test_an_actor_gives_up_after_too_many_failures_and_answers_everyone(
    raise_once: RaiseOnce, logs: CapturedLogs
) -> None:
    limits = Limits(actor_restarts_max=2)
    with ActorHarness(stepped=True, failures_ok=True, limits=limits) as harness:
        harness.append()
        harness.run()
        harness.writer.hold()
        in_flight = harness.append()
        harness.run()
        raise_once(SessionActor, "_on_observed", times=3)
        waiting = [harness.append() for _ in range(2)]
        for _ in range(3):
            harness.observe(9)
        harness.advance(0.005)
        assert len(logs.named("actor_failed", actor="session")) == 2  # the second failure is followed by a pause
        assert harness.session.is_alive()
        harness.advance(0.01)
        buried = harness.marks

        assert not harness.session.is_alive()
        assert isinstance(in_flight.exception(0), AppendUncertain)
        assert all(isinstance(future.exception(0), AppendRejected) for future in waiting)
        assert [event["restarts"] for event in logs.named("actor_restarted", actor="session")] == [1, 2]
        assert len(logs.named("actor_gave_up", actor="session")) == 1
        assert harness.subscriber.ends == 1
        assert harness.gate.events == 0
        with pytest.raises(pykka.ActorDeadError):
            buried()


def test_failures_long_ago_do_not_count(raise_once: RaiseOnce) -> None:
    limits = Limits(actor_restarts_max=1, actor_restart_window_s=10.0)
    with ActorHarness(stepped=True, failures_ok=True, limits=limits) as harness:
        for _ in range(5):
            raised = raise_once(SessionActor, "_on_observed")
            harness.observe(9)
            harness.run()
            assert raised
            harness.advance(11.0)
        future = harness.append()
        harness.run()

        assert future.result(0) == 1


def test_a_session_outlives_a_broadcast_actor_that_gave_up(raise_once: RaiseOnce) -> None:
    limits = Limits(actor_restarts_max=1)
    with ActorHarness(stepped=True, failures_ok=True, limits=limits) as harness:
        harness.run()
        raise_once(BroadcastActor, "_offer", times=2)
        futures = []
        for _ in range(5):
            futures.append(harness.append())
            harness.run()

        assert [future.result(0) for future in futures] == [1, 2, 3, 4, 5]
        assert harness.subscriber.ended
        assert harness.session.is_alive()
        late = RecordingSubscriber()
        harness.unsubscribe(harness.subscriber)
        harness.subscribe(late)
        harness.append()
        harness.run()
        assert late.seqs == [6]


def test_a_session_outlives_a_job_actor_that_gave_up(raise_once: RaiseOnce) -> None:
    limits = Limits(actor_restarts_max=1)
    with ActorHarness(stepped=True, failures_ok=True, limits=limits) as harness:
        harness.run()
        raise_once(JobActor, "_fold", times=2)
        futures = []
        for _ in range(5):
            futures.append(harness.append("job.event", job_id="build"))
            harness.run()
        (mark,) = run_marks(harness)

        assert [future.result(0) for future in futures] == [1, 2, 3, 4, 5]
        assert (mark.last_seq, mark.count) == (5, 5)
        assert harness.subscriber.seqs == [1, 2, 3, 4, 5]


def test_a_question_is_answered_when_no_job_actor_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    with ActorHarness(stepped=True, failures_ok=True) as harness:

        def cannot() -> Any:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(harness, "start_jobs", cannot)
        question = harness.marks()
        harness.run()
        assert isinstance(question.exception(0), LogmarkError)
        future = harness.append("job.event", job_id="build")
        harness.advance(0.01)
        assert future.result(0) == 1  # it is on disk, whoever else fails
        monkeypatch.undo()
        assert run_marks(harness)[0].count == 1


def test_a_subscriber_is_told_when_no_broadcast_actor_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(_self: ActorHarness) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(ActorHarness, "start_broadcast", cannot)
    with ActorHarness(stepped=True, failures_ok=True) as harness:
        harness.run()
        assert harness.subscriber.ended
        future = harness.append()
        harness.run()
        assert future.result(0) == 1


def test_timers_that_fail_leave_nobody_waiting(raise_once: RaiseOnce) -> None:
    from logmark.testing import ManualTimers

    with ActorHarness(stepped=True, failures_ok=True) as harness:
        raised = raise_once(ManualTimers, "after", times=2)
        future = harness.append()
        harness.run()
        harness.advance(1.0)

        assert raised
        assert isinstance(future.exception(0), AppendError | None)
        assert harness.gate.events == 0


def test_stopping_while_a_restart_is_due_answers_all(raise_once: RaiseOnce) -> None:
    with ActorHarness(stepped=True, failures_ok=True) as harness:
        harness.run()
        raise_once(SessionActor, "_on_observed")
        harness.observe(3)
        harness.session.stop(block=False)
        future = harness.append()
        harness.run()
        assert isinstance(future.exception(0), RuntimeClosed)
        assert harness.gate.events == 0


def test_a_failure_in_one_session_is_none_of_the_others(raise_once: RaiseOnce) -> None:
    with ActorHarness("a", failures_ok=True) as a, ActorHarness("b") as b:
        raise_once(SessionActor, "_on_observed", error=RuntimeError("only a is told"))
        a.observe(1)
        assert b.append().result(SOON) == 1
        assert a.append().result(SOON) == 1
    assert isinstance(a.failures[0], RuntimeError)
