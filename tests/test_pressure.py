"""More events, subscribers and sessions than fit: memory and threads stay bounded, and appends unharmed.

``LOGMARK_PRESSURE_EVENTS`` changes the number of events of the first test, a million by default.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import logmark
from logmark.actors.messages import Subscribe
from logmark.protocol import Limits, RawEnvelope
from logmark.testing import CapturedLogs, RecordingSubscriber

WORKER = Path(__file__).with_name("workers") / "many_events.py"
EVENTS = int(os.environ.get("LOGMARK_PRESSURE_EVENTS", "1000000"))
GROWN_BYTES_MAX = 200 * 1024 * 1024
RUN_S_MAX = 60 + EVENTS / 4000


@pytest.mark.slow
@pytest.mark.timeout(RUN_S_MAX + 10)
def test_a_stalled_subscriber_costs_its_own_position_and_no_memory(tmp_path: Path) -> None:
    """Row 62: one lag, named once, and in the end every event in order; the process stays as small as it was."""
    command = [sys.executable, str(WORKER), str(tmp_path / "store"), str(EVENTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=RUN_S_MAX)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    assert found["grown_bytes"] < GROWN_BYTES_MAX
    assert (found["lag"], found["lag_count"]) == (EVENTS, 1)
    assert (found["stalled"], found["followed"]) == (EVENTS, EVENTS)


class RaisingSubscriber(RecordingSubscriber):
    """A subscriber that fails at one of its offers."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at

    def offer(self, envelopes: tuple[RawEnvelope, ...], last_seq: int) -> None:
        super().offer(envelopes, last_seq)
        if len(self.offers) == self._at:
            raise RuntimeError


def test_a_thousand_subscribers_harm_no_append_and_not_each_other(tmp_path: Path, logs: CapturedLogs) -> None:
    """Rows 62, 64: some raise, some stand still, the others are shown everything."""
    limits = Limits(subscriber_events_max=16)
    count = 60
    with logmark.open(str(tmp_path / "store"), limits=limits) as runtime:
        session = runtime.session("s")
        stalled = [session.subscribe(1) for _ in range(300)]
        followers = [session.subscribe(1) for _ in range(300)]
        raising = [RaisingSubscriber(1 + number % 5) for number in range(200)]
        watching = [RecordingSubscriber() for _ in range(200)]
        for subscriber in (*raising, *watching):
            session._tell(Subscribe(subscriber))
        for start in range(1, count + 1, 10):
            assert [session.append("x", number) for number in range(start, start + 10)] == [*range(start, start + 10)]
            for follower in followers:
                assert [follower.get_raw(30).event_seq for _ in range(10)] == [*range(start, start + 10)]
        for subscriber in watching:
            subscriber.wait_for(count, 30)
            assert subscriber.seqs == [*range(1, count + 1)]
        assert [len(subscriber.offers) for subscriber in raising] == [1 + number % 5 for number in range(200)]
        assert len(logs.named("subscriber_detached")) == len(raising)
        for each in stalled:
            assert each.lag_count == 1
            assert [each.get_raw(30).event_seq for _ in range(count)] == [*range(1, count + 1)]


def test_many_sessions_take_few_threads_and_few_descriptors(tmp_path: Path) -> None:
    """An idle session costs memory, and neither three threads nor three descriptors."""
    limits = Limits(open_sessions_max=16)
    before = threading.active_count()
    with logmark.open(str(tmp_path / "store"), limits=limits, durability="os") as runtime:
        descriptors = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
        sessions = [runtime.session(f"s{number}") for number in range(1000)]
        for turn in (1, 2):
            assert [session.append("x", job_id="j") for session in sessions] == [turn] * len(sessions)
        most = limits.pool_threads_max + limits.persist_threads_max + limits.io_threads_max + 1
        assert threading.active_count() - before <= most
        if descriptors:
            assert len(os.listdir("/proc/self/fd")) - descriptors <= 3 * limits.open_sessions_max + 3
