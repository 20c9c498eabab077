"""Nothing blocks an event loop, whatever the disk does and however many follow."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import itertools
import sys
import threading
import time
from asyncio import events as loop_events
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest

import logmark
from logmark import Limits, aio
from logmark.aio._bridge import Bell, Bridge
from logmark.storage import EventStore

T = TypeVar("T")
SOON = 20.0
CPU_S_MAX = 0.05


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a loop of its own, and fail rather than hang."""
    return asyncio.run(asyncio.wait_for(main, 3 * SOON))


async def take(events: aio.AsyncSubscription, count: int) -> list[int | None]:
    return [(await events.get(SOON)).event_seq for _ in range(count)]


# -- the loop --------------------------------------------------------------------------------------------------------


STORE_CALLS = [name for name, each in vars(EventStore).items() if inspect.isfunction(each) and not name.startswith("_")]


def test_the_loops_thread_never_asks_the_store_anything(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the disk does then, the loop goes on."""
    asked: list[tuple[str, int]] = []

    def watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(self: EventStore, *args: Any, **kwargs: Any) -> Any:
            asked.append((name, threading.get_ident()))
            found = original(self, *args, **kwargs)
            return _watched_steps(name, found, asked) if isinstance(found, Iterator) else found

        return call

    with logmark.open(store_url) as probe:
        engine = type(probe.store)
    for name in STORE_CALLS:
        monkeypatch.setattr(engine, name, watched(name, getattr(engine, name)))

    async def main() -> None:
        async with aio.open(store_url, limits=Limits(subscriber_events_max=4)) as rt:
            session = rt.session("s")
            async with session.subscribe() as live, session.subscribe(0) as slow, session.job("j").subscribe(1) as job:
                for n in range(40):
                    await session.append("x", n, job_id="j" if n % 7 == 0 else None)
                await asyncio.gather(*[session.append_many([("x", n)] * 3) for n in range(30)])
                assert await take(live, 130) == await take(slow, 130) == list(range(1, 131))
                assert len(await take(job, 6)) == 6
            await rt.session("long").append_many([("x", n) for n in range(700)])
            async with rt.session("long").subscribe(0) as long:
                assert await take(long, 700) == list(range(1, 701))
            assert len([event async for event in session.read()]) == 130
            await session.wait_for(130)
            await session.page()
            await session.jobs()
            assert len([info async for info in rt.sessions()]) == 2
            assert len([event async for event in rt.feed(timeout=0)]) == 830

    run(main())
    assert {name for name, _ in asked} >= {"append", "read", "last_seq", "info", "sessions", "close"}
    assert [name for name, thread in asked if thread == threading.get_ident()] == []


def _watched_steps(name: str, found: Iterator[Any], asked: list[tuple[str, int]]) -> Iterator[Any]:
    for each in found:
        asked.append((f"a step of {name}", threading.get_ident()))
        yield each


def test_a_ring_between_the_look_and_the_wait_is_heard() -> None:
    async def main() -> None:
        bell = Bell(Bridge(asyncio.get_running_loop()))
        bell.quiet()
        await asyncio.to_thread(bell.ring)
        assert await asyncio.wait_for(bell.wait(None), SOON)
        bell.quiet()
        waiting = asyncio.create_task(bell.wait(None))
        await asyncio.sleep(0)
        await asyncio.to_thread(bell.ring)
        assert await asyncio.wait_for(waiting, SOON)

    run(main())


class Watchdog:
    """The longest that one callback of the loop has kept it busy: by the processor's time, so that others' work on the
    same machine does not count, and without the collector's, which goes through whatever else the tests have left.
    What would wait instead is found by who asks the store."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.longest_s = 0.0
        self.longest = ""
        self.calls = 0
        self._loop_thread = threading.get_ident()
        self._collected_s = 0.0
        self._collecting_since = 0.0
        original = loop_events.Handle._run

        def measured(handle: Any) -> None:
            began, self._collected_s = time.thread_time(), 0.0
            original(handle)
            took_s = time.thread_time() - began - self._collected_s
            if took_s > self.longest_s:
                self.longest_s, self.longest = took_s, repr(handle)
            self.calls += 1

        patch.setattr(loop_events.Handle, "_run", measured)

    def collector(self, phase: str, _info: object) -> None:
        """Leave the collector's time out; for ``gc.callbacks``."""
        if threading.get_ident() != self._loop_thread:
            return
        if phase == "start":
            self._collecting_since = time.thread_time()
        else:
            self._collected_s += time.thread_time() - self._collecting_since


@pytest.mark.slow
def test_a_thousand_subscribers_and_appenders_see_every_number(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    watchdog = Watchdog(monkeypatch)
    sessions, followers, appenders = 10, 100, 100

    async def main() -> None:
        async with aio.open(store_url) as rt:
            await rt.run(int)
            threads = threading.active_count()

            async def follow(session_id: str) -> list[int | None]:
                async with rt.session(session_id).subscribe(1) as events:
                    return await take(events, appenders)

            async def append(session_id: str, n: int) -> int:
                return await rt.session(session_id).append("x", {"n": n})

            names = [f"s{n}" for n in range(sessions)]
            following = [asyncio.create_task(follow(name)) for name in names for _ in range(followers)]
            appending = [asyncio.create_task(append(name, n)) for n in range(appenders) for name in names]
            numbers = await asyncio.gather(*appending)
            assert sorted(numbers) == sorted(itertools.chain.from_iterable([range(1, appenders + 1)] * sessions))
            for seen in await asyncio.gather(*following):
                assert seen == list(range(1, appenders + 1))
            assert threading.active_count() - threads < 30

    gc.callbacks.append(watchdog.collector)
    try:
        run(main())
    finally:
        gc.callbacks.remove(watchdog.collector)
    assert watchdog.calls > 1000
    if "coverage" not in sys.modules and sys.gettrace() is None:
        assert watchdog.longest_s < CPU_S_MAX, watchdog.longest
