"""Closing: what was accepted is finished, what comes later is refused, and nobody is left waiting (row 52)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark import Runtime
from logmark.errors import AppendUncertain, LogmarkError, RuntimeClosed, SubscriptionClosed, WaitTimeout
from logmark.protocol import Limits
from logmark.storage import BatchResult, MemoryEventStore, SessionBatch
from logmark.testing import CapturedLogs, eventually

SOON = 10.0


def test_what_was_submitted_right_before_the_close_is_on_disk_row_52(tmp_path: Path) -> None:
    runtime = logmark.open(str(tmp_path / "store"))
    futures = [runtime.session(f"s{n % 3}").submit("message.created", n) for n in range(60)]
    runtime.close()

    assert all(future.done() for future in futures)
    with logmark.open(str(tmp_path / "store")) as again:
        for name in range(3):
            events = list(again.session(f"s{name}").read())
            assert [event.payload for event in events] == list(range(name, 60, 3))
            assert [event.event_seq for event in events] == [future.result(0) for future in futures[name::3]]


def test_control_envelopes_sent_right_before_the_close_are_shown() -> None:
    with Runtime(MemoryEventStore()) as runtime:
        session = runtime.session("s")
        subscription = session.subscribe(control=True)
        session.append("message.created")
        session.send("session.bye")
    seen = [event.type for event in subscription]
    assert seen == ["message.created", "session.bye"]


def try_everything(runtime: Runtime, stop: threading.Event, failures: list[BaseException]) -> list[threading.Thread]:
    """Use one session in every way, in a thread each, until the runtime refuses."""
    session = runtime.session("s")

    def repeat(use: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                use()
        except (RuntimeClosed, SubscriptionClosed):
            return
        except BaseException as error:
            failures.append(error)

    def wait_for() -> None:
        try:
            session.wait_for(10**9, timeout=0.002)
        except WaitTimeout:
            return

    def follow() -> None:
        with session.subscribe(from_seq=1) as subscription:
            for _ in subscription:
                if stop.is_set():
                    break

    uses = [
        lambda: session.append("job.event", job_id="a"),
        lambda: session.submit("message.created").result(SOON),
        lambda: session.send("session.ping"),
        session.jobs,
        lambda: session.job("a").mark,
        wait_for,
        follow,
        lambda: session.subscribe().close(),
        lambda: runtime.session(f"s-{time.monotonic_ns()}").append("message.created"),
    ]
    threads = [threading.Thread(target=repeat, args=(use,), name=f"use-{n}") for n, use in enumerate(uses)]
    for thread in threads:
        thread.start()
    return threads


def test_nobody_hangs_however_the_calls_meet_the_close() -> None:
    for _ in range(25):
        stop, failures = threading.Event(), list[BaseException]()
        runtime = Runtime(MemoryEventStore())
        threads = try_everything(runtime, stop, failures)
        runtime.session("s").wait_for(3, timeout=SOON)
        runtime.close()
        deadline = time.monotonic() + SOON
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        left = [thread.name for thread in threads if thread.is_alive()]
        stop.set()
        assert left == []
        assert failures == []


def test_a_disk_that_never_answers_does_not_keep_the_close_for_ever(logs: CapturedLogs) -> None:
    class Stuck(MemoryEventStore):
        def __init__(self) -> None:
            super().__init__()
            self.go_on = threading.Event()

        def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
            self.go_on.wait(SOON)
            return super().append(batches)

    store = Stuck()
    runtime = Runtime(store, limits=Limits(close_wait_s=0.1))
    session = runtime.session("s")
    stuck = session.submit("message.created")
    eventually(lambda: not stuck.cancel())  # it is with the disk
    waiting = session.submit("message.created")
    began = time.monotonic()
    runtime.close()

    assert time.monotonic() - began < SOON / 2
    assert isinstance(stuck.exception(0), AppendUncertain)
    assert isinstance(waiting.exception(0), RuntimeClosed)
    assert logs.named("close_timed_out")
    store.go_on.set()


def test_a_closed_runtime_refuses_with_its_own_error_and_closes_twice() -> None:
    runtime = Runtime(MemoryEventStore())
    session = runtime.session("s")
    session.append("message.created")
    runtime.close()
    runtime.close()
    uses: list[Callable[[], Any]] = [
        lambda: session.append("message.created"),
        lambda: session.submit("message.created"),
        lambda: session.send("session.ping"),
        session.jobs,
        session.subscribe,
        lambda: session.wait_for(2),
        lambda: runtime.session("t"),
    ]
    for use in uses:
        with pytest.raises(RuntimeClosed):
            use()


def test_no_thread_outlives_the_runtime() -> None:
    before = set(threading.enumerate())
    with Runtime(MemoryEventStore()) as runtime:
        session = runtime.session("s")
        with session.subscribe(from_seq=1) as subscription:
            session.append("job.event", job_id="a")
            assert subscription.get(timeout=SOON).event_seq == 1
            assert session.jobs()[0].count == 1
    assert {thread.name for thread in set(threading.enumerate()) - before} == set()


def test_closing_in_two_threads_waits_for_the_one_that_closes() -> None:
    runtime = Runtime(MemoryEventStore())
    runtime.session("s").append("message.created")
    threads = [threading.Thread(target=runtime.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert not any(thread.is_alive() for thread in threads)
    with pytest.raises(LogmarkError):
        runtime.session("s")
