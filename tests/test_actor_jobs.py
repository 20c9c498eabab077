"""Every job knows its mark: derived from the log, at the start and after a gap, and told with all that was asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from logmark.actors.messages import GetMarks
from logmark.protocol import (
    EventTypes,
    JobMark,
    LogmarkError,
    RawEnvelope,
    RuntimeClosed,
    SessionHalted,
    StorageUnavailable,
)
from logmark.storage import MemoryEventStore, SessionBatch
from logmark.testing import ActorHarness, CapturedLogs, InlineReads, encoded_event, request_of


def write(store: MemoryEventStore, *jobs: str | None, type_: str = "job.event", payload: Any = None) -> None:
    """Append as another process would."""
    for job_id in jobs:
        event = encoded_event(type_, payload, job_id=job_id)
        store.append([SessionBatch("session", (request_of(event),))])


def mark(job_id: str, first: int, last: int, count: int, status: str = "running") -> JobMark:
    return JobMark(job_id=job_id, first_seq=first, last_seq=last, count=count, status=status)


def ask(harness: ActorHarness, job_id: str | None = None) -> list[JobMark]:
    question = harness.marks(job_id)
    harness.run()
    return question.result(0)


def test_marks_come_from_the_log_at_the_start() -> None:
    store = MemoryEventStore()
    write(store, "a", "b", None, "a")
    with ActorHarness(stepped=True, store=store) as harness:
        assert ask(harness) == [mark("a", 1, 4, 2), mark("b", 2, 2, 1)]
        assert ask(harness, "b") == [mark("b", 2, 2, 1)]
        assert ask(harness, "c") == [mark("c", 0, 0, 0, "pending")]


def test_marks_include_every_append_that_was_answered() -> None:
    with ActorHarness() as harness:
        for n in range(1, 60):
            assert harness.append("job.event", job_id="build").result(5) == n
            (found,) = harness.marks("build").result(5)
            assert (found.last_seq, found.count) == (n, n)


def test_a_log_longer_than_one_read_is_folded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logmark.actors._fold._LOAD_EVENTS", 3)
    store = MemoryEventStore()
    write(store, *("ab" * 5))
    with ActorHarness(stepped=True, store=store) as harness:
        assert ask(harness) == [mark("a", 1, 9, 5), mark("b", 2, 10, 5)]


def test_what_another_process_wrote_is_read_after_the_news_of_it() -> None:
    reads = InlineReads()
    with ActorHarness(stepped=True, reads=reads) as harness:
        harness.append("job.event", job_id="a")
        harness.run()
        reads.hold()
        write(harness.store, "a", "b")  # type: ignore[arg-type]
        harness.observe(3)
        harness.run()
        assert reads.waiting == 1
        reads.release()
        harness.run()

        assert ask(harness) == [mark("a", 1, 2, 2), mark("b", 3, 3, 1)]


def test_a_batch_behind_a_gap_is_read_and_not_folded_twice() -> None:
    with ActorHarness(stepped=True) as harness:
        harness.append("job.event", job_id="a")
        harness.run()
        write(harness.store, "a", "a")  # type: ignore[arg-type]
        harness.append("job.event", job_id="a")
        harness.run()

        assert ask(harness) == [mark("a", 1, 4, 4)]


def test_what_arrives_while_the_log_is_read_is_counted_once() -> None:
    reads = InlineReads(held=True)
    store = MemoryEventStore()
    write(store, "a", "a")
    with ActorHarness(stepped=True, store=store, reads=reads) as harness:
        question = harness.marks()
        harness.run()
        for _ in range(3):
            harness.append("job.event", job_id="a")
            harness.run()
        later = harness.marks()
        harness.run()
        assert not question.done()
        assert not later.done()
        while reads.run(1):
            harness.run()

        assert question.result(0)[0].count in (2, 5)
        assert later.result(0) == [mark("a", 1, 5, 5)]
        assert ask(harness) == [mark("a", 1, 5, 5)]


def test_a_question_waits_for_the_number_it_names_and_holds_up_no_other() -> None:
    reads = InlineReads(held=True)
    with ActorHarness(stepped=True, reads=reads) as harness:
        harness.append("job.event", job_id="a")
        harness.run()
        early = harness.marks(min_seq=1)
        write(harness.store, "a")  # type: ignore[arg-type]
        late = harness.marks(min_seq=2)
        harness.run()

        assert early.result(0) == [mark("a", 1, 1, 1)]
        assert not late.done()
        reads.release()
        harness.run()
        assert late.result(0) == [mark("a", 1, 2, 2)]


def test_a_number_that_is_not_there_is_answered_with_what_there_is() -> None:
    store = MemoryEventStore()
    write(store, "a")
    store.reserve("session", 41)
    with ActorHarness(stepped=True, store=store) as harness:
        question = harness.marks(min_seq=41)
        harness.run()
        assert question.result(0) == [mark("a", 1, 1, 1)]
        write(store, "a")
        harness.observe(42)
        harness.run()
        assert ask(harness) == [mark("a", 1, 42, 2)]


def test_an_event_that_comes_while_nothing_is_read_is_not_forgotten() -> None:
    """A read that found nothing says how the log was then: who asked for an event since then gets it."""
    reads = InlineReads(held=True)

    class Slow(MemoryEventStore):
        def read(self, *args: Any, **options: Any) -> Iterator[RawEnvelope]:
            found = list(super().read(*args, **options))
            if between:
                between.pop()()
            return iter(found)

    between: list[Any] = []
    store = Slow()
    write(store, "a")
    with ActorHarness(stepped=True, store=store, reads=reads) as harness:
        first = harness.marks(min_seq=1)
        harness.run()
        reads.run()
        harness.run()
        assert first.result(0) == [mark("a", 1, 1, 1)]
        beyond = harness.marks(min_seq=9)  # nobody has written so much
        harness.run()
        answers: list[Any] = []

        def append_and_ask() -> None:
            answers.append(harness.append("job.event", job_id="a"))
            harness.run()
            answers.append(harness.marks(min_seq=2))
            harness.run()

        between.append(append_and_ask)
        while reads.run(1):
            harness.run()

        assert answers[0].result(0) == 2
        assert answers[1].result(0) == [mark("a", 1, 2, 2)]
        assert beyond.done()


class Unreadable(MemoryEventStore):
    """A store whose log cannot be read while ``error`` is set."""

    error: Exception | None = None

    def read(self, *args: Any, **options: Any) -> Iterator[RawEnvelope]:
        if self.error is not None:
            raise self.error
        return super().read(*args, **options)


@pytest.mark.parametrize(
    "error",
    [
        SessionHalted(session_id="session", reason="a doubt"),
        StorageUnavailable(store="memory:", reason="gone", errno=5),
        OSError(5, "Input/output error"),
        RuntimeError("a bug in an engine"),
    ],
    ids=["halted", "unavailable", "oserror", "bug"],
)
def test_who_asks_is_told_when_the_log_cannot_be_read(error: Exception, logs: CapturedLogs) -> None:
    store = Unreadable()
    write(store, "a", "a")
    store.error = error
    with ActorHarness(stepped=True, store=store) as harness:
        questions = [harness.marks(), harness.marks("a")]
        harness.run()
        for question in questions:
            found = question.exception(0)
            assert isinstance(found, LogmarkError)
            assert isinstance(found, (type(error), StorageUnavailable))
        assert logs.named("marks_unavailable", session="session")

        store.error = None
        assert ask(harness) == [mark("a", 1, 2, 2)]


def test_marks_of_a_halted_session_are_refused_and_come_back_when_it_is_cleared() -> None:
    store = MemoryEventStore()
    write(store, "a")
    store.halt("session", "a doubt")
    with ActorHarness(stepped=True, store=store) as harness:
        question = harness.marks()
        harness.run()
        assert isinstance(question.exception(0), SessionHalted)
        store.clear_halt("session")
        assert ask(harness) == [mark("a", 1, 1, 1)]


def test_a_rule_that_raises_is_logged_and_stops_nothing(logs: CapturedLogs) -> None:
    def rule(payload: Any) -> str:
        return str(payload["state"])

    types = EventTypes(job_status={"build.moved": rule, "build.done": "success"})
    with ActorHarness(stepped=True, types=types) as harness:
        harness.append("build.moved", {"state": "half"}, job_id="a")
        harness.append("build.moved", None, job_id="a")
        harness.append("build.moved", None, job_id="b")
        harness.run()

        assert ask(harness) == [mark("a", 1, 2, 2, "half"), mark("b", 3, 3, 1, "running")]
        failed = logs.named("job_status_rule_failed", session="session")
        assert [event["seq"] for event in failed] == [2, 3]
        assert harness.failures == []
        harness.append("build.done", job_id="a")
        harness.run()
        assert ask(harness, "a") == [mark("a", 1, 4, 3, "success")]


def test_an_asker_that_raises_keeps_the_answer_from_nobody(logs: CapturedLogs) -> None:
    with ActorHarness(stepped=True) as harness:
        harness.append("job.event", job_id="a")
        harness.run()

        def rude(_: object) -> None:
            raise SystemExit(1)

        harness.session.tell(GetMarks(0, None, rude))
        question = harness.marks()
        harness.run()

        assert question.result(0) == [mark("a", 1, 1, 1)]
        assert logs.named("reply_failed", actor="job")


def test_questions_are_answered_at_the_end() -> None:
    reads = InlineReads(held=True)
    store = MemoryEventStore()
    write(store, "a")
    with ActorHarness(stepped=True, store=store, reads=reads) as harness:
        waiting = harness.marks()
        harness.run()
        assert harness.jobs is not None
        jobs = harness.jobs
        harness.stop()
        assert isinstance(waiting.exception(0), RuntimeClosed)
        assert not jobs.is_alive()
        reads.release()  # the read that is still on its way finds nobody


def test_a_read_that_was_for_the_state_before_a_restart_changes_nothing(raise_once: Any) -> None:
    from logmark.actors import JobActor

    reads = InlineReads(held=True)
    store = MemoryEventStore()
    write(store, "a", "b", "a")
    with ActorHarness(stepped=True, store=store, reads=reads, failures_ok=True) as harness:
        question = harness.marks()
        harness.run()
        raise_once(JobActor, "on_drained")
        harness.observe(3)
        harness.run()
        assert reads.waiting == 2  # the one before the restart, and the one after it
        while reads.run(1):
            harness.run()

        assert question.result(0) == [mark("a", 1, 3, 2), mark("b", 2, 2, 1)]
        assert ask(harness) == [mark("a", 1, 3, 2), mark("b", 2, 2, 1)]


def test_no_job_actor_for_sessions_without_jobs() -> None:
    with ActorHarness(stepped=True) as harness:
        for _ in range(3):
            harness.append()
            harness.run()
        before = harness.jobs
        harness.append("job.event", job_id="a")
        harness.run()
        assert (before, harness.jobs is None) == (None, False)
        assert ask(harness) == [mark("a", 4, 4, 1)]


def test_marks_that_moved_are_logged(logs: CapturedLogs) -> None:
    with ActorHarness(stepped=True) as harness:
        harness.append("job.event", job_id="a")
        harness.append("job.result", {"final_status": "success"}, job_id="a")
        harness.run()
        (event,) = logs.named("marks_moved", session="session")
        (moved,) = event["marks"]

        assert event["through_seq"] == 2
        assert moved | {"job": "a", "first_seq": 1, "last_seq": 2, "count": 2, "status": "success"} == moved


def test_marks_equal_a_fold_of_the_whole_log_whatever_came_in_between() -> None:
    import random

    draw = random.Random(44)
    for _ in range(20):
        reads = InlineReads()
        with ActorHarness(stepped=True, reads=reads) as harness:
            for _ in range(25):
                match draw.randrange(6):
                    case 0:
                        write(harness.store, draw.choice("abc"))  # type: ignore[arg-type]
                    case 1:
                        harness.observe(harness.store.last_seq("session"))
                    case 2:
                        reads.hold()
                    case 3:
                        reads.run(1)
                    case 4:
                        harness.run()
                    case _:
                        harness.append("job.event", job_id=draw.choice("abc"))
            harness.run()
            question = harness.marks()
            harness.run()
            while reads.release() or not question.done():
                harness.run()
            counted: dict[str, list[int]] = {}
            for event in harness.log:
                if event.job_id is not None and event.event_seq is not None:
                    counted.setdefault(event.job_id, []).append(event.event_seq)
            wanted = [mark(job, seqs[0], seqs[-1], len(seqs)) for job, seqs in counted.items()]
            assert ask(harness) == wanted
