"""Turns, timers and blocking reads on threads: one turn of an actor at a time, in order, and no wake-up lost."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from typing import Any

import pykka
import pytest
from pykka._envelope import Envelope

from logmark.actors import (
    Dispatcher,
    LogmarkActor,
    Mailbox,
    ThreadBlockingReads,
    ThreadDispatcher,
    ThreadTimers,
    Turns,
    Watermark,
)
from logmark.storage import SystemClock, get_logger
from logmark.testing import ActorHarness, CapturedLogs, StepDispatcher, eventually

SOON = 10.0


class Counting(LogmarkActor):
    """Counts what it handles, and notices two turns at once."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__(dispatcher=dispatcher, clock=SystemClock(), log=get_logger(actor="counting"))
        self.handled: list[tuple[int, int]] = []
        self.overlaps = 0
        self.buried: list[Any] = []
        self.threads: set[str] = set()
        self._inside = threading.Lock()

    def on_receive(self, message: Any) -> None:
        if not self._inside.acquire(blocking=False):
            self.overlaps += 1
            return
        try:
            self.threads.add(threading.current_thread().name)
            if isinstance(message, threading.Event):
                message.wait(SOON)
            elif message is not None:
                self.handled.append(message)
        finally:
            self._inside.release()

    def on_dead_letter(self, message: Any) -> None:
        self.buried.append(message)


def start(dispatcher: Dispatcher) -> Counting:
    actor = Counting(dispatcher)
    pykka.ActorRegistry.register(actor.actor_ref)
    actor._start_actor_loop()
    return actor


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_many_tellers_one_turn_at_a_time_in_order_and_none_forgotten(threads: int) -> None:
    tellers, messages = 8, 1500
    dispatcher = ThreadDispatcher("stress", threads)
    actors = [start(dispatcher) for _ in range(3)]

    def tell(teller: int) -> None:
        for n in range(messages):
            for actor in actors:
                actor.actor_ref.tell((teller, n))

    workers = [threading.Thread(target=tell, args=(teller,)) for teller in range(tellers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(SOON)
    for actor in actors:
        # Nothing is told any more: whatever is still in an inbox must be handled by the wake-ups there have been.
        eventually(lambda actor=actor: len(actor.handled) == tellers * messages, SOON)  # type: ignore[misc]
        assert actor.overlaps == 0
        for teller in range(tellers):
            assert [n for who, n in actor.handled if who == teller] == list(range(messages))
        actor.actor_ref.stop(block=True, timeout=SOON)
    dispatcher.stop()


def test_a_lone_teller_and_a_quick_actor_lose_no_wake_up() -> None:
    """The narrow moment is the end of a turn: a message that comes right then must find its actor due again."""
    dispatcher = ThreadDispatcher("lone", 1)
    actor = start(dispatcher)
    for n in range(3000):
        # The answer comes out of the turn, so that the next message comes just as the turn ends.
        actor.actor_ref.ask((0, n), block=True, timeout=SOON)
    assert [n for _, n in actor.handled] == list(range(3000))
    actor.actor_ref.stop(block=True, timeout=SOON)
    dispatcher.stop()


def test_a_busy_actor_does_not_keep_the_thread_for_itself() -> None:
    dispatcher = ThreadDispatcher("fair", 1)
    busy, patient = start(dispatcher), start(dispatcher)
    release = threading.Event()
    busy.actor_ref.tell(release)
    eventually(busy._inside.locked)  # its turn lasts
    busy.actor_ref.tell((0, 0))
    patient.actor_ref.tell((0, 0))
    busy.actor_ref.tell((0, 1))
    order: list[str] = []
    busy.on_drained = lambda: order.append("busy")  # type: ignore[method-assign]
    patient.on_drained = lambda: order.append("patient")  # type: ignore[method-assign]
    release.set()
    eventually(lambda: len(busy.handled) == 2 and len(patient.handled) == 1, SOON)
    dispatcher.stop()

    assert "patient" in order[:2]


def test_an_idle_actor_costs_no_thread() -> None:
    before = threading.active_count()
    dispatcher = ThreadDispatcher("idle", 2)
    actors = [start(dispatcher) for _ in range(200)]
    for actor in actors:
        actor.actor_ref.tell((0, 0))
    eventually(lambda: all(actor.handled for actor in actors), SOON)

    assert threading.active_count() <= before + 2
    assert set().union(*(actor.threads for actor in actors)) <= {"logmark-idle-1", "logmark-idle-2"}
    dispatcher.stop()


def test_threads_start_when_they_are_needed_and_end_with_the_dispatcher() -> None:
    dispatcher = ThreadDispatcher("lifetime", 2)
    assert dispatcher._threads == []
    actor = start(dispatcher)
    actor.actor_ref.tell((0, 0))
    dispatcher.stop()

    assert actor.handled == [(0, 0)]  # what was due is done
    assert [thread.is_alive() for thread in dispatcher._threads] == [False] * len(dispatcher._threads)
    dispatcher.stop()


def test_who_is_told_after_the_last_thread_ended_answers_all_the_same() -> None:
    """A message may pass the look at a living actor and arrive when nobody gives turns any more: no asker may hang."""
    dispatcher = ThreadDispatcher("ended", 1)
    actor = start(dispatcher)
    actor.actor_ref.stop(block=True, timeout=SOON)
    dispatcher.stop()
    asked = pykka.ThreadingFuture[Any]()
    actor.actor_inbox.put(Envelope("told"))
    actor.actor_inbox.put(Envelope("asked", reply_to=asked))

    assert actor.buried == ["told"]
    with pytest.raises(pykka.ActorDeadError):
        asked.get(timeout=SOON)


def test_telling_while_the_dispatcher_stops_loses_nothing() -> None:
    for _ in range(30):
        dispatcher = ThreadDispatcher("stopping", 2)
        actor = start(dispatcher)
        begun = threading.Event()

        def tell(actor: Counting = actor, begun: threading.Event = begun) -> None:
            for n in range(200):
                actor.actor_ref.tell((0, n))
                begun.set()

        teller = threading.Thread(target=tell)
        teller.start()
        assert begun.wait(SOON)
        dispatcher.stop()
        teller.join(SOON)
        eventually(lambda actor=actor: len(actor.handled) == 200, SOON)  # type: ignore[misc]
        assert [n for _, n in actor.handled] == list(range(200))
        assert actor.overlaps == 0


def test_without_a_new_thread_the_old_ones_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = ThreadDispatcher("scarce", 2)
    first, second = start(dispatcher), start(dispatcher)
    eventually(lambda: len(dispatcher._threads) == 2)
    scarce = ThreadDispatcher("scarcer", 3)
    third = start(scarce)

    def cannot(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", cannot)
    third.actor_ref.tell((0, 0))
    with pytest.raises(RuntimeError, match="can't start"):
        start(ThreadDispatcher("none", 1))
    monkeypatch.undo()
    eventually(lambda: third.handled == [(0, 0)], SOON)
    assert len(scarce._threads) == 1
    third.actor_ref.tell((0, 1))
    eventually(lambda: third.handled == [(0, 0), (0, 1)], SOON)
    for actor in (first, second, third):
        actor.actor_ref.stop(block=True, timeout=SOON)
    dispatcher.stop()
    scarce.stop()


def test_a_mailbox_is_what_pykka_takes_for_an_inbox() -> None:
    mailbox = Mailbox()
    assert mailbox.empty()
    mailbox.put(Envelope("a"))
    mailbox.put(Envelope("b"))
    assert not mailbox.empty()
    assert mailbox.get().message == "a"
    asked = Envelope("c", reply_to=pykka.ThreadingFuture())
    mailbox.put(asked)
    assert mailbox.take() == ["b", asked]  # what was told, as it is
    mailbox.put(asked)
    assert mailbox.get() is asked
    with pytest.raises(IndexError):
        mailbox.get()


def test_a_mailbox_calls_for_one_turn_however_much_it_gets() -> None:
    dispatcher = StepDispatcher()

    class Owner:
        travels = False
        turns = 0

        def take_turn(self) -> bool:
            self.turns += 1
            mailbox.take()
            return mailbox.finish_turn(quiet=False)

    mailbox, owner = Mailbox(), Owner()
    mailbox.put(Envelope("before the start"))
    assert not dispatcher.step()
    assert isinstance(owner, Turns)
    mailbox.attach(owner, dispatcher)
    for _ in range(5):
        mailbox.put(Envelope("x"))
    assert dispatcher.due == (owner,)
    assert dispatcher.run_until_idle() == 1
    mailbox.put(Envelope("y"))
    assert dispatcher.due == (owner,)


def test_a_stopped_actor_is_garbage() -> None:
    dispatcher = StepDispatcher()
    actor = start(dispatcher)
    seen = weakref.ref(actor)
    actor.actor_ref.stop(block=False)
    dispatcher.run_until_idle()
    assert actor.actor_ref not in pykka.ActorRegistry.get_all()
    del actor
    gc.collect()
    assert seen() is None


# -- timers and reads -----------------------------------------------------------------------------------------------


def test_timers_tell_in_the_order_of_their_moments() -> None:
    dispatcher = ThreadDispatcher("timed", 1)
    actor = start(dispatcher)
    timers = ThreadTimers(SystemClock())
    began = time.monotonic()
    timers.after(0.06, actor.actor_ref, (0, 3))
    timers.after(0.0, actor.actor_ref, (0, 1))
    timers.after(0.03, actor.actor_ref, (0, 2))
    eventually(lambda: len(actor.handled) == 3, SOON)

    assert actor.handled == [(0, 1), (0, 2), (0, 3)]
    assert time.monotonic() - began >= 0.06
    timers.stop()
    dispatcher.stop()


def test_stopped_timers_tell_nothing_and_leave_no_thread() -> None:
    dispatcher = ThreadDispatcher("timed", 1)
    actor = start(dispatcher)
    timers = ThreadTimers(SystemClock())
    timers.after(3600.0, actor.actor_ref, (0, 1))
    thread = timers._thread
    assert thread is not None
    timers.stop()
    timers.after(0.0, actor.actor_ref, (0, 2))
    timers.stop()

    assert not thread.is_alive()
    assert timers._due == []
    dispatcher.stop()
    assert actor.handled == []


def test_a_timer_of_a_stopped_actor_disturbs_no_other(logs: CapturedLogs) -> None:
    dispatcher = ThreadDispatcher("timed", 1)
    dead, alive = start(dispatcher), start(dispatcher)
    dead.actor_ref.stop(block=True, timeout=SOON)
    timers = ThreadTimers(SystemClock())
    timers.after(0.0, dead.actor_ref, (0, 1))
    timers.after(0.0, alive.actor_ref, (0, 2))
    eventually(lambda: alive.handled == [(0, 2)], SOON)

    assert logs.wait_for("timer_dropped")
    assert dead.handled == []
    timers.stop()
    dispatcher.stop()


def test_a_session_keeps_no_timer_running_when_it_is_idle() -> None:
    with ActorHarness(stepped=True) as harness:
        from logmark.testing import ManualTimers

        assert isinstance(harness.timers, ManualTimers)
        for _ in range(3):
            harness.append()
            harness.run()
        assert len(harness.timers.pending) == 1  # one for all of them
        harness.advance(1.0)
        assert harness.timers.pending == []
        held = harness.writer.hold()
        future = harness.append()
        harness.run()
        assert harness.advance(5.0) >= 10  # it looks after the writer as long as it has a batch
        held.release()
        harness.advance(1.0)
        assert future.result(0) == 4
        assert harness.timers.pending == []


def test_reads_run_elsewhere_and_one_that_raises_ends_no_thread(logs: CapturedLogs) -> None:
    reads = ThreadBlockingReads(2)
    done: list[str] = []

    def broken() -> None:
        raise OSError(5, "Input/output error")

    for _ in range(5):
        reads.submit(broken)
    for _ in range(5):
        reads.submit(lambda: done.append(threading.current_thread().name))
    eventually(lambda: len(done) == 5, SOON)

    assert set(done) == {"logmark-reads"}
    assert len(reads._threads) <= 2
    assert len(logs.named("blocking_read_failed")) == 5
    threads = list(reads._threads)
    reads.stop()
    reads.submit(lambda: done.append("late"))
    assert not any(thread.is_alive() for thread in threads)
    assert "late" not in done


# -- how far a session is durable -----------------------------------------------------------------------------------


def test_a_watermark_only_rises() -> None:
    mark = Watermark(SystemClock(), 3)
    mark.rise(2)
    assert mark.seq == 3
    mark.rise(7)
    assert mark.seq == 7
    assert mark.wait_for(7, 0)
    assert not mark.wait_for(8, 0.01)


def test_waiting_for_a_number_ends_when_it_is_there_or_when_nothing_will_come_row_68() -> None:
    mark = Watermark(SystemClock())
    reached: list[bool] = []
    threads = [threading.Thread(target=lambda seq=seq: reached.append(mark.wait_for(seq, None))) for seq in (1, 2, 99)]
    for thread in threads:
        thread.start()
    mark.rise(1)
    threads[0].join(SOON)
    assert reached == [True]
    mark.rise(2)
    threads[1].join(SOON)
    assert reached == [True, True]
    mark.end()
    threads[2].join(SOON)
    assert reached == [True, True, False]
    assert not mark.wait_for(99, None)
    assert mark.wait_for(2, None)
