"""Futures of submitted events: cancelling, callbacks, and what may not be done inside one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import pytest

import logmark
from logmark.errors import WouldDeadlock, WrongExpectedSeq
from logmark.storage import BatchResult, MemoryEventStore, SessionBatch

SOON = 10.0


class HeldStore(MemoryEventStore):
    """A store whose commits wait until they are let through."""

    def __init__(self) -> None:
        super().__init__()
        self.began = threading.Event()
        self.through = threading.Event()

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        self.began.set()
        assert self.through.wait(SOON)
        return super().append(batches)


# -- cancelling ------------------------------------------------------------------------------------------------------


def test_a_future_can_be_cancelled_until_the_disk_has_it() -> None:
    store = HeldStore()
    with logmark.Runtime(store) as runtime:
        session = runtime.session("s")
        with session.subscribe(1) as subscription:
            first = session.submit("x", "first")
            assert store.began.wait(SOON)
            assert not first.cancel()
            waiting = [session.submit("x", n) for n in range(10)]
            assert [future.cancel() for future in waiting[::2]] == [True] * 5
            store.through.set()
            assert first.result(SOON) == 1
            assert [future.result(SOON) for future in waiting[1::2]] == [2, 3, 4, 5, 6]
            for future in waiting[::2]:
                with pytest.raises(concurrent.futures.CancelledError):
                    future.result(SOON)
            expected = ["first", 1, 3, 5, 7, 9]
            assert [event.payload for event in session.read()] == expected
            assert [subscription.get(SOON).payload for _ in expected] == expected
        assert not first.cancel()


def test_when_all_were_cancelled_nothing_is_written() -> None:
    store = HeldStore()
    with logmark.Runtime(store) as runtime:
        session = runtime.session("s")
        first = session.submit("x")
        assert store.began.wait(SOON)
        waiting = [session.submit("x") for _ in range(10)]
        assert all(future.cancel() for future in waiting)
        store.through.set()
        assert first.result(SOON) == 1
        assert session.append("x") == 2


def test_cancelling_at_any_moment_leaves_exactly_what_was_not_cancelled(store_url: str) -> None:
    with logmark.open(store_url) as runtime:
        session = runtime.session("s")
        futures: list[Future[int]] = []
        cancelled: list[bool] = []
        for n in range(500):
            futures.append(session.submit("x", n))
            cancelled.append(n % 3 == 0 and futures[-1].cancel())
        session.append("x", "end")
        kept = [n for n in range(500) if not cancelled[n]]
        assert [event.payload for event in session.read()] == [*kept, "end"]
        assert [futures[n].result(SOON) for n in kept] == list(range(1, len(kept) + 1))


# -- waiting for several ---------------------------------------------------------------------------------------------


def test_the_standard_librarys_tools_work(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    futures = [session.submit("x", n, expected_seq=99 if n == 3 else None) for n in range(5)]
    done, not_done = concurrent.futures.wait(futures, timeout=SOON)
    assert (len(done), not_done) == (5, set())
    assert set(concurrent.futures.as_completed(futures, timeout=SOON)) == set(futures)
    assert [future.exception(SOON) is None for future in futures] == [True, True, True, False, True]
    assert isinstance(futures[3].exception(), WrongExpectedSeq)

    async def waits() -> int:
        return await asyncio.wait_for(asyncio.wrap_future(session.submit("x")), SOON)

    assert asyncio.run(waits()) == 5


# -- callbacks -------------------------------------------------------------------------------------------------------


def called_back(store: HeldStore, session: logmark.Session, callback: Callable[[Future[int]], object]) -> Future[int]:
    """Submit an event whose callback runs in the runtime's own thread: it is added before the disk has answered."""
    store.began.clear()
    store.through.clear()
    future = session.submit("x")
    future.add_done_callback(callback)
    store.through.set()
    return future


def test_a_callback_gets_the_number_and_may_submit() -> None:
    store = HeldStore()
    with logmark.Runtime(store) as runtime:
        session = runtime.session("s")
        done = threading.Event()
        numbers: list[int] = []

        def chain(future: Future[int]) -> None:
            numbers.append(future.result(0))
            if len(numbers) == 20:
                done.set()
            else:
                session.submit("x").add_done_callback(chain)

        called_back(store, session, chain)
        assert done.wait(SOON)
        assert numbers == list(range(1, 21))


BLOCKING: dict[str, Callable[[logmark.Runtime, logmark.Session], object]] = {
    "append": lambda runtime, session: session.append("x"),
    "append_many": lambda runtime, session: session.append_many([("x", 1)]),
    "append elsewhere": lambda runtime, session: runtime.session("other").append("x"),
    "jobs": lambda runtime, session: session.jobs(),
    "mark": lambda runtime, session: session.job("j").mark,
    "wait_for": lambda runtime, session: session.wait_for(99, timeout=SOON),
    "close": lambda runtime, session: runtime.close(),
}


@pytest.mark.parametrize("how", BLOCKING)
def test_a_callback_that_would_wait_for_itself_is_told_so(how: str) -> None:
    store = HeldStore()
    with logmark.Runtime(store) as runtime:
        session = runtime.session("s")
        outcome: list[BaseException | str] = []
        done = threading.Event()

        def callback(_future: Future[int]) -> None:
            try:
                BLOCKING[how](runtime, session)
            except BaseException as error:
                outcome.append(error)
            else:
                outcome.append("no error")
            done.set()

        assert called_back(store, session, callback).result(SOON) == 1
        assert done.wait(SOON)
        assert [type(each) for each in outcome] == [WouldDeadlock]
        assert session.append("x") == 2


@pytest.mark.parametrize("how", ["last_seq", "read", "page", "subscribe", "send", "submit", "sessions", "session"])
def test_a_callback_may_ask_what_needs_no_turn(how: str) -> None:
    calls: dict[str, Callable[[logmark.Runtime, logmark.Session], object]] = {
        "last_seq": lambda runtime, session: session.last_seq,
        "read": lambda runtime, session: [event.event_seq for event in session.read()],
        "page": lambda runtime, session: session.page().last_seq,
        "subscribe": lambda runtime, session: session.subscribe(1).close(),
        "send": lambda runtime, session: session.send("session.ping"),
        "submit": lambda runtime, session: session.submit("x"),
        "sessions": lambda runtime, session: list(runtime.sessions()),
        "session": lambda runtime, session: runtime.session("new").submit("x"),
    }
    store = HeldStore()
    with logmark.Runtime(store) as runtime:
        session = runtime.session("s")
        done = threading.Event()

        def callback(_future: Future[int]) -> None:
            calls[how](runtime, session)
            done.set()

        called_back(store, session, callback)
        assert done.wait(SOON)


@pytest.mark.parametrize("error", [LookupError, SystemExit, KeyboardInterrupt])
def test_a_callback_that_raises_is_logged_and_disturbs_nobody(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """Not even one that tries to end the interpreter: it runs in a thread that others need."""
    store = HeldStore()
    with caplog.at_level(logging.ERROR, "concurrent.futures"), logmark.Runtime(store) as runtime:
        session = runtime.session("s")

        def raises(_future: Future[int]) -> None:
            raise error

        futures = [called_back(store, session, raises)]
        store.through.clear()
        futures += [session.submit("x") for _ in range(5)]
        for future in futures[1:4]:
            future.add_done_callback(raises)
        store.through.set()
        assert [future.result(SOON) for future in futures] == list(range(1, 7))
        assert session.append("x") == 7
        with session.subscribe(1) as subscription:
            assert [subscription.get(SOON).event_seq for _ in range(7)] == list(range(1, 8))
    assert any(record.exc_info and record.exc_info[0] is error for record in caplog.records)


def test_a_future_that_its_holder_has_settled_keeps_no_answer_from_others(caplog: pytest.LogCaptureFixture) -> None:
    store = HeldStore()
    with caplog.at_level(logging.ERROR, "concurrent.futures"), logmark.Runtime(store) as runtime:
        session = runtime.session("s")
        futures = [session.submit("x") for _ in range(5)]
        assert store.began.wait(SOON)
        futures[0].set_result(99)
        store.through.set()
        assert [future.result(SOON) for future in futures] == [99, 2, 3, 4, 5]
        assert session.append("x") == 6


def test_a_callback_added_late_runs_at_once_in_its_own_thread(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    future = session.submit("x")
    assert future.result(SOON) == 1
    numbers: list[int] = []
    future.add_done_callback(lambda _future: numbers.append(session.append("x")))
    assert numbers == [2]


def test_the_switch_interval_decides_nothing(runtime: logmark.Runtime) -> None:
    """The tightest interleaving that the interpreter can be asked for."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        session = runtime.session("s")
        futures = [session.submit("x", n) for n in range(200)]
        assert [future.result(SOON) for future in futures] == list(range(1, 201))
    finally:
        sys.setswitchinterval(before)
