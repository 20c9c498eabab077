"""What ``submit`` returns is a ``concurrent.futures.Future`` in every respect, though it makes its locks late."""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError

import pytest
from hypothesis import given
from hypothesis import strategies as st

import logmark
from logmark._replies import FutureReply
from logmark.protocol import AppendUncertain, WrongExpectedSeq
from logmark.storage import Appended

SOON = 20.0
ERROR = WrongExpectedSeq(session_id="s", expected_seq=1, last_seq=0)

# What may be done to a future by those who hold it (any) and by the actor (begin, then settle, once each).
STEPS: dict[str, Callable[[Future[int]], object]] = {
    "done": lambda future: future.done(),
    "running": lambda future: future.running(),
    "cancelled": lambda future: future.cancelled(),
    "cancel": lambda future: future.cancel(),
    "repr": lambda future: repr(future).split(" state=")[1],
    "result": lambda future: future.result(0),
    "exception": lambda future: future.exception(0),
    "wait": lambda future: len(concurrent.futures.wait([future], 0).done),
    "as_completed": lambda future: len(list(concurrent.futures.as_completed([future], 0))),
}


def outcome(step: Callable[[Future[int]], object], future: Future[int]) -> object:
    try:
        found = step(future)
    except (Exception, CancelledError) as error:
        return type(error)
    return type(found) if isinstance(found, Exception) else found


@given(
    st.lists(st.sampled_from([*STEPS, "callback"]), max_size=4),
    st.lists(st.sampled_from([*STEPS, "callback"]), max_size=4),
    st.lists(st.sampled_from([*STEPS, "callback"]), max_size=4),
    st.booleans(),
)
def test_every_history_is_that_of_the_standard_future(
    before: list[str], between: list[str], after: list[str], fails: bool
) -> None:
    ours: FutureReply = FutureReply()
    theirs: Future[int] = Future()
    called: dict[int, list[str]] = {id(ours): [], id(theirs): []}

    def act(steps: list[str]) -> None:
        for name in steps:
            if name == "callback":
                for future in (ours, theirs):
                    future.add_done_callback(lambda done: called[id(done)].append("called"))
            else:
                assert outcome(STEPS[name], ours) == outcome(STEPS[name], theirs), name

    act(before)
    wanted = theirs.set_running_or_notify_cancel()
    assert ours.begin() == wanted
    act(between)
    if wanted:
        ours.settle(ERROR if fails else Appended(7, 7))
        if fails:
            theirs.set_exception(ERROR)
        else:
            theirs.set_result(7)
    act(after)
    assert called[id(ours)] == called[id(theirs)]


def test_whoever_waits_while_it_is_settled_is_woken() -> None:
    """The condition may come into being at the very moment at which the answer comes."""
    chance = random.Random(7)
    for turn in range(300):
        future = FutureReply()
        start = threading.Barrier(3)
        found: list[object] = []

        def wait(future: FutureReply = future, start: threading.Barrier = start, found: list[object] = found) -> None:
            start.wait(SOON)
            found.append(future.result(SOON))

        waiters = [threading.Thread(target=wait) for _ in range(2)]
        for waiter in waiters:
            waiter.start()
        start.wait(SOON)
        for _ in range(chance.randrange(200)):
            pass
        assert future.begin()
        future.settle(Appended(turn, turn))
        for waiter in waiters:
            waiter.join(SOON)
        assert found == [turn, turn]


def test_cancelling_and_beginning_agree_on_who_was_first() -> None:
    outcomes: set[bool] = set()
    for _ in range(300):
        future = FutureReply()
        start = threading.Barrier(2)
        began: list[bool] = []

        def begin(future: FutureReply = future, start: threading.Barrier = start, began: list[bool] = began) -> None:
            start.wait(SOON)
            began.append(future.begin())

        thread = threading.Thread(target=begin)
        thread.start()
        start.wait(SOON)
        cancelled = future.cancel()
        thread.join(SOON)
        assert began == [not cancelled]
        outcomes.add(cancelled)
    assert outcomes


def test_the_standard_tools_take_it(store_url: str) -> None:
    with logmark.open(store_url) as runtime:
        session = runtime.session("s")
        futures = [session.submit("x", n) for n in range(50)]
        done, not_done = concurrent.futures.wait(futures, SOON)
        assert (len(done), len(not_done)) == (50, 0)
        assert sorted(future.result() for future in concurrent.futures.as_completed(futures, SOON)) == list(
            range(1, 51)
        )
        assert isinstance(futures[0], Future)

        async def gather() -> list[int]:
            return list(await asyncio.gather(*(asyncio.wrap_future(session.submit("x", n)) for n in range(50))))

        assert asyncio.run(gather()) == list(range(51, 101))


def test_a_settled_future_cannot_be_settled_again() -> None:
    future = FutureReply()
    assert future.begin()
    future.settle(Appended(1, 1))
    with pytest.raises(InvalidStateError):
        future.set_result(2)
    with pytest.raises(InvalidStateError):
        future.set_exception(ERROR)
    assert future.result() == 1


def test_each_holder_of_a_failed_batch_raises_an_error_of_his_own() -> None:
    error = AppendUncertain(session_id="s", reason="planned")
    futures = [FutureReply() for _ in range(3)]
    for future in futures:
        assert future.begin()
        future.settle(error)
    raised = [future.exception() for future in futures]
    assert len({id(each) for each in raised}) == 3
    assert {str(each) for each in raised} == {str(error)}


def test_an_attribute_that_is_not_there_is_said_so() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = FutureReply().no_such_thing
