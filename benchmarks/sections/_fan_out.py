"""How fast events reach those who watch."""

from __future__ import annotations

import contextlib
import os
import queue
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import orjson

from ..events import ring
from ..harness import Sample, Usage, percentile, run_bout
from ..participants import EVENT_TYPE, Logmark
from ..report import Row, rows_of
from ._base import Context
from ._subscribers import Viewers

__all__ = ["fan_out"]

_BATCH = 1000
_EVENTS = {1: 40_000, 16: 10_000}
_DELIVERIES = 400


def fan_out(context: Context) -> list[Row]:
    """Deliveries a second to 1 and 16 viewers, and how long an event takes from its commit to a viewer's hand."""
    rows: list[Row] = []
    for viewers, events in _EVENTS.items():
        rows += _throughput(context, viewers, context.amount(events, events // 10))
    for viewers in _EVENTS:
        rows += _latency(context, viewers, context.amount(_DELIVERIES, 40))
    return rows


class _RawFan:
    """The limit: one file, and a queue of batches for each viewer, who decodes what it gets."""

    def __init__(self, directory: str, viewers: int) -> None:
        self.fd = os.open(os.path.join(directory, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.queues: list[queue.SimpleQueue[list[bytes] | None]] = [queue.SimpleQueue() for _ in range(viewers)]
        self.seen = [0] * viewers
        self.arrived_ns = [0] * viewers
        self.sync_ns: list[int] = []
        self.threads = [threading.Thread(target=self._follow, args=(number,), daemon=True) for number in range(viewers)]
        for thread in self.threads:
            thread.start()

    def _follow(self, number: int) -> None:
        loads = orjson.loads
        while (lines := self.queues[number].get()) is not None:
            for line in lines:
                loads(line)
            self.arrived_ns[number] = time.perf_counter_ns()
            self.seen[number] += len(lines)  # last: who sees it may read the time

    def publish(self, payloads: list[Any]) -> None:
        """Write, sync, hand over."""
        lines = [orjson.dumps(payload) for payload in payloads]
        os.write(self.fd, b"\n".join(lines) + b"\n")
        before = time.perf_counter_ns()
        os.fdatasync(self.fd)
        self.sync_ns.append(time.perf_counter_ns() - before)
        for waiting in self.queues:
            waiting.put(lines)

    def close(self) -> None:
        """End the threads."""
        for waiting in self.queues:
            waiting.put(None)
        for thread in self.threads:
            thread.join()
        os.close(self.fd)


def _wait(seen: Callable[[], int], count: int) -> None:
    deadline = time.monotonic() + 60
    while seen() < count:
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.0002)


def _throughput(context: Context, viewers: int, events: int) -> list[Row]:
    work = f"{events:,} events, {_BATCH} per call to {viewers} viewer{'s' if viewers > 1 else ''}"
    context.progress.begin(f"fan-out: {work}")
    payloads = [ring()[number % 64] for number in range(_BATCH)]
    pairs = [(EVENT_TYPE, payload) for payload in payloads]
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(contextlib.closing(_RawFan(context.place("raw"), viewers)))
        logmark = Logmark()
        logmark.open(context.place("logmark"))
        stack.callback(logmark.close)
        session = logmark.runtime.session("s")
        watching = stack.enter_context(contextlib.closing(Viewers(logmark, "s", viewers)))

        def hand_over(_seconds: float) -> Sample:
            goal, before, began = raw.seen[0] + events, Usage.now(), time.perf_counter()
            for _ in range(events // _BATCH):
                raw.publish(payloads)
            _wait(lambda: min(raw.seen), goal)
            took_s = time.perf_counter() - began
            return Sample(events * viewers, took_s, [], usage=Usage.now().since(before))

        def append(_seconds: float) -> Sample:
            before, began, last = Usage.now(), time.perf_counter(), 0
            for _ in range(events // _BATCH):
                last = session.append_many(pairs)[1]
            watching.wait_for(last)
            took_s = time.perf_counter() - began
            return Sample(events * viewers, took_s, [], usage=Usage.now().since(before))

        bout = run_bout(
            {"raw: write, fdatasync, a queue each": hand_over, "logmark": append},
            rounds=context.rounds,
            seconds=context.seconds,
            step=context.progress.step,
        )
        notes = {"logmark": f"fell back to the log {watching.lags} times"}
    return rows_of(bout, "fan-out", work, unit="deliveries/s", notes=notes)


def _latency(context: Context, viewers: int, count: int) -> list[Row]:
    """Append one event at a time; the next one when all have the last."""
    work = f"one event at a time to {viewers} viewer{'s' if viewers > 1 else ''}"
    context.progress.begin(f"fan-out: {work}")
    payload = ring()[0]
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(contextlib.closing(_RawFan(context.place("raw"), viewers)))
        logmark = Logmark()
        logmark.open(context.place("logmark"))
        stack.callback(logmark.close)
        session = logmark.runtime.session("s")
        arrived = [0] * viewers
        seen = [0] * viewers

        def follow(number: int, subscription: Any) -> None:
            for _ in subscription:
                arrived[number] = time.perf_counter_ns()
                seen[number] += 1

        subscriptions = [session.subscribe(from_seq=1) for _ in range(viewers)]
        threads = [threading.Thread(target=follow, args=pair, daemon=True) for pair in enumerate(subscriptions)]
        for thread in threads:
            thread.start()
        raw_ns: list[list[int]] = []
        ours_ns: list[list[int]] = []
        commit_ns: list[float] = []

        def hand_over(_seconds: float) -> Sample:
            return _paced(raw.publish, [payload], raw.seen, raw.arrived_ns, raw_ns, count)

        def append(_seconds: float) -> Sample:
            return _paced(lambda given: session.append(EVENT_TYPE, given), payload, seen, arrived, ours_ns, count)

        def commit(_seconds: float) -> Sample:
            # What the write and the sync alone take, which is what is subtracted.
            took: list[int] = []
            for _ in range(count):
                before = time.perf_counter_ns()
                os.write(raw.fd, orjson.dumps(payload) + b"\n")
                os.fdatasync(raw.fd)
                took.append(time.perf_counter_ns() - before)
            commit_ns.append(statistics.median(took))
            return Sample(count, sum(took) / 1e9, took)

        run_bout(
            {"commit": commit, "raw": hand_over, "logmark": append},
            rounds=context.rounds,
            seconds=context.seconds,
            step=context.progress.step,
        )
        for subscription in subscriptions:
            subscription.close()
        for thread in threads:
            thread.join()
    sync_ns = statistics.median(raw.sync_ns)
    rows: list[Row] = []
    for name, rounds in (("raw: write, fdatasync, a queue each", raw_ns), ("logmark", ours_ns)):
        beyond = [(statistics.median(each) - commit) / sync_ns for each, commit in zip(rounds, commit_ns, strict=True)]
        pairs = zip(rounds, raw_ns, strict=True)
        ratios = [statistics.median(each) / statistics.median(least) for each, least in pairs]
        taken = [each for those in rounds for each in those]
        rows.append(
            Row(
                section="fan-out",
                work=work,
                participant=name,
                value=statistics.median(beyond),
                unit="fsyncs",
                value_min=min(beyond),
                value_max=max(beyond),
                ratio=statistics.median(ratios),
                p50_us=percentile(taken, 50) / 1000,
                p99_us=percentile(taken, 99) / 1000,
                note=f"p50 from commit to get, in fsyncs of {sync_ns / 1000:.0f} µs; p50 and p99 are from call to get",
            )
        )
    return rows


def _paced(
    publish: Callable[[Any], object],
    what: Any,
    seen: list[int],
    arrived_ns: list[int],
    taken_ns: list[list[int]],
    count: int,
) -> Sample:
    """Publish one at a time, and note how long each took to everybody."""
    began = time.perf_counter()
    latencies: list[int] = []
    for _ in range(count):
        goal, before = seen[0] + 1, time.perf_counter_ns()
        publish(what)
        _wait(lambda: min(seen), goal)
        latencies.extend(arrived - before for arrived in arrived_ns)
    taken_ns.append(latencies)
    return Sample(count, time.perf_counter() - began, latencies)
