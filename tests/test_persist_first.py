"""On disk before anyone sees it: no reply, no broadcast, no counter and no mark before the commit."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, wait

import pytest

from logmark.protocol import (
    AppendError,
    AppendRejected,
    AppendUncertain,
    Limits,
    SessionHalted,
    StorageRejected,
    WrongExpectedSeq,
)
from logmark.storage import BatchResult, MemoryEventStore, SessionBatch
from logmark.testing import ActorHarness, RecordingSubscriber, encoded_event

SOON = 5.0
NO_SPACE = StorageRejected(session_id="session", reason="no space left", errno=28)
UNSYNCED = AppendUncertain(session_id="session", reason="fsync failed", first_event_id="event")


class SlowDisk(MemoryEventStore):
    """A store whose commits wait, like an fsync, until they are let through; or raise."""

    def __init__(self) -> None:
        super().__init__()
        self.began = threading.Event()
        self.through = threading.Event()
        self.error: Exception | None = None

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        self.began.set()
        assert self.through.wait(SOON)
        if self.error is not None:
            raise self.error
        return super().append(batches)


def test_a_held_commit_is_visible_to_nobody_row_43_row_44() -> None:
    with ActorHarness() as harness:
        assert harness.append(job_id="build").result(SOON) == 1
        harness.subscriber.wait_for(1)
        held = harness.writer.hold()
        future = harness.append("message.created", {"text": "hi"}, job_id="build")
        held.wait()

        # The answer to a question shows that the session's actors are at work, and that the commit is what they lack.
        (mark,) = harness.marks().result(SOON)
        assert (mark.last_seq, mark.count) == (1, 1)
        assert not future.done()
        assert harness.last_seq == 1
        assert not harness.watermark.wait_for(2, timeout_s=0)
        assert harness.subscriber.seqs == [1]
        assert len(harness.log) == 1
        assert harness.gate.events == 1

        held.release()
        assert future.result(SOON) == 2
        assert harness.last_seq == 2
        harness.subscriber.wait_for(2)
        (mark,) = harness.marks().result(SOON)
        assert (mark.last_seq, mark.count) == (2, 2)
    assert harness.gate.events == 0


def test_a_reply_waits_for_the_real_writer_row_43() -> None:
    disk = SlowDisk()
    with ActorHarness(store=disk, persist=True) as harness:
        future = harness.append("message.created", {"text": "hi"}, job_id="build")
        assert disk.began.wait(SOON)
        assert harness.marks().result(SOON) == []
        assert (future.done(), harness.last_seq, harness.subscriber.offers) == (False, 0, [])

        disk.through.set()
        assert future.result(SOON) == 1
        harness.subscriber.wait_for(1)


def test_the_caller_is_answered_after_everyone_behind_the_session_was_told_row_43() -> None:
    with ActorHarness(stepped=True) as harness:
        late = RecordingSubscriber()
        harness.subscribe(late)
        harness.run()
        future = harness.append(job_id="build")
        # Whoever learns the number and leaves at once must have been offered the event all the same.
        future.add_done_callback(lambda _: harness.unsubscribe(late))
        seen: list[int] = []
        future.add_done_callback(lambda _: seen.extend([harness.last_seq, harness.store.last_seq("session")]))
        harness.run()

        assert late.seqs == [1]
        assert seen == [1, 1]
        assert harness.append().done() is False
        harness.run()
        assert late.seqs == [1]


def test_what_is_broadcast_is_what_is_stored_row_44() -> None:
    with ActorHarness() as harness:
        futures = [harness.append("job.event", {"n": n}, job_id=f"job-{n % 3}") for n in range(50)]
        wait(futures, SOON)
        harness.subscriber.wait_for(50)

        assert harness.subscriber.envelopes == harness.log
        assert harness.subscriber.seqs == [future.result(0) for future in futures] == list(range(1, 51))
        for envelope in harness.subscriber.envelopes:
            assert envelope.session_id == "session"
            assert envelope.decode().payload == {"n": (envelope.event_seq or 0) - 1}


@pytest.mark.parametrize("error", [NO_SPACE, UNSYNCED], ids=["rejected", "uncertain"])
def test_a_failed_commit_reaches_its_caller_and_nobody_else_row_45(error: AppendError) -> None:
    with ActorHarness() as harness:
        harness.append(job_id="build").result(SOON)
        harness.subscriber.wait_for(1)
        log_before = harness.log
        harness.writer.fail_next(error)
        future = harness.append(job_id="build")

        assert type(future.exception(SOON)) is type(error)
        assert harness.last_seq == 1
        assert harness.log == log_before
        # A question and a control envelope pass through both actors behind the session: nothing came before them.
        if isinstance(error, AppendRejected):
            (mark,) = harness.marks().result(SOON)
            assert (mark.last_seq, mark.count) == (1, 1)
        harness.send("session.ping")
        harness.subscriber.wait_for(2)
        assert harness.subscriber.types == ["message.created", "session.ping"]
        assert harness.subscriber.last_seq == 1
        assert harness.gate.events == 0


def test_after_a_rejection_the_session_goes_on_and_after_a_doubt_it_halts_row_45() -> None:
    with ActorHarness() as harness:
        harness.writer.fail_next(NO_SPACE)
        assert isinstance(harness.append().exception(SOON), StorageRejected)
        assert harness.append().result(SOON) == 1
        harness.writer.fail_next(UNSYNCED)
        assert isinstance(harness.append().exception(SOON), AppendUncertain)
        assert isinstance(harness.append().exception(SOON), SessionHalted)
        assert [event.event_seq for event in harness.log] == [1]


def test_a_store_that_raises_leaves_its_caller_uncertain_and_the_writer_at_work_row_45() -> None:
    disk = SlowDisk()
    disk.through.set()
    with (
        ActorHarness("broken", store=disk, persist=True, failures_ok=True) as broken,
        ActorHarness("sound", store=disk, persist=True) as sound,
    ):
        disk.error = OSError(5, "Input/output error")
        error = broken.append().exception(SOON)
        assert isinstance(error, AppendUncertain)
        assert "Input/output error" in str(error)
        disk.error = None

        assert isinstance(broken.append().exception(SOON), SessionHalted)
        assert sound.append().result(SOON) == 1
        assert broken.subscriber.envelopes == []
        assert (broken.last_seq, broken.gate.events) == (0, 0)
        assert [type(failure) for failure in broken.failures] == [OSError]
        assert len(broken.writers.refs()) == 1


def test_a_number_is_announced_for_one_event_only_row_47() -> None:
    with ActorHarness() as harness:
        announced: dict[int, set[str]] = {}
        futures: list[tuple[str, Future[int]]] = []
        for n in range(40):
            if n % 3 == 0:
                harness.writer.fail_next(NO_SPACE)
            futures.append((f"id-{n}", harness.append(id=f"id-{n}")))
            if n % 5 == 0:
                wait([future for _, future in futures], SOON)
        wait([future for _, future in futures], SOON)
        for event_id, future in futures:
            if future.exception(0) is None:
                announced.setdefault(future.result(0), set()).add(event_id)
        harness.subscriber.wait_for(len(harness.log))
        for envelope in harness.subscriber.envelopes:
            announced.setdefault(envelope.event_seq or 0, set()).add(envelope.id or "")

        assert {seq: ids for seq, ids in announced.items() if len(ids) != 1} == {}
        assert {seq: ids.pop() for seq, ids in announced.items()} == {e.event_seq: e.id for e in harness.log}
        assert any(future.exception(0) for _, future in futures)
        assert sorted(announced) == list(range(1, len(harness.log) + 1))


def test_one_failing_request_takes_nothing_from_the_others_of_its_batch_row_48() -> None:
    with ActorHarness() as harness:
        held = harness.writer.hold()
        first = harness.append(id="first")
        held.wait()
        harness.writer.fail_next(NO_SPACE, request=1)
        futures = [
            harness.append(id="a"),
            harness.append(id="b"),
            harness.append_many([encoded_event(id="c"), encoded_event(id="d")]),
            harness.append(id="e", expected_seq=99),
        ]
        held.release()

        assert first.result(SOON) == 1
        assert futures[0].result(SOON) == 2
        assert isinstance(futures[1].exception(SOON), StorageRejected)
        assert futures[2].result(SOON) == 3
        assert isinstance(futures[3].exception(SOON), WrongExpectedSeq)
        assert [event.id for event in harness.subscriber.wait_for(4)] == ["first", "a", "c", "d"]
        assert harness.subscriber.envelopes == harness.log
        assert len(harness.writer.asked) == 2
        assert harness.gate.events == 0


def test_callers_of_one_failed_batch_get_an_error_each() -> None:
    """Raising an exception writes a traceback into it: callers in different threads may not share one object."""
    with ActorHarness() as harness:
        held = harness.writer.hold()
        harness.append()
        held.wait()
        futures = [harness.append() for _ in range(3)]
        harness.writer.fail_next(NO_SPACE)
        held.release()
        errors = [future.exception(SOON) for future in futures]

        assert len({id(error) for error in errors}) == 3
        assert {type(error) for error in errors} == {StorageRejected}


def test_a_retry_is_answered_with_the_first_number_and_shown_to_nobody_again_row_40() -> None:
    with ActorHarness() as harness:
        assert harness.append(id="once").result(SOON) == 1
        assert harness.append().result(SOON) == 2
        assert harness.append(id="once", payload="changed").result(SOON) == 1
        assert harness.append().result(SOON) == 3
        harness.subscriber.wait_for(3)

        assert harness.subscriber.seqs == [1, 2, 3]
        assert harness.subscriber.envelopes == harness.log


def test_a_burst_from_many_threads_leaves_memory_equal_to_the_log_row_53() -> None:
    with ActorHarness(limits=Limits(batch_events_max=7)) as harness:
        replies: list[tuple[str, int]] = []

        def produce(name: int) -> None:
            futures = [(f"{name}-{n}", harness.append("job.event", n, id=f"{name}-{n}", job_id="j")) for n in range(60)]
            replies.extend((event_id, future.result(SOON)) for event_id, future in futures)

        threads = [threading.Thread(target=produce, args=(name,)) for name in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
        harness.subscriber.wait_for(360)

        log = [(event.id, event.event_seq) for event in harness.log]
        assert [seq for _, seq in log] == list(range(1, 361))
        assert [(event.id, event.event_seq) for event in harness.subscriber.envelopes] == log
        assert sorted(replies) == sorted(log)
        assert harness.last_seq == 360
        # Each producer's own events stand in the order in which it submitted them.
        for name in range(6):
            own = [event_id for event_id, _ in log if event_id is not None and event_id.startswith(f"{name}-")]
            assert own == [f"{name}-{n}" for n in range(60)]
        (mark,) = harness.marks().result(SOON)
        assert (mark.first_seq, mark.last_seq, mark.count) == (1, 360, 360)
        assert harness.gate.events == 0
