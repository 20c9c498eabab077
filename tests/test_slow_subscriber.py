"""A slow subscriber costs its own position: it is told that it lags, catches up by itself, and nobody waits for it."""

from __future__ import annotations

import functools
import threading
import time

import pytest

import logmark
from logmark import Limits, Subscription
from logmark.errors import WaitTimeout
from logmark.testing import CapturedLogs, eventually

SOON = 10.0


def take(subscription: Subscription, count: int) -> list[int | None]:
    return [subscription.get(SOON).event_seq for _ in range(count)]


def test_a_queue_of_8_and_1000_events_row_62(store_url: str, logs: CapturedLogs) -> None:
    """Row 62: lag is announced with its count, the subscriber recovers by itself and is complete, so is the log."""
    with logmark.open(store_url, limits=Limits(subscriber_events_max=8)) as runtime:
        session = runtime.session("s")
        with session.subscribe(1) as subscription:
            futures = [session.submit("x", {"n": n}) for n in range(1000)]
            assert futures[-1].result(SOON) == 1000
            eventually(lambda: subscription.lag == 1000, SOON)
            lagged = logs.wait_for("subscriber_lagged", session="s")
            assert lagged["level"] == "warning"
            assert lagged["actor"] == "subscriber"
            assert lagged["next_seq"] == 1
            assert lagged["lag"] == lagged["last_seq"] > 8
            assert subscription.lag_count == 1
            assert len(logs.named("subscriber_lagged")) == 1  # announced once, not at each event

            events = [subscription.get(SOON) for _ in range(1000)]
            assert [(event.event_seq, event.payload["n"]) for event in events] == [(n + 1, n) for n in range(1000)]
            assert subscription.lag == 0
            with pytest.raises(WaitTimeout):
                subscription.get(timeout=0)
            assert logs.wait_for("subscriber_caught_up", session="s")["next_seq"] == 1001

            session.append("x")  # and live it is again
            assert take(subscription, 1) == [1001]
        assert [event.event_seq for event in session.read()] == list(range(1, 1002))


def test_lag_is_announced_anew_after_it_was_made_good(logs: CapturedLogs) -> None:
    with logmark.open("memory:", limits=Limits(subscriber_events_max=2)) as runtime:
        session = runtime.session("s")
        with session.subscribe() as subscription:
            for round_ in range(1, 4):
                for _ in range(10):
                    session.append("x")
                eventually(lambda: subscription.lag == 10, SOON)
                assert len(take(subscription, 10)) == 10
                with pytest.raises(WaitTimeout):
                    subscription.get(timeout=0)
                assert subscription.lag_count == round_
        assert len(logs.named("subscriber_lagged")) == len(logs.named("subscriber_caught_up")) == 3


def test_nobody_waits_for_a_stalled_subscriber(store_url: str) -> None:
    with logmark.open(store_url, limits=Limits(subscriber_events_max=4)) as runtime:
        session, other = runtime.session("s"), runtime.session("other")
        stalled = [session.subscribe(1) for _ in range(5)]
        with session.subscribe(1) as live, other.subscribe(1) as elsewhere:
            seen: list[int | None] = []
            follower = threading.Thread(target=lambda: seen.extend(take(live, 500)))
            follower.start()
            began = time.monotonic()
            for _ in range(500):
                session.submit("x")
                other.submit("x")
            session.append("x")
            assert time.monotonic() - began < SOON
            follower.join(SOON)
            assert seen == list(range(1, 501))
            assert take(elsewhere, 500) == list(range(1, 501))
        for subscription in stalled:
            assert take(subscription, 501) == list(range(1, 502))
            subscription.close()


def test_what_is_held_for_a_stalled_subscriber_is_bounded() -> None:
    limits = Limits(subscriber_events_max=10, subscriber_bytes_max=1000)
    with logmark.open("memory:", limits=limits) as runtime:
        session = runtime.session("s")
        with session.subscribe() as by_count, session.subscribe() as by_size:
            for _ in range(50):
                session.append("x", 1)
                assert sum(len(batch) for _, batch in by_count._queue) <= 10
            take(by_size, 50)
            session.append("x", "y" * 600)
            session.append("x", "y" * 600)
            eventually(lambda: by_size.lag == 2, SOON)
            assert sum(len(batch) for _, batch in by_size._queue) == 1
            for subscription in (by_count, by_size):
                subscription.close()
                assert not subscription._queue


def test_a_batch_that_is_larger_than_the_queue(store_url: str) -> None:
    with logmark.open(store_url, limits=Limits(subscriber_events_max=8)) as runtime:
        session = runtime.session("s")
        with session.subscribe() as subscription:
            session.append_many([("x", n) for n in range(100)])
            session.append("x")
            session.append_many([("x", n) for n in range(9)])
            assert take(subscription, 110) == list(range(1, 111))


def test_a_reader_that_is_slow_on_and_off_misses_nothing(store_url: str) -> None:
    """Read a little, let a lot happen, again and again: queue, log and queue again, always at the same number."""
    with logmark.open(store_url, limits=Limits(subscriber_events_max=5)) as runtime:
        session = runtime.session("s")
        seen: list[int | None] = []
        total = 0
        with session.subscribe() as subscription:
            for round_ in range(60):
                burst = (round_ * 7) % 13
                for _ in range(burst):
                    session.append("x")
                total += burst
                seen += take(subscription, min((round_ * 5) % 11, total - len(seen)))
            seen += take(subscription, total - len(seen))
        assert seen == list(range(1, total + 1))


def test_controls_that_find_no_room_are_counted() -> None:
    """Controls are stored nowhere, so a full queue costs them; the events come all the same."""
    with logmark.open("memory:", limits=Limits(subscriber_events_max=4)) as runtime:
        session = runtime.session("s")
        with session.subscribe(control=True) as subscription:

            def came_to(count: int) -> bool:
                return subscription._queued_events + subscription.controls_dropped == count

            for n in range(10):
                session.send("session.ping", n)
                eventually(functools.partial(came_to, n + 1), SOON)
            session.append("x")
            eventually(lambda: subscription.lag == 1, SOON)
            assert subscription.controls_dropped == 6
            shown = [subscription.get(SOON) for _ in range(5)]
            assert [event.payload for event in shown if event.event_seq is None] == [0, 1, 2, 3]
            assert [event.event_seq for event in shown if event.event_seq is not None] == [1]
            session.send("session.ping", "again")
            assert subscription.get(SOON).payload == "again"


def test_a_slow_follower_of_one_job_misses_none_of_its_events(store_url: str) -> None:
    with logmark.open(store_url, limits=Limits(subscriber_events_max=3)) as runtime:
        session = runtime.session("s")
        with session.subscribe(1, job_id="a") as subscription:
            for n in range(100):
                session.submit("job.event", n, job_id="a" if n % 10 == 0 else "b")
            assert [subscription.get(SOON).payload for _ in range(10)] == list(range(0, 100, 10))
