"""Control envelopes overtake nothing and are not overtaken, whatever becomes of the appends around them (row 49)."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from logmark.actors.messages import HaltSession
from logmark.protocol import AppendRejected, AppendUncertain, Limits, StorageRejected, WrongExpectedSeq
from logmark.testing import ActorHarness, ManualClock, MockWriter, RecordingSubscriber, encoded_event, eventually

SOON = 5.0
NO_SPACE = StorageRejected(session_id="session", reason="no space left", errno=28)


def shown(subscriber: RecordingSubscriber) -> list[int | str]:
    """Return what was shown: events by number, control envelopes by type."""
    return [envelope.event_seq or envelope.type for envelope in subscriber.envelopes]


def test_a_mixed_list_of_effects_keeps_its_order_row_49() -> None:
    with ActorHarness(stepped=True) as harness:
        harness.send("session.a")
        harness.append()
        harness.send("session.b")
        harness.send("session.c")
        harness.append()
        harness.append_many([encoded_event(), encoded_event()])
        harness.send("session.d")
        harness.run()

        assert shown(harness.subscriber) == ["session.a", 1, "session.b", "session.c", 2, 3, 4, "session.d"]
        assert len(harness.writer.asked) == 1


def test_a_control_envelope_waits_for_the_events_before_it_row_49() -> None:
    with ActorHarness() as harness:
        held = harness.writer.hold()
        harness.append()
        held.wait()
        harness.send("session.after")
        harness.append()
        harness.send("session.last")
        assert harness.marks().result(SOON) == []  # the session has dealt with all of that
        assert harness.subscriber.offers == []

        held.release()
        harness.subscriber.wait_for(4)
        assert shown(harness.subscriber) == [1, "session.after", 2, "session.last"]


def test_a_control_envelope_alone_goes_at_once_and_needs_no_writer_row_49() -> None:
    with ActorHarness() as harness:
        harness.append().result(SOON)
        harness.writer.die()
        harness.send("session.ping")
        harness.subscriber.wait_for(2)

        assert shown(harness.subscriber) == [1, "session.ping"]
        assert harness.subscriber.last_seq == 1
        assert len(harness.writer.asked) == 1


def test_a_control_envelope_has_no_number_and_is_not_stored_row_49() -> None:
    with ActorHarness() as harness:
        harness.send("session.ping", {"n": 1})
        harness.append().result(SOON)
        ping, event = harness.subscriber.wait_for(2)

        assert (ping.event_seq, event.event_seq) == (None, 1)
        assert ping.session_id == "session"
        assert ping.decode().payload == {"n": 1}
        assert [each.type for each in harness.log] == ["message.created"]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_around_a_failed_append_the_order_of_the_others_stays_row_49(failing: int) -> None:
    with ActorHarness(stepped=True) as harness:
        harness.writer.fail_next(NO_SPACE, request=failing)
        futures = []
        for n in range(3):
            harness.send(f"session.{n}")
            futures.append(harness.append(id=f"event-{n}"))
        harness.send("session.3")
        harness.run()

        assert [future.exception(0) is None for future in futures] == [n != failing for n in range(3)]
        order = [envelope.id if envelope.event_seq else envelope.type for envelope in harness.subscriber.envelopes]
        wanted = ["session.0", "event-0", "session.1", "event-1", "session.2", "event-2", "session.3"]
        assert order == [name for name in wanted if name != f"event-{failing}"]
        assert harness.subscriber.seqs == [1, 2]


def fail_batch(harness: ActorHarness) -> None:
    harness.writer.fail_next(NO_SPACE)


def die_silently(harness: ActorHarness) -> None:
    harness.writer.die_next(silent=True)


def die_with_a_word(harness: ActorHarness) -> None:
    harness.writer.die_next(silent=False)


def have_no_writer(harness: ActorHarness) -> None:
    harness.writer.die()


@pytest.mark.parametrize("break_writer", [fail_batch, die_silently, die_with_a_word, have_no_writer])
def test_a_failed_batch_takes_no_control_envelope_with_it_row_49(
    break_writer: Callable[[ActorHarness], None],
) -> None:
    """What fails is the appends: the control envelopes between them were never the writer's."""
    with ActorHarness(stepped=True) as harness:
        harness.append()
        harness.run()
        break_writer(harness)
        harness.send("session.a")
        future = harness.append()
        harness.send("session.b")
        harness.append()
        harness.run()
        harness.send("session.c")
        harness.run()
        harness.advance(1.0)

        assert isinstance(future.exception(0), AppendRejected | AppendUncertain)
        assert shown(harness.subscriber) == [1, "session.a", "session.b", "session.c"]
        assert harness.subscriber.last_seq == 1


def test_a_wrong_expectation_keeps_its_neighbours_in_order_row_49() -> None:
    with ActorHarness(stepped=True) as harness:
        harness.append()
        harness.send("session.a")
        wrong = harness.append(expected_seq=7)
        harness.send("session.b")
        right = harness.append(expected_seq=1)
        harness.run()

        assert isinstance(wrong.exception(0), WrongExpectedSeq)
        assert right.result(0) == 2
        assert shown(harness.subscriber) == [1, "session.a", "session.b", 2]


def test_a_cancelled_append_leaves_the_control_envelopes_around_it_row_49() -> None:
    with ActorHarness(stepped=True) as harness:
        harness.send("session.a")
        future = harness.append()
        harness.send("session.b")
        assert future.cancel()
        harness.run()

        assert shown(harness.subscriber) == ["session.a", "session.b"]
        assert harness.writer.asked == ()


def test_the_bounds_of_a_batch_do_not_reorder_row_49() -> None:
    with ActorHarness(stepped=True, limits=Limits(batch_events_max=2)) as harness:
        wanted: list[int | str] = []
        for n in range(1, 12):
            harness.append()
            harness.send(f"session.{n}")
            wanted += [n, f"session.{n}"]
        harness.run()

        assert shown(harness.subscriber) == wanted
        assert [len(batch.requests) for batch in harness.writer.asked] == [2, 2, 2, 2, 2, 1]


def test_any_mixed_list_in_any_batches_keeps_its_order_row_49() -> None:
    draw = random.Random(49)
    for _ in range(30):
        with ActorHarness(stepped=True, limits=Limits(batch_events_max=draw.randint(1, 4))) as harness:
            wanted: list[str] = []
            for n in range(20):
                if draw.random() < 0.5:
                    harness.send(f"session.{n}")
                    wanted.append(f"session.{n}")
                else:
                    if draw.random() < 0.3:
                        harness.writer.fail_next(NO_SPACE)
                    harness.append(f"event.{n}")
                    wanted.append(f"event.{n}")
                if draw.random() < 0.3:
                    harness.run()
            harness.run()

            stored = {event.type for event in harness.log}
            assert harness.subscriber.types == [
                name for name in wanted if name in stored or name.startswith("session.")
            ]
            assert harness.subscriber.seqs == list(range(1, len(stored) + 1))


def test_control_envelopes_that_wait_for_a_doubtful_write_are_not_lost_row_49() -> None:
    with ActorHarness() as harness:
        held = harness.writer.hold()
        lost = harness.append()
        held.wait()
        harness.send("session.a")
        behind = harness.append()
        harness.send("session.b")
        assert harness.marks().result(SOON) == []
        dead, harness.writer = harness.writer, MockWriter(store=harness.store)
        dead.die()

        assert isinstance(lost.exception(SOON), AppendUncertain)
        assert isinstance(behind.exception(SOON), AppendRejected)
        harness.subscriber.wait_for(2)
        assert shown(harness.subscriber) == ["session.a", "session.b"]


def test_control_envelopes_told_before_a_stop_are_shown_before_the_end() -> None:
    with ActorHarness(stepped=True) as harness:
        harness.append()
        harness.run()
        harness.send("session.bye")
        harness.stop()

        assert shown(harness.subscriber) == [1, "session.bye"]
        assert harness.subscriber.ends == 1


def test_an_append_alone_waits_for_no_time_to_pass_row_50() -> None:
    clock = ManualClock()
    with ActorHarness(stepped=True, clock=clock) as harness:
        before = clock.monotonic()
        future = harness.append()
        harness.run()

        assert future.result(0) == 1
        assert clock.monotonic() == before


def test_what_was_submitted_without_waiting_lands_before_what_is_awaited_row_50() -> None:
    with ActorHarness() as harness:
        futures = [harness.append(id=f"tell-{n}") for n in range(20)]
        harness.send("session.ping")
        assert harness.append(id="ask").result(SOON) == 21

        assert [event.id for event in harness.log] == [*(f"tell-{n}" for n in range(20)), "ask"]
        # When the last is answered, those before it have been.
        assert all(future.done() for future in futures)


def test_each_threads_own_order_is_kept_row_50() -> None:
    with ActorHarness() as harness:

        def produce(name: str) -> None:
            for n in range(50):
                harness.send(f"session.{name}.{n}")
                harness.append(f"event.{name}.{n}")

        threads = [threading.Thread(target=produce, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
        harness.subscriber.wait_for(400)

        for name in "abcd":
            own = [each for each in harness.subscriber.types if each.split(".")[1] == name]
            assert own == [f"{kind}.{name}.{n}" for n in range(50) for kind in ("session", "event")]


def test_a_halt_is_recorded_behind_what_the_writer_was_told_before() -> None:
    writer = MockWriter()
    held = writer.hold()
    with ActorHarness(store=writer.store) as harness:
        harness.writer = writer
        harness.append()
        held.wait()
        writer.choose().tell(HaltSession("session", "a doubt", None))
        assert harness.store.halted("session") is None
        held.release()
        assert eventually(lambda: harness.store.halted("session"))
        assert [event.event_seq for event in harness.log] == [1]
