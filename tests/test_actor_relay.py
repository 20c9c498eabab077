"""The callers of a commit that are waited for next wake each other, and nobody sleeps on when one of them does not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

import logmark
from logmark._replies import BlockingReply
from logmark.actors import Mailbox, Relay, SessionActor, _system
from logmark.protocol import StorageRejected
from logmark.storage import Appended
from logmark.testing import ActorHarness, encoded_event, eventually, request_of

SOON = 5.0


class Sleeper:
    """A caller who notes when it is woken, and wakes the next only when it is told to."""

    def __init__(self) -> None:
        self.answer: object = None
        self.woken = 0
        self.then: Callable[[], None] | None = None

    def begin(self) -> bool:
        return True

    def settle(self, answer: object) -> Sleeper:
        self.answer = answer
        return self

    def wake(self, then: Callable[[], None] | None = None, /) -> None:
        assert self.answer is not None
        self.woken += 1
        self.then = then


class OneWait:
    """Has each batch of several wait, until so many are there."""

    def __init__(self, timeout_s: float = 0.0) -> None:
        self.is_due = False
        self.woken_in_wait: list[int] = []
        self.sleepers: list[Sleeper] = []
        self._timeout_s = timeout_s
        self._answered = 0

    def plan(self, *, answered: int, waiting: int, commit_s: float) -> None:
        assert commit_s >= 0
        assert waiting >= 0
        self._answered, self.is_due = answered, True

    def wait(self, inbox: Mailbox) -> None:
        self.is_due = False
        self.woken_in_wait = [sleeper.woken for sleeper in self.sleepers]
        inbox.wait(self._answered, self._timeout_s)


@pytest.fixture
def linger() -> OneWait:
    return OneWait()


@pytest.fixture
def harness(linger: OneWait) -> Iterator[ActorHarness]:
    with ActorHarness(stepped=True, failures_ok=True, new_linger=lambda: linger) as made:
        made.run()
        yield made


def asleep(harness: ActorHarness, linger: OneWait, count: int = 3) -> list[Sleeper]:
    linger.sleepers = [Sleeper() for _ in range(count)]
    for sleeper in linger.sleepers:
        harness.submit(request_of(encoded_event()), sleeper)
    return linger.sleepers


def answered(harness: ActorHarness, linger: OneWait) -> list[Sleeper]:
    """Bring a batch so far that its callers are answered and the wait for them is due."""
    sleepers = asleep(harness, linger)
    assert harness._stepper is not None
    while not linger.is_due:
        assert harness._stepper.step()
    assert [sleeper.woken for sleeper in sleepers] == [1, 0, 0]
    return sleepers


# -- the relay ------------------------------------------------------------------------------------------------------


def settled(count: int) -> list[Sleeper]:
    sleepers = [Sleeper() for _ in range(count)]
    for number, sleeper in enumerate(sleepers, 1):
        sleeper.settle(Appended(number, number))
    return sleepers


def test_each_is_woken_by_the_one_before() -> None:
    first, second, third = sleepers = settled(3)
    relay = Relay(sleepers)
    assert [sleeper.woken for sleeper in sleepers] == [0, 0, 0]
    relay.advance()
    assert [sleeper.woken for sleeper in sleepers] == [1, 0, 0]
    for woken in (first, second, third):
        assert woken.then is not None
        woken.then()
    assert [sleeper.woken for sleeper in sleepers] == [1, 1, 1]


def test_who_is_left_at_the_end_is_woken_once() -> None:
    first, *_ = sleepers = settled(4)
    relay = Relay(sleepers)
    relay.advance()
    relay.finish()
    assert [sleeper.woken for sleeper in sleepers] == [1, 1, 1, 1]
    assert first.then is not None
    first.then()  # he was only slow
    relay.finish()
    assert [sleeper.woken for sleeper in sleepers] == [1, 1, 1, 1]


# -- the caller -----------------------------------------------------------------------------------------------------


def test_a_caller_wakes_the_next_before_anything_else() -> None:
    reply, woken = BlockingReply(), threading.Event()
    thread = threading.Thread(target=reply.wait)
    thread.start()
    sleeper = reply.settle(Appended(1, 1))
    assert thread.is_alive()  # settled is not woken
    sleeper.wake(woken.set)
    assert woken.wait(SOON)
    thread.join(SOON)
    assert not thread.is_alive()


def test_a_caller_with_an_error_wakes_the_next_as_well() -> None:
    reply, woken = BlockingReply(), threading.Event()
    reply.settle(StorageRejected(session_id="s", reason="on purpose")).wake(woken.set)
    with pytest.raises(StorageRejected):
        reply.wait()
    assert woken.is_set()


def test_a_caller_that_is_interrupted_when_woken_wakes_the_next() -> None:
    class Interrupted:
        """A lock behind which the signal comes."""

        def acquire(self) -> None:
            raise KeyboardInterrupt

        def release(self) -> None:
            pass

    reply, woken = BlockingReply(), threading.Event()
    reply._settled = Interrupted()  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    reply.settle(Appended(1, 1)).wake(woken.set)
    with pytest.raises(KeyboardInterrupt):
        reply.wait()
    assert woken.is_set()


# -- the session ----------------------------------------------------------------------------------------------------


def test_without_a_wait_everybody_is_woken_at_once() -> None:
    with ActorHarness(stepped=True) as harness:
        sleepers = asleep(harness, OneWait())
        harness.run()
        assert [sleeper.answer for sleeper in sleepers] == [Appended(1, 1), Appended(2, 2), Appended(3, 3)]
        assert [(sleeper.woken, sleeper.then) for sleeper in sleepers] == [(1, None)] * 3


def test_nobody_sleeps_on_behind_the_wait(harness: ActorHarness, linger: OneWait) -> None:
    """The first to be woken has been taken away by an interrupt, say, and wakes nobody."""
    sleepers = answered(harness, linger)
    harness.run()
    assert linger.woken_in_wait == [1, 0, 0]
    assert [sleeper.woken for sleeper in sleepers] == [1, 1, 1]


def test_a_wait_that_fails_leaves_nobody_asleep(harness: ActorHarness, linger: OneWait) -> None:
    sleepers = answered(harness, linger)

    def fail(inbox: Mailbox) -> None:
        linger.is_due = False
        raise ValueError("on purpose")

    linger.wait = fail  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="on purpose"):
        harness.run()
    assert [sleeper.woken for sleeper in sleepers] == [1, 1, 1]


def test_a_stop_with_the_answer_leaves_nobody_asleep(harness: ActorHarness, linger: OneWait) -> None:
    """In the turn of the answer itself there is a stop, so that no turn is left to wait in."""
    sleepers = asleep(harness, linger)
    assert harness._stepper is not None
    assert harness._stepper.step()  # handed over
    assert harness._stepper.step()  # answered by the writer
    harness.session.stop(block=False)
    harness.run()
    assert [sleeper.woken for sleeper in sleepers] == [1, 1, 1]


@pytest.mark.parametrize("gives_up", [False, True])
def test_a_failure_behind_the_answer_leaves_nobody_asleep(
    harness: ActorHarness, linger: OneWait, gives_up: bool
) -> None:
    sleepers = asleep(harness, linger)
    finish = SessionActor._finish

    def fail(self: SessionActor, error: Exception | None) -> None:
        if isinstance(error, Exception):  # of on_restarted
            raise error
        finish(self, error)
        raise ValueError("on purpose")

    assert harness._stepper is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SessionActor, "_finish", fail)
        if gives_up:
            patch.setattr(SessionActor, "on_restarted", fail)
        while not sleepers[0].woken:
            assert harness._stepper.step()
    assert harness.session.is_alive() is not gives_up
    assert [sleeper.woken for sleeper in sleepers] == [1, 1, 1]


def test_threads_that_wait_for_their_answers_wake_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers in real threads, again and again; the wait would take a minute if one of them slept on."""
    rounds, callers = 50, 8
    wakes: list[int] = []
    advance = Relay.advance

    def counted(self: Relay) -> None:
        wakes.append(threading.get_ident())
        advance(self)

    monkeypatch.setattr(Relay, "advance", counted)
    monkeypatch.setattr(_system, "RateLinger", lambda _clock: OneWait(60.0))
    with logmark.open("memory:") as runtime:
        session = runtime.session("s")
        together = threading.Barrier(callers)

        def append() -> None:
            for number in range(rounds):
                together.wait(SOON)
                session.append("note", number)

        threads = [threading.Thread(target=append) for _ in range(callers)]
        for thread in threads:
            thread.start()
        eventually(lambda: session.last_seq == rounds * callers, 20 * SOON)
        session.jobs()  # ends the last wait
        for thread in threads:
            thread.join(SOON)
            assert not thread.is_alive()
    assert len({thread.ident for thread in threads} & set(wakes)) > 1  # and not the writer alone
