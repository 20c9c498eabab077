"""The bound of the inbox: who outruns the disk is slowed, then told; every place comes back on every path."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from logmark.actors import Gate, SessionActor
from logmark.protocol import InvalidEvent, Limits, Overloaded, RuntimeClosed, StorageRejected
from logmark.storage import SystemClock
from logmark.testing import ActorHarness, MockWriter, encoded_event, eventually

SOON = 5.0


def gate_of(**limits: float) -> Gate:
    return Gate("session", Limits(**limits), SystemClock())  # type: ignore[arg-type]


def test_a_full_inbox_refuses_at_the_deadline_and_not_before() -> None:
    gate = gate_of(inbox_events_max=2, inbox_wait_s=0.05)
    gate.enter(2, 10)
    began = time.monotonic()
    with pytest.raises(Overloaded) as refused:
        gate.enter(1, 10)

    assert time.monotonic() - began >= 0.05
    assert (refused.value.session_id, refused.value.waiting_events, refused.value.waited_s) == ("session", 2, 0.05)
    assert gate.events == 2


def test_bytes_fill_the_inbox_as_events_do() -> None:
    gate = gate_of(inbox_bytes_max=1024 * 1024, inbox_wait_s=0.01)
    gate.enter(1, 1024 * 1024 - 10)
    with pytest.raises(Overloaded):
        gate.enter(1, 11)
    gate.enter(1, 10)
    gate.leave(1, 1024 * 1024 - 10)
    gate.enter(1, 1024 * 1024 - 10)

    assert gate.events == 2


def test_an_append_that_can_never_fit_is_told_at_once() -> None:
    gate = gate_of(inbox_events_max=2)
    with pytest.raises(InvalidEvent, match="inbox_events_max"):
        gate.enter(3, 10)
    with pytest.raises(InvalidEvent, match="inbox_bytes_max"):
        gate.enter(1, 10**9)

    assert gate.events == 0


def test_a_producer_that_waits_goes_on_when_a_place_comes_free() -> None:
    gate = gate_of(inbox_events_max=1)
    gate.enter(1, 1)
    entered = threading.Event()

    def produce() -> None:
        gate.enter(1, 1)
        entered.set()

    thread = threading.Thread(target=produce)
    thread.start()
    assert not entered.wait(0.02)
    gate.leave(1, 1)
    assert entered.wait(SOON)
    thread.join(SOON)
    assert gate.events == 1


def test_closing_tells_those_who_wait_and_those_who_come() -> None:
    gate = gate_of(inbox_events_max=1)
    gate.enter(1, 1)
    refused: list[BaseException] = []
    waiting = threading.Event()

    def produce() -> None:
        waiting.set()
        try:
            gate.enter(1, 1)
        except RuntimeClosed as error:
            refused.append(error)

    thread = threading.Thread(target=produce)
    thread.start()
    assert waiting.wait(SOON)
    gate.close()
    thread.join(SOON)

    assert [type(error) for error in refused] == [RuntimeClosed]
    with pytest.raises(RuntimeClosed):
        gate.enter(1, 1)
    assert gate.events == 1


def test_waiting_for_an_empty_inbox_ends_with_the_last_answer_or_at_the_deadline() -> None:
    gate = gate_of()
    assert gate.wait_empty(time.monotonic())
    gate.enter(2, 2)
    assert not gate.wait_empty(time.monotonic() + 0.01)
    thread = threading.Thread(target=lambda: gate.leave(2, 2))
    thread.start()
    assert gate.wait_empty(time.monotonic() + SOON)
    thread.join(SOON)


def test_leaving_twice_makes_no_room_that_is_not_there() -> None:
    gate = gate_of(inbox_events_max=1, inbox_wait_s=0.01)
    gate.enter(1, 1)
    gate.leave(1, 1)
    gate.leave(1, 1)
    gate.enter(1, 1)
    with pytest.raises(Overloaded):
        gate.enter(1, 1)


def test_many_producers_on_few_places_all_get_through() -> None:
    with ActorHarness(limits=Limits(inbox_events_max=3)) as harness:
        done: list[int] = []
        highest: list[int] = []

        def produce() -> None:
            for _ in range(25):
                future = harness.append()
                highest.append(harness.gate.events)
                done.append(future.result(SOON))

        threads = [threading.Thread(target=produce) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)

        assert sorted(done) == list(range(1, 201))
        assert max(highest) <= 3
        assert harness.gate.events == 0


def test_a_disk_that_is_outrun_slows_and_then_refuses_row_63() -> None:
    with ActorHarness(limits=Limits(inbox_events_max=4, inbox_wait_s=0.05)) as harness:
        held = harness.writer.hold()
        futures = [harness.append() for _ in range(4)]
        held.wait()
        with pytest.raises(Overloaded):
            harness.append()
        held.release()

        assert [future.result(SOON) for future in futures] == [1, 2, 3, 4]
        assert harness.append().result(SOON) == 5
        assert len(harness.log) == 5


# -- every path gives the places back -------------------------------------------------------------------------------

NO_SPACE = StorageRejected(session_id="session", reason="no space left", errno=28)


def succeed(harness: ActorHarness) -> None:
    harness.append_many([encoded_event(), encoded_event()])
    harness.append()


def be_rejected(harness: ActorHarness) -> None:
    harness.writer.fail_next(NO_SPACE)
    harness.append_many([encoded_event(), encoded_event()])


def be_rejected_in_part(harness: ActorHarness) -> None:
    harness.writer.fail_next(NO_SPACE, request=1)
    for _ in range(3):
        harness.append()


def be_cancelled(harness: ActorHarness) -> None:
    harness.append().cancel()
    harness.append()
    harness.append().cancel()


def be_repeated(harness: ActorHarness) -> None:
    for _ in range(2):
        harness.append(id="once")
        harness.run()


def lose_the_writer(harness: ActorHarness) -> None:
    harness.writer.die_next()
    harness.append()
    harness.run()
    harness.append().cancel()
    harness.append()


def have_no_writer(harness: ActorHarness) -> None:
    harness.writer.choose().stop(block=False)
    harness.run()
    harness.append()


def be_stopped_while_waiting(harness: ActorHarness) -> None:
    harness.writer.hold()
    harness.append()
    harness.run()
    harness.append()
    harness.append().cancel()
    harness.stop()


def come_after_the_stop(harness: ActorHarness) -> None:
    harness.session.stop(block=False)
    harness.append()
    harness.append().cancel()


@pytest.mark.parametrize(
    "path",
    [
        succeed,
        be_rejected,
        be_rejected_in_part,
        be_cancelled,
        be_repeated,
        lose_the_writer,
        have_no_writer,
        be_stopped_while_waiting,
        come_after_the_stop,
    ],
)
def test_every_path_gives_the_places_back(path: Callable[[ActorHarness], None]) -> None:
    with ActorHarness(stepped=True) as harness:
        path(harness)
        assert harness.gate.events > 0 or path in (be_repeated, be_stopped_while_waiting)
        harness.run()
        harness.advance(1.0)

        assert harness.gate.events == 0
        assert harness.gate._bytes == 0
        assert harness.gate.wait_empty(0.0)


@pytest.mark.parametrize("name", ["_on_persisted", "_hand_over", "_announce", "_finish", "on_receive", "on_drained"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_restart_gives_the_places_back(raise_once: Callable[..., list[object]], name: str, after: bool) -> None:
    with ActorHarness(stepped=True, failures_ok=True) as harness:
        harness.run()
        raised = raise_once(SessionActor, name, after=after)
        futures = [harness.append() for _ in range(3)]
        harness.run()
        harness.advance(1.0)

        assert raised
        assert all(future.done() for future in futures)
        assert harness.gate.events == 0


def test_places_are_free_when_the_answer_is_there() -> None:
    """Who appends one event after the other never waits for a place that his last event still holds."""
    with ActorHarness(limits=Limits(inbox_events_max=1, inbox_wait_s=0.5)) as harness:
        for n in range(1, 50):
            assert harness.append().result(SOON) == n


def test_a_replaced_actor_shares_the_gate_of_the_first() -> None:
    with ActorHarness(stepped=True) as harness:
        harness.append()
        harness.session.stop(block=False)
        harness.run()
        harness.session = harness.start_session()
        future = harness.append()
        harness.run()

        assert future.result(0) == 1
        assert eventually(lambda: harness.gate.events == 0)
        assert isinstance(harness.writer, MockWriter)
