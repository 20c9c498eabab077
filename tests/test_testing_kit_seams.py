"""The test kit's time, turns, reads, logs and waiting do what they say: they would be poor witnesses otherwise."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import pytest
import structlog

from logmark.actors import BlockingReads, Dispatcher, Timers
from logmark.protocol import (
    Clock,
)
from logmark.storage import get_logger
from logmark.testing import (
    CapturedLogs,
    InlineReads,
    ManualClock,
    ManualTimers,
    MockWriter,
    StepDispatcher,
    capture_logs,
    eventually,
)

SOON = 5.0


def test_a_manual_clock_moves_when_it_is_told_to() -> None:
    clock: Clock = ManualClock(time_ns=10**9, monotonic=5.0)
    assert isinstance(clock, ManualClock)
    clock.advance(1.5)
    clock.sleep(0.5)
    assert (clock.time_ns(), clock.monotonic()) == (3 * 10**9, 7.0)
    clock.step_wall_clock(-2.0)
    assert (clock.time_ns(), clock.monotonic()) == (10**9, 7.0)
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1.0)


def test_a_manual_clock_loses_no_time_to_a_race() -> None:
    clock = ManualClock(monotonic=0.0)

    def sleep_often() -> None:
        for _ in range(500):
            clock.sleep(1.0)

    threads = [threading.Thread(target=sleep_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert clock.monotonic() == 2000.0


class Steps:
    """Takes as many turns as it is told to."""

    travels: bool = False

    def __init__(self, name: str, turns: int, log: list[str]) -> None:
        self.name, self.turns, self.log = name, turns, log

    def take_turn(self) -> bool:
        self.log.append(self.name)
        self.turns -= 1
        return self.turns > 0


def test_a_step_dispatcher_gives_turns_in_turn() -> None:
    dispatcher = StepDispatcher()
    as_dispatcher: Dispatcher = dispatcher
    log: list[str] = []
    a, b = Steps("a", 3, log), Steps("b", 1, log)
    as_dispatcher.schedule(a)
    as_dispatcher.schedule(b)
    assert dispatcher.due == (a, b)
    assert dispatcher.step()
    assert log == ["a"]
    assert dispatcher.run_until_idle() == 3
    assert log == ["a", "b", "a", "a"]
    assert not dispatcher.step()


def test_a_step_dispatcher_gives_one_turn_at_a_time_and_finds_an_endless_one() -> None:
    dispatcher = StepDispatcher()
    nested: list[str] = []

    class Nesting:
        travels: bool = False

        def take_turn(self) -> bool:
            try:
                dispatcher.step()
            except RuntimeError as error:
                nested.append(str(error))
            return False

    dispatcher.schedule(Nesting())
    dispatcher.run_until_idle()
    assert len(nested) == 1
    dispatcher.schedule(Steps("endless", 10**9, []))
    with pytest.raises(RuntimeError, match="still due after 50 turns"):
        dispatcher.run_until_idle(turns_max=50)


def test_manual_timers_tell_each_message_at_its_moment() -> None:
    clock, dispatcher = ManualClock(monotonic=0.0), StepDispatcher()
    timers = ManualTimers(clock)
    as_timers: Timers = timers
    told: list[tuple[float, Any]] = []

    class Noting(MockWriter):
        def on_receive(self, message: Any) -> None:
            told.append((clock.monotonic(), message))

    ref, dead = Noting(dispatcher=dispatcher).choose(), Noting(dispatcher=dispatcher).choose()
    dead.stop(block=False)
    dispatcher.run_until_idle()
    as_timers.after(2.0, ref, "b")
    as_timers.after(1.0, ref, "a")
    as_timers.after(2.0, ref, "c")
    as_timers.after(1.5, dead, "nobody")
    as_timers.after(9.0, ref, "later")
    assert timers.pending[0] == (1.0, "a")
    assert timers.advance(0.5) == 0
    assert timers.advance(1.6) == 3
    dispatcher.run_until_idle()
    assert [message for _, message in told] == ["a", "b", "c"]
    assert clock.monotonic() == 2.1
    assert timers.pending == [(9.0, "later")]
    ref.stop(block=False)
    dispatcher.run_until_idle()


def test_inline_reads_run_at_once_or_when_they_are_let_through() -> None:
    reads = InlineReads()
    as_reads: BlockingReads = reads
    done: list[int] = []
    as_reads.submit(lambda: done.append(1))
    assert done == [1]
    reads.hold()
    for n in (2, 3, 4):
        reads.submit(lambda n=n: done.append(n))  # type: ignore[misc]
    assert (done, reads.waiting) == ([1], 3)
    assert reads.run(1) == 1
    assert reads.release() == 2
    reads.submit(lambda: done.append(5))
    assert done == [1, 2, 3, 4, 5]


# -- logs and waiting -----------------------------------------------------------------------------------------------


def test_captured_logs_have_every_key_and_level(logs: CapturedLogs) -> None:
    log = get_logger(actor="test", session="s")
    log.debug("thing_done", n=1)
    log.warning("thing_done", n=2)
    log.info("other_done", n=1)

    expected = {"event": "thing_done", "level": "debug", "actor": "test", "session": "s", "n": 1, "pid": os.getpid()}
    assert logs.events[0] == expected
    assert [event["n"] for event in logs.named("thing_done")] == [1, 2]
    assert [event["level"] for event in logs.named("thing_done", n=2, actor="test")] == ["warning"]
    assert logs.named("thing_done", missing=None) == []
    assert logs.wait_for("other_done", n=1)["level"] == "info"
    with pytest.raises(TimeoutError, match=r"no log event 'never' with \{'n': 1\} in 0\.01 s; there were"):
        logs.wait_for("never", timeout=0.01, n=1)


def test_captures_in_many_threads_neither_lose_nor_mix() -> None:
    log = get_logger()
    ready = threading.Barrier(8)
    counts: list[int] = []

    def capture(name: int) -> None:
        ready.wait(SOON)
        for _ in range(50):
            with capture_logs() as logs:
                log.debug("thing_done", thread=name)
                counts.append(len(logs.named("thing_done", thread=name)))

    threads = [threading.Thread(target=capture, args=(name,)) for name in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    finally:
        sys.setswitchinterval(interval)
    assert counts == [1] * 400
    from logmark.storage import _logging

    assert not any(isinstance(sink, CapturedLogs) for sink in _logging._sinks)


def test_capturing_changes_nobodys_structlog(logs: CapturedLogs) -> None:
    seen: list[str] = []

    def processor(_logger: Any, _name: str, event: Any) -> Any:
        seen.append(event["event"])
        raise structlog.DropEvent

    structlog.configure(processors=[processor])
    try:
        get_logger().info("thing_done")
    finally:
        structlog.reset_defaults()
    assert seen == ["thing_done"]
    assert logs.named("thing_done")


def test_waiting_for_a_log_event_ends_when_it_comes(logs: CapturedLogs) -> None:
    found: list[Any] = []
    waiter = threading.Thread(target=lambda: found.append(logs.wait_for("thing_done", n=2)))
    waiter.start()
    log = get_logger()
    log.debug("thing_done", n=1)
    log.debug("thing_done", n=2)
    waiter.join(SOON)
    assert found[0]["n"] == 2


def test_eventually_returns_what_became_true_or_says_what_it_was() -> None:
    moment = time.monotonic() + 0.02
    assert eventually(lambda: time.monotonic() >= moment and "done") == "done"
    assert eventually(lambda: 7, timeout=0) == 7
    with pytest.raises(TimeoutError, match=r"the door did not become true in 0.01 s; it was \[\]"):
        eventually(list, timeout=0.01, what="the door")
    with pytest.raises(KeyError):
        eventually(lambda: {"y": 1}["x"])
