"""Subscriptions: from any number, history and live without a seam, each event once, until somebody ends it."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark import Envelope, Limits, Subscription
from logmark.errors import InvalidArgument, LogCorrupt, SessionHalted, SubscriptionClosed, WaitTimeout
from logmark.storage import BatchResult, MemoryEventStore, SessionBatch
from logmark.testing import CapturedLogs, eventually

SOON = 10.0


def take(subscription: Subscription, count: int) -> list[int | None]:
    return [subscription.get(SOON).event_seq for _ in range(count)]


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def joined(thread: threading.Thread) -> bool:
    thread.join(SOON)
    return not thread.is_alive()


# -- where it starts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 1, 2, 5, 6])
def test_from_a_number_on(runtime: logmark.Runtime, start: int) -> None:
    session = runtime.session("s")
    session.append_many([("x", n) for n in range(5)])
    with session.subscribe(start) as subscription:
        session.append_many([("x", n) for n in range(5)])
        first = max(start, 1)
        assert take(subscription, 11 - first) == list(range(first, 11))
        with pytest.raises(WaitTimeout):
            subscription.get(timeout=0.01)


def test_live_only_starts_after_what_is_there(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    session.append_many([("x", n) for n in range(5)])
    with session.subscribe() as subscription, session.subscribe(from_seq=None) as other:
        with pytest.raises(WaitTimeout):
            subscription.get(timeout=0)
        session.append("x")
        assert take(subscription, 1) == take(other, 1) == [6]


def test_an_appended_event_is_never_shown_to_who_subscribes_after_it(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    for seq in range(1, 100):
        assert session.append("x") == seq
        with session.subscribe() as subscription:
            assert subscription.next_seq == seq + 1
            with pytest.raises(WaitTimeout):
                subscription.get(timeout=0)


def test_going_on_after_a_reconnect(store_url: str) -> None:
    with logmark.open(store_url) as runtime:
        session = runtime.session("s")
        seen: list[int | None] = []
        next_seq = 1
        for _ in range(10):
            session.append_many([("x", n) for n in range(7)])
            with session.subscribe(next_seq) as subscription:
                seen += take(subscription, 5)
                session.append("x")
                next_seq = subscription.next_seq
        with session.subscribe(next_seq) as subscription:
            seen += take(subscription, 80 - len(seen))
        assert seen == list(range(1, 81))


def test_what_a_subscriber_gets_is_what_is_stored_row_44(runtime: logmark.Runtime) -> None:
    """Row 44, row 53: with its number, never before it is in the log, and equal to what a reader finds there."""
    session = runtime.session("s")
    seen: list[Envelope] = []
    with session.subscribe(1) as subscription:

        def follow() -> None:
            for event in subscription:
                assert event.event_seq is not None
                assert session.last_seq >= event.event_seq
                assert next(session.read(event.event_seq)) == event
                seen.append(event)
                if len(seen) == 100:
                    return

        follower = in_thread(follow)
        for n in range(100):
            session.submit("x", {"n": n}, job_id=f"j{n % 3}", source=n, stream_seq=n)
        assert joined(follower)
    assert seen == list(session.read())
    assert [(event.event_seq, event.payload["n"]) for event in seen] == [(n + 1, n) for n in range(100)]


# -- the seam --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue_events", [1, 4, 4096])
def test_catch_up_then_live_while_two_writers_append_row_60(store_url: str, queue_events: int) -> None:
    """Row 60: subscribe at many moments while others append; each subscriber gets n, n + 1, … and nothing else."""
    with logmark.open(store_url, limits=Limits(subscriber_events_max=queue_events)) as runtime:
        session = runtime.session("s")
        total, stop = 600, threading.Event()

        def write() -> None:
            for n in range(total // 2):
                session.submit("x", n)

        writers = [in_thread(write) for _ in range(2)]
        subscriptions: list[tuple[int, Subscription]] = []
        while not stop.is_set() and len(subscriptions) < 20:
            start = session.last_seq // 2 + 1
            subscriptions.append((start, session.subscribe(start)))
            if session.last_seq == total:
                stop.set()
        assert all(map(joined, writers))
        for start, subscription in subscriptions:
            with subscription:
                assert take(subscription, total + 1 - start) == list(range(start, total + 1))
                with pytest.raises(WaitTimeout):
                    subscription.get(timeout=0)


class LateAnswer(MemoryEventStore):
    """A store that has written, and is read by others, for a while before it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()
        self.through = threading.Event()

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        results = super().append(batches)
        self.written.set()
        assert self.through.wait(SOON)
        return results


def test_what_was_read_from_the_log_is_not_shown_again_live_row_60() -> None:
    """Row 60: the broadcast of a batch comes after a subscriber has found some of it, or all, in the log."""
    store = LateAnswer()
    with logmark.Runtime(store) as runtime:
        session = runtime.session("s")
        store.through.set()
        session.append("x", 0)
        store.written.clear()
        store.through.clear()
        for n in range(1, 6):
            session.submit("x", n)
        assert store.written.wait(SOON)
        with session.subscribe(1) as whole, session.subscribe(2) as part, session.subscribe() as live:
            found = session.last_seq  # at least one of the five is in the log, and none was shown
            assert found > 1
            assert take(whole, found) == list(range(1, found + 1))
            assert take(part, 1) == [2]
            store.through.set()
            session.append("x", 6)
            assert take(whole, 7 - found) == list(range(found + 1, 8))
            assert take(part, 5) == list(range(3, 8))
            assert take(live, 7 - found) == list(range(found + 1, 8))
            for subscription in (whole, part, live):
                with pytest.raises(WaitTimeout):
                    subscription.get(timeout=0.01)


def test_many_subscribers_get_the_same(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    subscriptions = [session.subscribe(1) for _ in range(100)]
    for n in range(20):
        session.submit("x", n)
    for subscription in subscriptions:
        assert take(subscription, 20) == list(range(1, 21))
        subscription.close()


def test_two_threads_share_what_one_subscription_gets(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    found: list[list[int]] = [[], []]
    with session.subscribe(1) as subscription:

        def follow(mine: list[int]) -> None:
            mine.extend(event.event_seq or 0 for event in subscription)

        followers = [in_thread(functools.partial(follow, mine)) for mine in found]
        for n in range(200):
            session.submit("x", n)
        eventually(lambda: len(found[0]) + len(found[1]) == 200, SOON)
    assert all(map(joined, followers))
    assert sorted(found[0] + found[1]) == list(range(1, 201))
    assert all(mine == sorted(mine) for mine in found)


# -- what it shows ---------------------------------------------------------------------------------------------------


def test_a_job_filter_holds_for_history_and_live(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    jobs = itertools.cycle(["a", "b", None])
    session.append_many([Envelope(type="x", job_id=next(jobs)) for _ in range(9)])
    with session.subscribe(2, job_id="a") as subscription, session.job("b").subscribe() as live:
        session.append_many([Envelope(type="x", job_id=next(jobs)) for _ in range(9)])
        assert take(subscription, 5) == [4, 7, 10, 13, 16]
        assert take(live, 3) == [11, 14, 17]
        for each in (subscription, live):
            with pytest.raises(WaitTimeout):
                each.get(timeout=0.01)


def test_controls_keep_their_place_among_the_events(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    with session.subscribe(1, control=True) as both, session.subscribe(1) as events:
        for n in range(50):
            session.send("job.accepted", n, job_id=f"j{n}")
            session.submit("job.event", n, job_id=f"j{n}")
            session.send("session.ping", n)
        shown = [both.get(SOON) for _ in range(150)]
        assert take(events, 50) == list(range(1, 51))
    assert [(each.type, each.payload) for each in shown] == [
        (type_, n) for n in range(50) for type_ in ("job.accepted", "job.event", "session.ping")
    ]
    assert [each.event_seq for each in shown] == [seq for n in range(1, 51) for seq in (None, n, None)]


def test_controls_of_a_job_go_to_its_followers_and_those_of_no_job_to_all(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    with session.subscribe(1, "a", control=True) as of_a, session.job("b").subscribe(1, control=True) as of_b:
        for n, job_id in enumerate(["b", "a", None, "b", "a"]):
            session.send("job.accepted" if job_id else "session.ping", n, job_id=job_id)
            session.append("job.event", n, job_id=job_id)
        assert [(each.event_seq, each.payload) for each in (of_a.get(SOON) for _ in range(5))] == [
            (None, 1),
            (2, 1),
            (None, 2),
            (None, 4),
            (5, 4),
        ]
        assert [of_b.get(SOON).payload for _ in range(5)] == [0, 0, 2, 3, 3]


def test_controls_reach_who_has_yet_to_read_the_history(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    session.append_many([("x", n) for n in range(100)])
    with session.subscribe(1, control=True) as subscription:
        session.send("session.ping")
        session.append("x")
        shown = [subscription.get(SOON).event_seq for _ in range(102)]
    assert shown == [*range(1, 101), None, 101]


def test_a_reservation_is_no_gap_for_a_subscriber(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    with session.subscribe() as live, session.subscribe(1) as whole:
        session.append("x")
        runtime.store.reserve("s", 41)
        session.append("x")
        runtime.store.reserve("s", 50)
        session.append_many([("x", 1), ("x", 2)])
        for subscription in (live, whole):
            assert take(subscription, 4) == [1, 42, 51, 52]
            assert subscription.lag == 0
    with session.subscribe(20) as inside:
        assert take(inside, 3) == [42, 51, 52]


def test_a_follower_may_append_to_what_it_follows(runtime: logmark.Runtime) -> None:
    """As an agent does that answers what it reads, in the thread that reads it."""
    session = runtime.session("s")
    session.append("ping", 0)
    with session.subscribe(1) as subscription:
        for event in subscription:
            assert session.append("ping", event.payload + 1) == (event.event_seq or 0) + 1
            if event.payload == 50:
                break
        for event in subscription:  # an iteration can be taken up again
            assert event.payload == 51
            break
    assert [event.payload for event in session.read()] == list(range(52))


# -- waiting ---------------------------------------------------------------------------------------------------------


def test_a_timeout_loses_nothing(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    with session.subscribe() as subscription:
        for seq in range(1, 20):
            for timeout in (0, -1, 0.001):
                with pytest.raises(TimeoutError) as caught:
                    subscription.get(timeout=timeout)
                assert isinstance(caught.value, WaitTimeout)
                assert caught.value.session_id == "s"
            session.submit("x")
            assert take(subscription, 1) == [seq]


def test_what_is_there_needs_no_waiting(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    session.append_many([("x", n) for n in range(10)])
    with session.subscribe(1) as subscription:
        assert [subscription.get(timeout=0).event_seq for _ in range(10)] == list(range(1, 11))
        session.append("x")
        assert subscription.get(timeout=SOON).event_seq == 11


def test_a_timeout_that_is_none_is_named(runtime: logmark.Runtime) -> None:
    with runtime.session("s").subscribe() as subscription:
        wrong: list[Any] = ["1", float("nan"), True, [1]]
        for timeout in wrong:
            with pytest.raises(InvalidArgument, match="timeout"):
                subscription.get(timeout=timeout)
        runtime.session("s").append("x")
        assert subscription.get(timeout=float("inf")).event_seq == 1


def test_lag_is_how_far_the_log_is_ahead(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    session.append_many([("x", n) for n in range(5)])
    with session.subscribe(1) as subscription, session.subscribe() as live:
        assert (subscription.lag, live.lag) == (5, 0)
        assert (subscription.next_seq, live.next_seq) == (1, 6)
        take(subscription, 2)
        assert (subscription.lag, subscription.next_seq) == (3, 3)
        session.append("x")
        eventually(lambda: (subscription.lag, live.lag) == (4, 1), SOON)
        assert repr(subscription) == "<Subscription 's' next_seq=3 lag=4>"
        take(subscription, 4)
        assert subscription.lag == 0
    assert repr(subscription) == "<Subscription 's' closed>"


# -- the end ---------------------------------------------------------------------------------------------------------


def test_close_ends_a_waiting_iteration_in_another_thread(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    session.append("x")
    subscription = session.subscribe(1)
    seen: list[int | None] = []
    first = threading.Event()

    def follow() -> None:
        for event in subscription:
            seen.append(event.event_seq)
            first.set()

    follower = in_thread(follow)
    assert first.wait(SOON)
    subscription.close()
    assert joined(follower)
    assert seen == [1]


def test_close_ends_an_iteration_in_the_middle_of_the_history(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    session.append_many([("x", n) for n in range(1000)])
    subscription = session.subscribe(1)
    assert take(subscription, 3) == [1, 2, 3]
    subscription.close()
    assert list(subscription) == []
    for _ in range(2):
        with pytest.raises(SubscriptionClosed):
            subscription.get(timeout=0)
        with pytest.raises(StopIteration):
            next(subscription)
        subscription.close()
    assert session.append("x") == 1001


def test_close_ends_a_waiting_get(runtime: logmark.Runtime) -> None:
    subscription = runtime.session("s").subscribe()
    errors: list[Exception] = []

    def wait() -> None:
        try:
            subscription.get()
        except SubscriptionClosed as error:
            errors.append(error)

    waiter = in_thread(wait)
    subscription.close()
    assert joined(waiter)
    assert len(errors) == 1


def test_closing_the_runtime_ends_every_iteration(store_url: str) -> None:
    runtime = logmark.open(store_url)
    session = runtime.session("s")
    idle = runtime.session("idle")
    seen: dict[int, list[int | None]] = {n: [] for n in range(8)}
    subscriptions = [(idle if n % 4 == 3 else session).subscribe(1) for n in range(8)]

    def follow(n: int) -> None:
        seen[n] += [event.event_seq for event in subscriptions[n]]

    followers = [in_thread(functools.partial(follow, n)) for n in range(8)]
    for _ in range(100):
        session.submit("x")
    runtime.close()
    assert all(map(joined, followers))
    for n, found in seen.items():
        assert found == list(range(1, len(found) + 1))
        if n % 4 == 3:
            assert found == []
        with pytest.raises(SubscriptionClosed):
            subscriptions[n].get(timeout=0)
        subscriptions[n].close()


def test_what_is_at_hand_can_be_read_after_the_runtime_was_closed(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    subscription = session.subscribe(1)
    session.append_many([("x", n) for n in range(10)])
    eventually(lambda: subscription.lag == 10, SOON)
    runtime.close()
    assert [event.event_seq for event in subscription] == list(range(1, 11))
    with pytest.raises(SubscriptionClosed):
        subscription.get()


def test_a_closed_subscription_gets_and_holds_nothing(runtime: logmark.Runtime, logs: CapturedLogs) -> None:
    session = runtime.session("s")
    with session.subscribe() as other:
        for _ in range(10):
            session.subscribe().close()
        session.append("x")
        assert take(other, 1) == [1]
        assert logs.wait_for("batch_broadcast", session="s")["subscribers"] == 1


# -- when something goes wrong ---------------------------------------------------------------------------------------


def test_a_subscriber_that_raises_is_its_own_problem_row_64(
    runtime: logmark.Runtime, logs: CapturedLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 64: neither a consumer that raises nor one that cannot even be offered anything disturbs the others."""
    session = runtime.session("s")

    def refuse(*_args: object) -> None:
        raise LookupError

    def choke(event: Envelope) -> float:
        return 1 / (3 - (event.event_seq or 0))

    with session.subscribe(1) as good, session.subscribe(1) as bad, session.subscribe(1) as worse:
        monkeypatch.setattr(worse, "offer", refuse)
        for seq in range(1, 11):
            assert session.append("x") == seq
        with pytest.raises(ZeroDivisionError):
            list(map(choke, bad))
        assert take(good, 10) == list(range(1, 11))
        assert take(bad, 7) == list(range(4, 11))
    assert len(logs.named("subscriber_detached", session="s")) == 1


def test_damage_is_met_and_never_skipped(tmp_path: Path) -> None:
    """A subscriber that comes upon a damaged row gets an error there, each time it asks, and nothing from behind it."""
    with logmark.open(str(tmp_path)) as runtime:
        for n in range(10):
            runtime.session("s").append("x", {"n": n})
    (segment,) = tmp_path.rglob("*.jsonl")
    data = segment.read_bytes()
    assert data.count(b'{"n":4}') == 1
    segment.write_bytes(data.replace(b'{"n":4}', b'{"n":7}'))
    with logmark.open(str(tmp_path)) as runtime, runtime.session("s").subscribe(1) as subscription:
        assert take(subscription, 4) == [1, 2, 3, 4]
        for _ in range(3):
            with pytest.raises(LogCorrupt) as caught:
                subscription.get(timeout=SOON)
            assert caught.value.event_seq == 5
            assert subscription.next_seq == 5
        segment.write_bytes(data)  # the copy that the message speaks of
        assert take(subscription, 6) == [5, 6, 7, 8, 9, 10]


def test_a_halt_holds_a_subscriber_up_and_costs_it_nothing(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    session.append_many([("x", n) for n in range(10)])
    with session.subscribe(1) as subscription:
        runtime.store.halt("s", "on request")
        for _ in range(2):
            with pytest.raises(SessionHalted):
                subscription.get(timeout=SOON)
        runtime.store.clear_halt("s")
        session.append("x")
        assert take(subscription, 11) == list(range(1, 12))


def test_an_error_while_reading_the_history_loses_nothing(
    runtime: logmark.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that fails in the middle, as at an interrupt or an EIO, goes on at the number that it wanted."""
    session = runtime.session("s")
    session.append_many([("x", n) for n in range(20)])
    read = runtime.store.read

    def failing(*args: Any, **kwargs: Any) -> Any:
        for index, event in enumerate(read(*args, **kwargs)):
            if index == 3:
                raise KeyboardInterrupt
            yield event

    monkeypatch.setattr(runtime.store, "read", failing)
    seen: list[int | None] = []
    interrupts = 0
    with session.subscribe(1) as subscription:
        while len(seen) < 20:
            try:
                seen.append(subscription.get(timeout=SOON).event_seq)
            except KeyboardInterrupt:
                interrupts += 1
    assert seen == list(range(1, 21))
    assert interrupts == 6
