"""Batches flow, not events: one batch of a session in flight, what waits becomes the next, bounds are kept."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, wait

import pytest

from logmark.protocol import Limits, RuntimeClosed, StorageRejected
from logmark.storage import Appended, BatchResult, MemoryEventStore, SessionBatch
from logmark.testing import ActorHarness, CapturedLogs, MockWriter, encoded_event, request_of

SOON = 5.0


def sizes(writer: MockWriter) -> list[int]:
    """Return how many events each batch has that the writer was asked for."""
    return [sum(len(request.events) for request in batch.requests) for batch in writer.asked]


def test_at_most_one_batch_of_a_session_is_in_flight_and_what_waits_is_the_next() -> None:
    with ActorHarness() as harness:
        held = harness.writer.hold()
        futures = [harness.append()]
        held.wait()
        futures += [harness.append() for _ in range(10)]
        assert harness.marks().result(SOON) == []  # the session has seen them all
        assert sizes(harness.writer) == [1]
        assert harness.gate.events == 11

        held.release()
        assert [future.result(SOON) for future in futures] == list(range(1, 12))
        assert sizes(harness.writer) == [1, 10]


def test_sessions_do_not_wait_for_each_other_row_39() -> None:
    with ActorHarness("slow") as slow, ActorHarness("quick") as quick:
        held = slow.writer.hold()
        future = slow.append()
        held.wait()
        assert quick.append().result(SOON) == 1
        assert not future.done()
        held.release()
        assert future.result(SOON) == 1


def test_what_arrives_before_the_sessions_turn_is_one_batch() -> None:
    with ActorHarness(stepped=True) as harness:
        for _ in range(5):
            harness.append()
        harness.run()
        harness.append()
        harness.run()

        assert sizes(harness.writer) == [5, 1]
        assert len(harness.subscriber.offers) == 2


@pytest.mark.parametrize(
    ("limits", "appends", "batches"),
    [
        (Limits(batch_events_max=3), [1] * 7, [3, 3, 1]),
        (Limits(batch_events_max=3), [2, 2, 2], [2, 2, 2]),
        (Limits(batch_events_max=3), [1, 5, 1], [1, 5, 1]),
        (Limits(batch_events_max=1), [1, 1], [1, 1]),
        (Limits(), [1] * 7, [7]),
    ],
)
def test_a_batch_has_at_most_so_many_events(limits: Limits, appends: list[int], batches: list[int]) -> None:
    """An append is never divided: one that is larger than a batch may be is a commit of its own."""
    with ActorHarness(stepped=True, limits=limits) as harness:
        futures = [harness.append_many([encoded_event() for _ in range(events)]) for events in appends]
        harness.run()

        assert sizes(harness.writer) == batches
        firsts = [1 + sum(appends[:n]) for n in range(len(appends))]
        assert [future.result(0) for future in futures] == firsts


def test_a_batch_has_at_most_so_many_bytes() -> None:
    event = encoded_event(payload="x" * 1000, id="0")
    with ActorHarness(stepped=True, limits=Limits(batch_bytes_max=event.size_bytes * 2 + 10)) as harness:
        for n in range(5):
            harness.append(payload="x" * 1000, id=str(n))
        harness.append(payload="x" * 9000, id="large")
        harness.append(payload="x" * 1000, id="6")
        harness.run()

        assert sizes(harness.writer) == [2, 2, 1, 1, 1]


def test_a_cancelled_append_is_not_written_and_gives_its_place_back() -> None:
    with ActorHarness() as harness:
        held = harness.writer.hold()
        first = harness.append(id="first")
        held.wait()
        kept, dropped = harness.append(id="kept"), harness.append(id="dropped")
        assert not first.cancel()  # the disk has it
        assert dropped.cancel()
        held.release()

        assert kept.result(SOON) == 2
        assert [event.id for event in harness.log] == ["first", "kept"]
        assert harness.append(id="after").result(SOON) == 3
        assert harness.subscriber.wait_for(3)[-1].id == "after"
        assert not kept.cancel()
        assert harness.gate.events == 0


def test_a_batch_of_cancelled_appends_asks_no_writer_and_gives_the_places_back() -> None:
    with ActorHarness(stepped=True) as harness:
        futures = [harness.append() for _ in range(4)]
        assert all(future.cancel() for future in futures)
        harness.run()

        assert harness.writer.asked == ()
        assert harness.gate.events == 0
        assert harness.subscriber.offers == []


def test_many_callers_share_few_commits_row_51() -> None:
    class CountingDisk(MemoryEventStore):
        def __init__(self) -> None:
            super().__init__()
            self.commits: list[int] = []
            self.all_submitted = threading.Event()

        def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
            self.commits.extend(len(batch.requests) for batch in batches)
            assert self.all_submitted.wait(SOON)
            return super().append(batches)

    disk = CountingDisk()
    with ActorHarness(store=disk, persist=True) as harness:
        futures: list[Future[int]] = []
        barrier = threading.Barrier(64)

        def call() -> None:
            barrier.wait(SOON)
            futures.append(harness.append())

        threads = [threading.Thread(target=call) for _ in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
        disk.all_submitted.set()
        wait(futures, SOON)

        assert sorted(future.result(0) for future in futures) == list(range(1, 65))
        assert sum(disk.commits) == 64
        assert len(disk.commits) <= 3


def test_a_reply_that_fails_keeps_no_answer_from_the_others(logs: CapturedLogs) -> None:
    class Rude:
        """Breaks the contract of ``AppendReply``: it raises."""

        def __init__(self, at: str) -> None:
            self.at = at

        def begin(self) -> bool:
            if self.at == "begin":
                raise ValueError("begin")
            return True

        def settle(self, answer: object) -> None:
            raise ValueError("settle")

    with ActorHarness(stepped=True) as harness:
        before = harness.append()
        harness.submit(request_of(encoded_event(id="rude")), Rude("begin"))
        harness.submit(request_of(encoded_event(id="rude, later")), Rude("settle"))
        after = harness.append()
        harness.run()

        assert before.result(0) == 1
        assert [event.id for event in harness.log].count("rude") == 0
        assert after.result(0) == 3
        assert harness.gate.events == 0
        assert len(logs.named("reply_failed", session="session")) == 2


def test_a_caller_who_settles_his_own_future_harms_nobody() -> None:
    with ActorHarness(stepped=True) as harness:
        mine = harness.append(id="mine")
        other = harness.append(id="other")
        mine.set_result(99)
        harness.run()

        assert other.result(0) == 1
        assert harness.gate.events == 0


def test_a_callback_that_ends_its_thread_ends_no_actor() -> None:
    with ActorHarness() as harness:
        for error in (SystemExit, ValueError):
            held = harness.writer.hold()
            future = harness.append()
            held.wait()

            def callback(_: Future[int], error: type[BaseException] = error) -> None:
                raise error

            future.add_done_callback(callback)
            held.release()
            assert future.result(SOON)
        assert [harness.append().result(SOON) for _ in range(3)] == [3, 4, 5]


def test_a_writer_whose_answers_do_not_fit_leaves_nobody_waiting() -> None:
    class Careless(MemoryEventStore):
        def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
            (result,) = super().append(batches)
            return [
                BatchResult(
                    session_id=result.session_id,
                    answers=result.answers[:-1],
                    last_seq_before=result.last_seq_before,
                    last_seq=result.last_seq,
                )
            ]

    with ActorHarness(stepped=True, store=Careless(), failures_ok=True) as harness:
        futures = [harness.append() for _ in range(3)]
        harness.run()

        assert all(future.exception(0) is not None for future in futures)
        assert harness.gate.events == 0
        assert harness.subscriber.last_seq == 3


def test_what_another_process_wrote_is_told_with_the_next_batch_row_60() -> None:
    with ActorHarness(stepped=True) as harness:
        harness.append()
        harness.run()
        harness.store.append([SessionBatch("session", (request_of(), request_of()))])  # somebody else
        future = harness.append()
        harness.run()

        assert future.result(0) == 4
        assert harness.last_seq == 4
        assert harness.subscriber.seqs == [1, 4]
        # The gap is no secret: the offer says how far the log goes, and whoever wants 2 and 3 reads them.
        assert harness.subscriber.last_seq == 4


def test_a_failed_append_also_brings_news_of_the_log() -> None:
    with ActorHarness(stepped=True) as harness:
        harness.store.append([SessionBatch("session", (request_of(), request_of()))])
        future = harness.append(expected_seq=0)
        harness.run()

        assert future.exception(0) is not None
        assert harness.last_seq == 2
        assert harness.subscriber.offers == [((), 2)]


def test_stopping_answers_everyone_row_52() -> None:
    with ActorHarness() as harness:
        held = harness.writer.hold()
        in_flight = harness.append()
        held.wait()
        waiting = [harness.append() for _ in range(3)]
        question = harness.marks(min_seq=1)
        harness.stop()

        assert in_flight.exception(0) is not None
        assert [type(future.exception(0)) for future in waiting] == [RuntimeClosed] * 3
        error = question.exception(0)
        # The log was looked at in time, or not: no event in it has a job, and nothing else may be answered.
        assert isinstance(error, RuntimeClosed) if error is not None else question.result(0) == []
        assert harness.subscriber.ends == 1
        assert harness.gate.events == 0
        held.release()


def test_messages_behind_a_stop_are_answered() -> None:
    with ActorHarness(stepped=True) as harness:
        harness.run()
        harness.session.stop(block=False)
        future, question = harness.append(), harness.marks()
        late = type(harness.subscriber)()
        harness.subscribe(late)
        harness.run()

        assert isinstance(future.exception(0), RuntimeClosed)
        assert isinstance(question.exception(0), RuntimeClosed)
        assert late.ended
        assert harness.gate.events == 0


def test_a_rejection_names_the_session_and_is_logged_once(logs: CapturedLogs) -> None:
    with ActorHarness(stepped=True) as harness:
        harness.writer.fail_next(StorageRejected(session_id="session", reason="no space left", errno=28))
        for _ in range(5):
            harness.append()
        harness.run()
        (event,) = logs.named("append_failed", session="session")

        assert (event["error"], event["appends"], event["level"]) == ("StorageRejected", 5, "warning")


def test_what_was_persisted_is_logged_with_its_range(logs: CapturedLogs) -> None:
    with ActorHarness(stepped=True) as harness:
        harness.append_many([encoded_event(id="a"), encoded_event()])
        harness.append()
        harness.run()
        harness.append_many([encoded_event(id="a")])
        harness.run()
        (event,) = logs.named("batch_persisted", session="session")
        (retry,) = logs.named("retry_answered", session="session")

        assert (event["first_seq"], event["last_seq"], event["events"], event["appends"]) == (1, 3, 3, 2)
        assert retry["appends"] == 1
        assert logs.named("batch_broadcast", first_seq=1, last_seq=3, events=3, subscribers=1)


def test_answers_are_what_the_store_said() -> None:
    class Settled:
        def __init__(self) -> None:
            self.answers: list[object] = []

        def begin(self) -> bool:
            return True

        def settle(self, answer: object) -> None:
            self.answers.append(answer)

    with ActorHarness(stepped=True) as harness:
        reply = Settled()
        harness.submit(request_of(encoded_event(), encoded_event()), reply)
        harness.run()

        assert reply.answers == [Appended(1, 2)]
