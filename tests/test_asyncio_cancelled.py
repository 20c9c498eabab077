"""Cancelled in an event loop: nothing is lost, and who is cancelled knows what became of his append."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

import logmark
from logmark import Limits, aio
from logmark.aio import cancelled_append
from logmark.errors import (
    AppendRejected,
    InvalidEvent,
    Overloaded,
    RuntimeClosed,
)
from logmark.protocol import RawEnvelope
from logmark.storage import BatchResult, MemoryEventStore, SessionBatch

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


async def until(predicate: Callable[[], object]) -> None:
    """Wait in the loop for what nobody announces."""
    async with asyncio.timeout(SOON):
        while not predicate():  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.002)


async def take(events: aio.AsyncSubscription, count: int) -> list[int | None]:
    return [(await events.get(SOON)).event_seq for _ in range(count)]


# -- cancelled -------------------------------------------------------------------------------------------------------


def test_a_cancelled_append_says_whether_it_was_written() -> None:
    async def main() -> None:
        store = StalledStore()
        runtime = logmark.Runtime(store)
        async with aio.wrap(runtime) as rt:
            session = rt.session("s")
            first = asyncio.create_task(session.append("x", "first", id="one"))
            await until(store.began.is_set)
            second = asyncio.create_task(session.append_many([("x", "a"), ("x", "b")]))
            third = asyncio.create_task(session.append("x", "third"))
            await asyncio.sleep(0)
            first.cancel()
            second.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await first
            with_the_disk = cancelled_append(caught.value)
            assert type(caught.value) is asyncio.CancelledError  # which asyncio.timeout looks at
            assert with_the_disk is not None
            assert (with_the_disk.written, with_the_disk.event_ids) == (None, ("one",))
            assert "has not answered" in caught.value.__notes__[0]
            with pytest.raises(asyncio.CancelledError) as caught:
                await second
            taken_back = cancelled_append(caught.value)
            assert taken_back is not None
            assert (taken_back.written, len(taken_back.event_ids)) == (False, 2)
            assert await taken_back.outcome() is None
            store.through.set()
            assert await with_the_disk.outcome() == (1, 1)
            assert with_the_disk.written is True
            assert await third == 2
            assert [event.payload async for event in session.read()] == ["first", "third"]
        runtime.close()

    run(main())


def test_a_cancelled_append_that_the_disk_refuses_was_not_written() -> None:
    class Full(StalledStore):
        def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
            results = super().append(batches)
            error = AppendRejected("no space")
            return [
                BatchResult(session_id=each.session_id, answers=(error,), last_seq_before=0, last_seq=0)
                for each in results
            ]

    async def main() -> None:
        store = Full()
        runtime = logmark.Runtime(store)
        async with aio.wrap(runtime) as rt:
            task = asyncio.create_task(rt.session("s").append("x"))
            await until(store.began.is_set)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            append = cancelled_append(caught.value)
            assert append is not None
            store.through.set()
            with pytest.raises(AppendRejected, match="no space"):
                await append.outcome()
            assert append.written is False
        runtime.close()

    run(main())


@pytest.mark.parametrize("how", ["timeout", "wait_for", "group"])
def test_timeouts_and_groups_pass_the_word_on(how: str) -> None:
    async def main() -> None:
        store = StalledStore()
        runtime = logmark.Runtime(store)
        async with aio.wrap(runtime) as rt:
            session = rt.session("s")
            if how == "timeout":
                with pytest.raises(TimeoutError) as caught:
                    async with asyncio.timeout(0.05):
                        await session.append("x")
                found = cancelled_append(caught.value)
            elif how == "wait_for":
                with pytest.raises(TimeoutError) as caught:
                    await asyncio.wait_for(session.append("x"), 0.05)
                found = cancelled_append(caught.value)
            else:
                appending = None
                with pytest.raises(ExceptionGroup):  # noqa: PT012 - one of both tasks raises
                    async with asyncio.TaskGroup() as group:
                        appending = group.create_task(session.append("x"))
                        await until(store.began.is_set)
                        group.create_task(_raise())
                assert appending is not None
                with pytest.raises(asyncio.CancelledError) as cancelled:
                    await appending
                found = cancelled_append(cancelled.value)
            assert found is not None
            assert found.written is None
            store.through.set()
            assert await found.outcome() == (1, 1)
        runtime.close()

    run(main())


async def _raise() -> None:
    raise ValueError("a sibling")


def test_an_error_of_something_else_tells_of_no_append() -> None:
    assert cancelled_append(ValueError("x")) is None
    error = ValueError("its own context")
    error.__context__ = error
    assert cancelled_append(error) is None


@pytest.mark.parametrize("seed", range(3))
def test_cancelling_at_any_moment_loses_and_doubles_nothing(seed: int, tmp_path: Path) -> None:
    async def main() -> None:
        async with aio.open(str(tmp_path)) as rt:
            session = rt.session("s")
            told: dict[int, int] = {}
            unknown: list[tuple[int, aio.CancelledAppend]] = []
            refused: set[int] = set()
            tasks: list[asyncio.Task[None]] = []

            async def one(n: int) -> None:
                try:
                    told[n] = await session.append("x", n)
                except asyncio.CancelledError as error:
                    append = cancelled_append(error)
                    if append is None or append.written is False:
                        refused.add(n)
                    else:
                        unknown.append((n, append))

            for n in range(300):
                task = asyncio.create_task(one(n))
                tasks.append(task)
                for _ in range((n * 7 + seed) % 5):
                    await asyncio.sleep(0)
                if n % 3 == seed:
                    task.cancel()
            await asyncio.wait(tasks)
            refused.update(n for n, task in enumerate(tasks) if task.cancelled())  # before it had begun
            for n, append in unknown:
                outcome = await append.outcome()
                assert outcome is not None
                told[n] = outcome[0]
            found = {event.payload: event.event_seq async for event in session.read()}
            assert found == told
            assert not refused & set(found)

    run(main())


def test_cancelling_who_waits_for_an_event_loses_none(store_url: str) -> None:
    async def main() -> None:
        async with aio.open(store_url) as rt:
            session = rt.session("s")
            await session.append_many([("x", n) for n in range(600)])
            seen: list[int | None] = []
            async with session.subscribe(1) as events:
                for turn in range(2000):
                    getting = asyncio.create_task(events.get())
                    for _ in range(turn % 4):
                        await asyncio.sleep(0)
                    getting.cancel()
                    done = await asyncio.gather(getting, return_exceptions=True)
                    seen += [each.event_seq for each in done if isinstance(each, logmark.Envelope)]
                seen += await take(events, 600 - len(seen))
            assert seen == list(range(1, 601))
            reading = session.read()
            first = asyncio.create_task(reading.__anext__())
            await asyncio.sleep(0)
            first.cancel()
            assert [event.event_seq async for event in reading] == list(range(1, 601))

    run(main())


# -- a full inbox ----------------------------------------------------------------------------------------------------


def test_a_full_inbox_makes_wait_in_order_and_without_threads() -> None:
    async def main() -> None:
        store = StalledStore()
        runtime = logmark.Runtime(store, limits=Limits(inbox_events_max=3))
        async with aio.wrap(runtime) as rt:
            session = rt.session("s")
            before = threading.active_count()
            tasks = [asyncio.create_task(session.append("x", n)) for n in range(200)]
            await until(store.began.is_set)
            await asyncio.sleep(0)
            assert threading.active_count() <= before + 4  # the actors', whatever waits
            tasks[50].cancel()
            store.through.set()
            with pytest.raises(asyncio.CancelledError) as caught:
                await tasks.pop(50)
            gone = cancelled_append(caught.value)
            assert gone is not None
            assert gone.written is False
            numbers = await asyncio.gather(*tasks)
            assert numbers == list(range(1, 200))
            assert [event.payload async for event in session.read()] == [n for n in range(200) if n != 50]
        runtime.close()

    run(main())


def test_who_comes_late_does_not_overtake_those_who_wait() -> None:
    async def main() -> None:
        store = StalledStore()
        runtime = logmark.Runtime(store, limits=Limits(inbox_events_max=2))
        async with aio.wrap(runtime) as rt:
            session = rt.session("s")
            first = asyncio.create_task(session.append("x", "first"))
            await until(store.began.is_set)
            both = asyncio.create_task(session.append_many([("x", "needs"), ("x", "two places")]))
            await asyncio.sleep(0)
            late = asyncio.create_task(session.append("x", "would fit"))
            await asyncio.sleep(0)
            store.through.set()
            assert (await first, await both, await late) == (1, (2, 3), 4)
        runtime.close()

    run(main())


def test_a_block_that_a_cancelled_reader_left_under_way_is_waited_for() -> None:
    through, began = threading.Event(), threading.Event()

    class Slow(MemoryEventStore):
        def read(
            self, session_id: str, *, from_seq: int = 1, through_seq: int | None = None, halted_ok: bool = False
        ) -> Iterator[RawEnvelope]:
            events = super().read(session_id, from_seq=from_seq, through_seq=through_seq, halted_ok=halted_ok)
            began.set()
            return (event for event in events if through.wait(SOON))

    async def main() -> None:
        runtime = logmark.Runtime(Slow())
        async with aio.wrap(runtime) as rt:
            session = rt.session("s")
            await session.append_many([("x", n) for n in range(20)])
            reading = session.read()
            first = asyncio.create_task(reading.__anext__())
            await until(began.is_set)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            second = asyncio.create_task(reading.__anext__())
            await asyncio.sleep(0.05)
            through.set()
            assert (await second).event_seq == 1
            assert [event.event_seq async for event in reading] == list(range(2, 21))
        runtime.close()

    run(main())


def test_a_full_inbox_refuses_after_the_deadline_and_at_the_end() -> None:
    async def main() -> None:
        store = StalledStore()
        limits = Limits(inbox_events_max=2, inbox_wait_s=0.05, close_wait_s=0.2)
        runtime = logmark.Runtime(store, limits=limits)
        async with aio.wrap(runtime) as rt:
            session = rt.session("s")
            accepted = [asyncio.create_task(session.append("x", n)) for n in range(2)]
            await until(store.began.is_set)
            with pytest.raises(Overloaded) as caught:
                await session.append("x", "late")
            assert (caught.value.session_id, caught.value.waited_s, caught.value.waiting_events) == ("s", 0.05, 2)
            with pytest.raises(InvalidEvent):  # what can never fit does not wait
                await session.append_many([("x", n) for n in range(3)])
            store.through.set()
            assert sorted(await asyncio.gather(*accepted)) == [1, 2]
        runtime.close()

        stalled = StalledStore()
        closing = logmark.Runtime(stalled, limits=Limits(inbox_events_max=1))
        async with aio.wrap(closing) as rt:
            session = rt.session("s")
            first = asyncio.create_task(session.append("x"))
            await until(stalled.began.is_set)
            second = asyncio.create_task(session.append("x"))
            await asyncio.sleep(0)
            end = asyncio.create_task(asyncio.to_thread(closing.close))
            with pytest.raises(RuntimeClosed):
                await second
            stalled.through.set()
            assert await first == 1
            await end

    run(main())
