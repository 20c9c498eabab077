"""Callers that are on their way may be waited for before a commit: only where it pays, and at nobody's expense."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from pykka._envelope import Envelope

import logmark
from logmark import storage
from logmark.actors import Mailbox, RateLinger, SessionActor, _system
from logmark.actors.messages import CheckWriter, Observed, Send
from logmark.protocol import RuntimeClosed, StorageRejected
from logmark.storage import BatchResult, MemoryEventStore, SessionBatch, may_put_off
from logmark.testing import ActorHarness, ManualClock, MockWriter, encoded_event, eventually

SOON = 5.0
COMMIT_S = 0.004


class AlwaysLinger:
    """Has every batch wait, for as long as is said."""

    def __init__(self, timeout_s: float = 0.0) -> None:
        self.is_due = False
        self.planned: list[tuple[int, int]] = []
        self.waits = 0
        self._answered = 0
        self._timeout_s = timeout_s

    def plan(self, *, answered: int, waiting: int, commit_s: float) -> None:
        assert commit_s >= 0
        self.planned.append((answered, waiting))
        self._answered = answered
        self.is_due = True

    def wait(self, inbox: Mailbox) -> None:
        self.is_due = False
        self.waits += 1
        inbox.wait(self._answered, self._timeout_s)


def sizes(writer: MockWriter) -> list[int]:
    return [sum(len(request.events) for request in batch.requests) for batch in writer.asked]


@pytest.fixture
def linger() -> AlwaysLinger:
    return AlwaysLinger()


@pytest.fixture
def harness(linger: AlwaysLinger) -> Iterator[ActorHarness]:
    with ActorHarness(stepped=True, failures_ok=True, new_linger=lambda: linger) as made:
        yield made


def step(harness: ActorHarness) -> None:
    assert harness._stepper is not None
    assert harness._stepper.step()


def up_to_the_wait(harness: ActorHarness) -> list[object]:
    """Have one batch of two answered while one append waits; return the futures of all."""
    harness.run()
    futures: list[object] = [harness.append(id="a"), harness.append(id="b")]
    step(harness)  # the session hands both over
    futures.append(harness.append(id="c"))
    while not futures[0].done():  # type: ignore[attr-defined]
        step(harness)
    return futures


# -- the session ----------------------------------------------------------------------------------------------------


def test_who_was_answered_is_in_the_next_batch_with_those_who_waited(
    harness: ActorHarness, linger: AlwaysLinger
) -> None:
    _, _, waiting = up_to_the_wait(harness)
    assert sizes(harness.writer) == [2]  # the third is not with the writer yet
    assert linger.planned == [(2, 1)]
    back = [harness.append(id="a2"), harness.append(id="b2")]
    harness.run()
    assert sizes(harness.writer) == [2, 3]
    assert [each.result(0) for each in (waiting, *back)] == [3, 4, 5]  # type: ignore[attr-defined]


def test_when_nobody_comes_back_those_who_waited_go_on(harness: ActorHarness, linger: AlwaysLinger) -> None:
    _, _, waiting = up_to_the_wait(harness)
    harness.run()
    assert sizes(harness.writer) == [2, 1]
    assert waiting.result(0) == 3  # type: ignore[attr-defined]
    waits = linger.waits
    assert harness.run() == 0  # nothing is due for ever
    assert linger.waits == waits


def test_a_session_of_one_caller_has_nothing_that_waits() -> None:
    made: list[AlwaysLinger] = []

    def new() -> AlwaysLinger:
        made.append(AlwaysLinger())
        return made[-1]

    with ActorHarness(stepped=True, new_linger=new) as harness:
        for _ in range(3):
            harness.append()
            harness.run()
        assert made == []
        harness.append()
        harness.append()
        harness.run()
        assert len(made) == 1


def test_a_stop_during_the_wait_answers_who_waits(harness: ActorHarness) -> None:
    first, second, waiting = up_to_the_wait(harness)
    harness.send("session.bye")
    harness.stop()
    assert [first.result(0), second.result(0)] == [1, 2]  # type: ignore[attr-defined]
    with pytest.raises(RuntimeClosed):
        waiting.result(0)  # type: ignore[attr-defined]
    assert [event.id for event in harness.log] == ["a", "b"]
    assert harness.subscriber.types[-1:] == ["session.bye"]
    assert harness.gate.events == 0


def test_a_stop_that_comes_with_the_answer_waits_for_nobody(harness: ActorHarness) -> None:
    harness.run()
    future = harness.append()
    step(harness)
    waiting = harness.append()
    harness.send("session.bye")
    step(harness)  # the writer has answered, and the session has not heard it yet
    assert not future.done()
    harness.stop()
    assert future.result(0) == 1
    with pytest.raises(RuntimeClosed):
        waiting.result(0)
    assert harness.subscriber.types[-1:] == ["session.bye"]


@pytest.mark.parametrize("method", ["on_receive", "on_drained", "_hand_over", "_next_batch"])
def test_a_failure_after_the_wait_answers_who_waits(
    harness: ActorHarness, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    _, _, waiting = up_to_the_wait(harness)
    late = harness.append(id="late")
    with monkeypatch.context() as patch:

        def fail(self: SessionActor, *_: object) -> None:
            patch.undo()
            raise ValueError("on purpose")

        patch.setattr(SessionActor, method, fail)
        harness.run()
        harness.advance(1.0)
    for future in (waiting, late):
        assert future.done()  # type: ignore[attr-defined]
    assert harness.gate.events == 0
    assert harness.append(id="after").done() is False
    harness.run()
    assert harness.log[-1].id == "after"


def test_a_failing_plan_loses_no_answer(harness: ActorHarness, linger: AlwaysLinger) -> None:
    def fail(**_: object) -> None:
        del linger.plan
        raise ValueError("on purpose")

    linger.plan = fail  # type: ignore[method-assign]
    futures = [harness.append(), harness.append()]
    harness.run()
    assert [future.result(0) for future in futures] == [1, 2]
    again = [harness.append(), harness.append()]
    harness.run()
    assert [future.result(0) for future in again] == [3, 4]


def test_nothing_is_waited_for_behind_a_failure(linger: AlwaysLinger) -> None:
    """Who hears of one may take back what waits; it is not to become part of a larger batch."""
    store = MemoryEventStore()
    with ActorHarness(stepped=True, store=store, new_linger=lambda: linger) as harness:
        harness.writer.fail_next(StorageRejected(session_id="session", reason="on purpose"))
        futures = [harness.append(), harness.append()]
        harness.run()
        for future in futures:
            with pytest.raises(StorageRejected):
                future.result(0)
        assert linger.planned == []


def test_questions_are_answered_in_the_turn_that_was_waited_for(harness: ActorHarness) -> None:
    up_to_the_wait(harness)
    marks = harness.marks()
    harness.run()
    assert marks.result(0) == []


class SlowStore(MemoryEventStore):
    """Holds its first commit."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.go_on = threading.Event()

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        self.batches.append(len(batches[0].requests))
        assert self.go_on.wait(SOON)
        return super().append(batches)


def test_who_is_waited_for_has_his_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer's thread puts answers off until the next batch is on its way; not so if they are to be in it."""
    monkeypatch.setattr(_system, "RateLinger", lambda _clock: AlwaysLinger(100 * SOON))
    store = SlowStore()
    with logmark.Runtime(store) as runtime, ThreadPoolExecutor(1) as pool:
        session = runtime.session("s")
        first = pool.submit(session.append, "note", 1)
        eventually(lambda: store.batches == [1], SOON)
        others = [session.submit("note", n) for n in (2, 3)]
        store.go_on.set()
        assert first.result(SOON) == 1
        assert [other.done() for other in others] == [False, False]
        assert pool.submit(session.append, "note", 4).result(SOON) == 4
        assert [other.result(SOON) for other in others] == [2, 3]
        assert store.batches == [1, 3]
        session.jobs()  # ends the wait for those who do not come back


# -- the inbox ------------------------------------------------------------------------------------------------------


def waiting_thread(mailbox: Mailbox, messages: int) -> threading.Thread:
    thread = threading.Thread(target=mailbox.wait, args=(messages, 4 * SOON), daemon=True)
    thread.start()
    eventually(lambda: mailbox._bell is not None or not thread.is_alive(), SOON)
    return thread


def test_the_wait_ends_with_the_last_one_who_was_waited_for() -> None:
    message = Send(
        encoded_event("session.ping").stamped("session", None)
    )  # as an append, one of those that are waited for
    mailbox = Mailbox()
    mailbox.put(Envelope(message))
    thread = waiting_thread(mailbox, 3)
    mailbox.put(Envelope(message))
    assert thread.is_alive()
    mailbox.put(Envelope(message))
    thread.join(SOON)
    assert not thread.is_alive()
    mailbox.put(Envelope(message))  # nobody waits any more
    assert len(mailbox.take()) == 4


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("message", [CheckWriter(), Observed(7)])
def test_anything_but_an_append_ends_the_wait_at_once(message: object, before: bool) -> None:
    mailbox = Mailbox()
    if before:
        mailbox.put(Envelope(message))
    thread = waiting_thread(mailbox, 100)
    if not before:
        mailbox.put(Envelope(message))
    thread.join(SOON)
    assert not thread.is_alive()
    assert mailbox._bell is None


def test_a_wait_in_which_nobody_comes_ends_in_time() -> None:
    mailbox = Mailbox()
    mailbox.wait(1, 0.001)
    assert mailbox._bell is None
    assert mailbox.empty()


# -- whether it pays ------------------------------------------------------------------------------------------------


class Disk:
    """Commits that take their time, and callers of whom so many come back during a wait."""

    def __init__(self, callers: int, *, back: float, commit_s: float = COMMIT_S) -> None:
        self.clock = ManualClock()
        self.linger = RateLinger(self.clock)
        self.callers = callers
        self.back = back
        self.commit_s = commit_s
        self.waits: list[bool] = []

    def run(self, commits: int) -> float:
        """Return the share of commits that were waited for."""
        batch, self.waits = self.callers // 2, []
        for _ in range(commits):
            self.clock.advance(self.commit_s)
            waiting = self.callers - batch
            self.linger.plan(answered=batch, waiting=waiting, commit_s=self.commit_s)
            self.waits.append(self.linger.is_due)
            if self.linger.is_due:
                self.clock.advance(self.commit_s / 4)
                self.linger.is_due = False
                batch = waiting + int(batch * self.back)
            else:
                batch = waiting or 1  # the first of them who is back
        return sum(self.waits) / commits


@pytest.fixture
def writers_thread() -> Iterator[None]:
    """Run the test in a thread that may put work off, as a writer's does."""
    may_put_off()
    yield
    storage._patience._thread.put_off = None


@pytest.mark.usefixtures("writers_thread")
@pytest.mark.parametrize(("back", "share"), [(1.0, (0.85, 1.0)), (0.0, (0.0, 0.15))])
def test_it_is_done_where_more_appends_are_answered_for_it(back: float, share: tuple[float, float]) -> None:
    disk = Disk(16, back=back)
    disk.run(500)  # finds out
    least, most = share
    assert least <= disk.run(3000) <= most
    disk.back = 1.0 - back  # the callers have changed
    disk.run(3000)
    assert 1.0 - most <= disk.run(3000) <= 1.0 - least


class Inbox(Mailbox):
    """So many come during a wait, however many are wanted."""

    def __init__(self, come: int) -> None:
        super().__init__()
        self.come = come
        self.wanted: list[int] = []

    def wait(self, messages: int, timeout_s: float) -> int:
        assert timeout_s == COMMIT_S
        self.wanted.append(messages)
        return min(messages, self.come)


@pytest.mark.usefixtures("writers_thread")
def test_who_was_not_back_in_time_is_not_waited_for_again_but_now_and_then() -> None:
    """A caller who has more to do between two appends does not keep the others for the time of a commit, each time."""
    linger, inbox = RateLinger(ManualClock()), Inbox(come=6)
    for commits_left in range(64, 0, -1):
        linger._answered, linger._commit_s, linger._commits_left = 8, COMMIT_S, commits_left
        linger.wait(inbox)
    assert inbox.wanted.count(8) == 4
    assert set(inbox.wanted) == {6, 8}
    inbox.come = 8  # they are back
    inbox.wanted.clear()
    for commits_left in range(64, 0, -1):
        linger._answered, linger._commit_s, linger._commits_left = 8, COMMIT_S, commits_left
        linger.wait(inbox)
    assert inbox.wanted == [8] * 64


@pytest.mark.usefixtures("writers_thread")
def test_a_lone_caller_is_never_waited_for() -> None:
    disk = Disk(16, back=1.0)
    disk.run(1000)
    for _ in range(100):
        disk.linger.plan(answered=1, waiting=0, commit_s=COMMIT_S)
        assert not disk.linger.is_due


@pytest.mark.usefixtures("writers_thread")
def test_commits_that_are_quicker_than_waking_up_are_not_waited_for() -> None:
    assert Disk(16, back=1.0, commit_s=0.00009).run(2000) == 0
    assert Disk(16, back=1.0, commit_s=0.00011).run(2000) > 0


def test_only_a_writers_thread_waits() -> None:
    assert Disk(16, back=1.0).run(2000) == 0


@pytest.mark.usefixtures("writers_thread")
def test_callers_who_wait_for_no_answer_fill_their_batches_by_themselves() -> None:
    disk = Disk(16, back=1.0)
    disk.run(1000)
    disk.linger.plan(answered=10, waiting=100, commit_s=COMMIT_S)
    assert not disk.linger.is_due


@pytest.mark.usefixtures("writers_thread")
def test_pauses_of_the_callers_teach_nothing() -> None:
    disk = Disk(16, back=1.0)
    for _ in range(500):
        disk.run(1)
        disk.clock.advance(60.0)
    assert disk.linger._rates == {}
