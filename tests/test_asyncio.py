"""A runtime in an event loop: all that threads have, following, and the end of it."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

import logmark
from logmark import Limits, aio
from logmark.aio import AsyncRuntime, AsyncSession
from logmark.errors import (
    ForkedRuntime,
    InvalidArgument,
    InvalidEvent,
    LogCorrupt,
    RuntimeClosed,
    SessionDeleted,
    StorageUnavailable,
    SubscriptionClosed,
    WaitTimeout,
)
from logmark.protocol import RawEnvelope
from logmark.storage import BatchResult, MemoryEventStore, SessionBatch
from logmark.testing import eventually

T = TypeVar("T")
SOON = 20.0


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a loop of its own, and fail rather than hang."""
    return asyncio.run(asyncio.wait_for(main, 3 * SOON))


class StalledStore(MemoryEventStore):
    """A disk that answers nothing while it is held."""

    def __init__(self) -> None:
        super().__init__()
        self.through = threading.Event()
        self.began = threading.Event()

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        self.began.set()
        assert self.through.wait(SOON)
        return super().append(batches)


class DamagedStore(MemoryEventStore):
    """A log of which the tenth event cannot be read."""

    def read(
        self, session_id: str, *, from_seq: int = 1, through_seq: int | None = None, halted_ok: bool = False
    ) -> Iterator[RawEnvelope]:
        for event in super().read(session_id, from_seq=from_seq, through_seq=through_seq, halted_ok=halted_ok):
            if event.event_seq == 10:
                raise LogCorrupt(session_id=session_id, reason="a flipped bit", event_seq=10, segment=None, offset=None)
            yield event


async def until(predicate: Callable[[], object]) -> None:
    """Wait in the loop for what nobody announces."""
    async with asyncio.timeout(SOON):
        while not predicate():  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.002)


async def take(events: aio.AsyncSubscription, count: int) -> list[int | None]:
    return [(await events.get(SOON)).event_seq for _ in range(count)]


# -- the same as from threads ----------------------------------------------------------------------------------------


def test_everything_a_session_does(every_store_url: str) -> None:
    async def main() -> None:
        async with aio.open(every_store_url) as rt:
            session = rt.session("s")
            assert session is rt.session("s")
            assert await session.append("x", {"n": 1}) == 1
            assert await session.append("x", id="mine", job_id="j", source="me", stream_seq=7, trace_id="t") == 2
            assert await session.append("y", id="mine") == 2
            assert await session.append_many([("x", n) for n in range(3)], expected_seq=2) == (3, 5)
            assert await session.append_many([("x", n) for n in range(200)]) == (6, 205)
            assert await session.append_many([]) == (206, 205)
            with pytest.raises(logmark.WrongExpectedSeq):
                await session.append("x", expected_seq=1)
            with pytest.raises(InvalidEvent):
                await session.append("x", float("nan"))
            assert await session.last_seq() == 205
            assert [event.event_seq async for event in session.read(3, 4)] == [3, 4, 5, 6]
            assert [event.event_seq async for event in session.read()] == list(range(1, 206))
            assert [event.event_seq async for event in session.job("j").read()] == [2]
            page = await session.page(limit=2)
            assert (page.first_seq, page.last_seq, page.has_more) == (204, 205, True)
            assert [mark.job_id for mark in await session.jobs()] == ["j"]
            assert (await session.job("j").mark()).count == 1
            assert await session.job("j").append("x") == 206
            async with session.job("j").subscribe(1, control=True) as events:
                assert await take(events, 2) == [2, 206]
                session.send("session.ping", {"n": 1}, job_id="j")
                assert (await events.get(SOON)).payload == {"n": 1}
            assert [info.session_id async for info in rt.sessions()] == ["s"]
            assert await rt.run(rt.runtime.store.verify, "s") == []

    run(main())


def test_rows_cursors_and_the_lifetime_of_a_session(every_store_url: str) -> None:
    async def main() -> None:
        async with aio.open(every_store_url) as rt:
            session = rt.session("s")
            await session.append_many([("x", n) for n in range(206)])
            assert await session.upsert("r", "m", {"text": "h"}) == 207
            assert await session.upsert("r", "m", {"text": "hi"}, final=True, job_id="j") == 208
            row = await session.row("r")
            assert row is not None
            assert (row.position, row.last_seq, row.payload) == (207, 208, {"text": "hi"})
            assert [each.row_id for each in (await session.rows()).rows] == ["r"]
            cursor = await session.cursor("ui")
            assert await cursor.ack(205) == 205
            assert (cursor.name, await cursor.position(), await cursor.lag()) == ("ui", 205, 3)
            assert [mark.name for mark in await session.cursors()] == ["ui"]
            async with session.subscribe(cursor="ui") as one, session.subscribe(cursor=cursor, coalesce=True) as two:
                assert await take(one, 3) == await take(two, 3) == [206, 207, 208]
            await cursor.delete()
            assert await session.delete_cursor("ui") is False
            await session.wait_for(208, timeout=0)
            assert await session.truncate_before(3) == 3
            assert await session.prune(keep_days=1) == 3
            assert await session.first_seq() == 3
            assert await session.seal() == 208
            with pytest.raises(logmark.SessionSealed):
                await session.append("x")
            await rt.session("gone").append("x")
            await rt.delete_session("gone")
            with pytest.raises(WaitTimeout):
                await session.wait_for(299, timeout=0.01)

    run(main())


def test_every_blocking_call_has_its_counterpart() -> None:
    """Who adds a public method to a session adds it here too, or says why it never blocks."""
    # for the runtime itself, and for who appends or polls in a way of his own
    internal = ["ask_marks", "deleted", "drain", "follow", "gate", "hand_in", "note_deleted", "observed"]
    internal += ["row_fields", "runtime", "stop", "upserted", "when_room"]
    instead = {"read_raw": "read", "submit": "append", "submit_many": "append_many"}
    sync = {name for name in dir(logmark.Session) if not name.startswith("_")} - set(internal)
    asynchronous = {name for name in dir(AsyncSession) if not name.startswith("_")}
    assert {instead.get(name, name) for name in sync} - asynchronous == set()
    assert hasattr(AsyncRuntime, "delete_session")


def test_a_runtime_is_awaited_or_wrapped_too(tmp_path: Path) -> None:
    async def main() -> None:
        rt = await aio.open(str(tmp_path))
        assert await rt.session("s").append("x") == 1
        await rt.close()
        await rt.close()
        with pytest.raises(RuntimeClosed):
            await rt.session("s").append("x")
        with pytest.raises(StorageUnavailable):
            await aio.open(str(tmp_path / "none"), create=False)
        with pytest.raises(InvalidArgument):
            async with aio.open("nonsense:x"):
                pass
        with logmark.open(str(tmp_path)) as runtime:
            async with aio.wrap(runtime) as wrapped:
                assert await wrapped.session("s").append("x") == 2
            assert runtime.session("s").append("x") == 3  # what was wrapped stays open

    run(main())


# -- following -------------------------------------------------------------------------------------------------------


def test_history_and_live_have_no_seam(store_url: str) -> None:
    async def main() -> None:
        limits = Limits(subscriber_events_max=8)
        async with aio.open(store_url, limits=limits) as rt:
            session = rt.session("s")
            await session.append_many([("x", n) for n in range(500)])

            async def follow() -> list[int | None]:
                seen: list[int | None] = []
                async for event in session.subscribe(from_seq=1):
                    seen.append(event.event_seq)
                    if event.event_seq == 1000:
                        break
                return seen

            following = [asyncio.create_task(follow()) for _ in range(3)]
            for n in range(50):
                await session.append_many([("x", n)] * 10)
            for task in following:
                assert await task == list(range(1, 1001))

    run(main())


def test_what_another_process_appends_is_seen(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            aio.open(str(tmp_path)) as rt,
            aio.open(str(tmp_path)) as other,
            rt.session("s").subscribe() as events,
        ):
            waiting = asyncio.create_task(rt.session("s").wait_for(2, SOON))
            await other.session("s").append("x")
            await other.session("s").append("x")
            assert await take(events, 2) == [1, 2]
            await waiting

    run(main())


def test_a_timeout_loses_nothing_and_zero_does_not_wait(store_url: str) -> None:
    async def main() -> None:
        async with aio.open(store_url) as rt:
            session = rt.session("s")
            async with session.subscribe(1) as events:
                with pytest.raises(WaitTimeout):
                    await events.get(timeout=0)
                with pytest.raises(TimeoutError):
                    await events.get(timeout=0.01)
                with pytest.raises(InvalidArgument):
                    await events.get(timeout="soon")  # type: ignore[arg-type]
                await session.append("x")
                assert (await events.get(timeout=SOON)).event_seq == 1
                assert (events.next_seq, events.lag) == (2, 0)

    run(main())


def test_wrong_starts_are_refused_when_it_is_opened(store_url: str) -> None:
    async def main() -> None:
        async with aio.open(store_url) as rt:
            with pytest.raises(logmark.errors.CursorAhead):
                async for _ in rt.session("s").subscribe(from_seq=5):
                    pass
            with pytest.raises(logmark.errors.CursorAhead):
                [event async for event in rt.session("s").read(7)]
            with pytest.raises(InvalidArgument):
                await rt.session("s").wait_for(-1)
            with pytest.raises(InvalidArgument):
                rt.session("s").job("")

    run(main())


def test_damage_is_met_after_what_comes_before_it_and_met_again() -> None:
    async def main() -> None:
        runtime = logmark.Runtime(DamagedStore())
        async with aio.wrap(runtime) as rt:
            session = rt.session("s")
            await session.append_many([("x", n) for n in range(20)])
            for events in (session.subscribe(1), session.read()):
                seen: list[int | None] = []
                with pytest.raises(LogCorrupt):  # noqa: PT012 - a loop is how it is met
                    async for event in events:
                        seen.append(event.event_seq)  # noqa: PERF401 - what came before the damage is kept
                assert seen == list(range(1, 10))
                if isinstance(events, aio.AsyncSubscription):
                    with pytest.raises(LogCorrupt):
                        await events.get(SOON)
                    await events.aclose()
        runtime.close()

    run(main())


def test_a_feed_of_the_whole_store(store_url: str) -> None:
    async def main() -> None:
        async with aio.open(store_url) as rt:
            for n in range(3):
                await rt.session(f"s{n}").append_many([("x", n)] * 300)
            events = [event async for event in rt.feed(timeout=0)]
            assert len(events) == 900
            assert [event async for event in rt.feed(after=events[-1].position, timeout=0.01)] == []
            async with rt.feed(after=events[-1].position) as feed:
                getting = asyncio.create_task(feed.get())
                await asyncio.sleep(0.01)
                getting.cancel()
                await asyncio.gather(getting, return_exceptions=True)
                await rt.session("new").append("x", "live")
                assert (await feed.get(SOON)).payload == "live"
                with pytest.raises(WaitTimeout):
                    await feed.get(timeout=0)
                await rt.run(rt.runtime.store.delete, "s1")
                with pytest.raises(SessionDeleted):
                    await feed.get(SOON)
                iterating = asyncio.create_task(_every(feed))
                await asyncio.sleep(0.01)
                await feed.aclose()
                assert await iterating == []
            ended = asyncio.create_task(_every(rt.feed(after="now")))
            await asyncio.sleep(0.05)
        assert await ended == []

    run(main())


async def _every(feed: aio.AsyncFeed) -> list[logmark.FeedEvent]:
    return [event async for event in feed]


# -- the end ---------------------------------------------------------------------------------------------------------


def test_closing_ends_every_iteration_and_answers_every_append(store_url: str) -> None:
    async def main() -> None:
        rt = await aio.open(store_url)
        session = rt.session("s")
        await session.append("x")

        async def follow() -> list[int | None]:
            return [event.event_seq async for event in session.subscribe(1)]

        own = session.subscribe(1)
        await own.open()
        following = [asyncio.create_task(follow()) for _ in range(5)]
        waiting = asyncio.create_task(session.wait_for(100))
        closed = asyncio.create_task(_all(own))
        await until(lambda: own.next_seq == 2 and len(list(rt.runtime._subscriptions)) == 7)
        own.close()
        assert await closed == [1]
        with pytest.raises(SubscriptionClosed):
            await own.get()
        appending = [asyncio.create_task(session.append("x", n)) for n in range(20)]
        await asyncio.sleep(0)
        await rt.close()
        assert await asyncio.gather(*appending) == list(range(2, 22))
        for task in following:
            assert await task == list(range(1, 22))
        with pytest.raises(RuntimeClosed):
            await waiting

    run(main())


async def _all(events: aio.AsyncSubscription) -> list[int | None]:
    return [event.event_seq async for event in events]


def test_a_subscription_that_is_dropped_is_closed(store_url: str) -> None:
    async def main() -> None:
        async with aio.open(store_url) as rt:
            session = rt.session("s")
            await session.append("x")
            for _ in range(5):
                async for _ in session.subscribe(1):
                    break
            gc.collect()
            opened = rt.runtime._subscriptions
            await until(lambda: not list(opened))

    run(main())


def test_it_goes_on_in_a_second_loop_and_in_two_at_once(tmp_path: Path) -> None:
    with logmark.open(str(tmp_path)) as runtime:
        rt = aio.wrap(runtime)

        async def main() -> None:
            session = rt.session("s")
            async with session.subscribe() as events:
                seq = await session.append("x")
                assert (await events.get(SOON)).event_seq == seq

        run(main())
        run(main())

        async def many() -> None:
            await asyncio.gather(*[rt.session("s").append("x", n) for n in range(100)])

        with ThreadPoolExecutor(2) as threads:
            for done in [threads.submit(run, many()) for _ in range(2)]:
                done.result(3 * SOON)
        assert [event.event_seq for event in runtime.session("s").read()] == list(range(1, 203))
        run(rt.close())


def test_a_loop_may_be_closed_under_way() -> None:
    store = StalledStore()
    with logmark.Runtime(store) as runtime:
        rt = aio.wrap(runtime)
        loop = asyncio.new_event_loop()
        appending = loop.create_task(rt.session("s").append("x", "written"))
        following = loop.create_task(rt.session("s").subscribe(1).get())
        loop.run_until_complete(asyncio.wait_for(loop.run_in_executor(None, store.began.wait, SOON), SOON))
        loop.run_until_complete(loop.shutdown_default_executor())
        appending._log_destroy_pending = following._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()
        store.through.set()
        eventually(lambda: runtime.session("s").last_seq == 1, SOON)
        assert runtime.session("s").append("x") == 2  # the actors have not been disturbed
        del appending, following
        gc.collect()


def test_an_opening_that_is_cancelled_leaves_nothing_open(tmp_path: Path) -> None:
    async def main() -> None:
        opened: list[logmark.Runtime] = []
        original = logmark.Runtime.__init__

        @functools.wraps(original)
        def remembering(self: logmark.Runtime, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            opened.append(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(logmark.Runtime, "__init__", remembering)
            for turns in range(4):
                opening = asyncio.ensure_future(aio.open(str(tmp_path)))
                for _ in range(turns):
                    await asyncio.sleep(0)
                opening.cancel()
                done = await asyncio.gather(opening, return_exceptions=True)
                if isinstance(done[0], AsyncRuntime):
                    await done[0].close()
            await until(lambda: all(runtime._closed.is_set() for runtime in opened))

    run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_so(tmp_path: Path) -> None:
    with logmark.open(str(tmp_path)) as runtime:
        rt = aio.wrap(runtime)
        run(rt.session("s").append("x"))
        session = rt.session("s")
        child = os.fork()
        if child == 0:
            calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
                lambda: session.append("x"),
                lambda: session.append_many([("x", 1)] * 100),
                session.last_seq,
                session.page,
                session.jobs,
                lambda: session.wait_for(1),
                lambda: rt.run(print),
                lambda: session.read().__anext__(),
                lambda: session.subscribe(1).get(),
            ]
            refused = 0
            for call in calls:
                try:
                    asyncio.run(asyncio.wait_for(call(), SOON))
                except ForkedRuntime:
                    refused += 1
            os._exit(0 if refused == len(calls) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        run(session.append("x"))
        run(rt.close())
