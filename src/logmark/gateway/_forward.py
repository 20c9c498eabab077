"""Subscriptions: the events of a job, copied into the log of the session that follows it.

The copy is an event of the follower's session, with a number of its own, so that the follower has one gap-free stream
of everything and resumes it like any other. Its id is derived from the subscription and from the original's number, so
that the store takes it once, whoever appends it and however often. ``source`` and ``stream_seq`` say what it is a copy
of; a copy is never copied again.

A subscription works while its session is connected. What it missed meanwhile it catches up on: the job's log has it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import orjson

from ..protocol import (
    Envelope,
    EventIdConflict,
    LogmarkError,
    RawEnvelope,
    RuntimeClosed,
    SubscriptionClosed,
    WaitTimeout,
)
from ..protocol.arcp import SubscriptionRecord
from ._jobs import derived_id

if TYPE_CHECKING:
    from .._runtime import Runtime
    from .._subscription import Subscription
    from ._hub import Hub

__all__ = ["Forwarder"]

_TERMINALS = frozenset({"job.result", "job.error"})
_NEGOTIABLE_KINDS = frozenset({"progress", "result_chunk"})


class _Forward:
    """One subscription at work. One thread at a time is in ``step``: the forwarder sees to that."""

    def __init__(
        self, hub: Hub, record: SubscriptionRecord, features: frozenset[str], wake: Callable[[], None]
    ) -> None:
        self.record = record
        self._hub = hub
        self._runtime: Runtime = hub.runtime
        self._unknown_kinds = _NEGOTIABLE_KINDS - features
        self._wake = wake
        self._source: Subscription | None = None
        self._closed = threading.Event()
        self.scheduled = False
        self.pending = False

    def _copied_through(self) -> int:
        """Return the number of the last original that was copied: the follower's own log knows."""
        mark = self.record.subscription_id.encode()
        for event in self._runtime.store.read_backwards(self.record.session_id, before_seq=None):
            if (event.event_seq or 0) <= self.record.copied_after:
                break
            if mark in (event.head_json or b""):
                source = event.source
                if isinstance(source, dict) and self.record.subscription_id == cast("dict[str, Any]", source).get(
                    "subscription_id"
                ):
                    return event.stream_seq or 0
        return 0

    def step(self) -> bool:
        """Copy what there is, at most one batch; True when there may be more.

        Raises:
            LogmarkError: the job's log cannot be read, or the follower's not written.
        """
        if self._closed.is_set():
            return False
        source = self._source
        if source is None:
            after = max(self.record.after_seq, self._copied_through())
            if self.record.through_seq is not None and after >= self.record.through_seq:
                return self._finish()
            session = self._runtime.session(self.record.source_session_id)
            source = self._source = session.follow(
                after + 1, self.record.job_id, limits=self._hub.queue_limits, on_change=self._wake
            )
        events: list[Envelope] = []
        size = 0
        finished = False
        try:
            limits = self._hub.limits
            while len(events) < limits.forward_events_max and size < limits.queue_bytes_max and not finished:
                event = source.get_raw(timeout=0)
                size += len(event.payload_json)
                through = self.record.through_seq
                finished = through is not None and (event.event_seq or 0) >= through
                if event.source is not None or (finished and through is not None and (event.event_seq or 0) > through):
                    continue
                finished = finished or event.type in _TERMINALS
                if self._is_understood(event):
                    events.append(self._copy(event))
        except (WaitTimeout, SubscriptionClosed):
            more = False
        else:
            more = True
        if events:
            self._append(events)
        if finished:
            return self._finish()
        return more

    def _is_understood(self, event: RawEnvelope) -> bool:
        """Section 6.2: a kind that the follower did not negotiate is not sent to it."""
        if not self._unknown_kinds or event.type != "job.event":
            return True
        payload: Any = orjson.loads(event.payload_json)
        kind = cast("dict[str, Any]", payload).get("kind") if isinstance(payload, dict) else None
        return kind not in self._unknown_kinds

    def _copy(self, event: RawEnvelope) -> Envelope:
        at = event.timestamp
        at_ns = 0 if at is None else int(at.timestamp() * 1000) * 1_000_000
        return Envelope(
            type=event.type,
            payload=orjson.loads(event.payload_json),
            job_id=event.job_id,
            trace_id=event.trace_id,
            timestamp=event.timestamp_text,
            id=derived_id(at_ns, self.record.subscription_id, self.record.source_session_id, event.event_seq),
            source={
                "session_id": self.record.source_session_id,
                "subscription_id": self.record.subscription_id,
            },
            stream_seq=event.event_seq,
        )

    def _append(self, events: list[Envelope]) -> None:
        target = self._runtime.session(self.record.session_id)
        try:
            target.append_many(events)
        except EventIdConflict:
            # Somebody has copied some of them: this process before its connection moved, or another one. One at a time
            # the store can tell which.
            for event in events:
                target.append_many([event])

    def _finish(self) -> bool:
        self._hub.end_subscription(self.record, "ended")
        return False

    def close(self) -> None:
        """Copy nothing any more; a batch under way is finished."""
        self._closed.set()
        if self._source is not None:
            self._source.close()


class Forwarder:
    """Runs subscriptions on a few threads, each only when its job has something new."""

    def __init__(self, hub: Hub, *, threads_max: int) -> None:
        self._hub = hub
        self._threads_max = threads_max
        self._lock = threading.Lock()
        self._forwards: dict[tuple[str, str], _Forward] = {}
        self._ready: queue.SimpleQueue[_Forward | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self, record: SubscriptionRecord, features: frozenset[str]) -> None:
        """Begin, or go on with, a subscription; one that is at work already stays as it is."""
        key = record.session_id, record.job_id
        with self._lock:
            held = self._forwards.get(key)
            if held is not None and held.record == record:
                return
            forward = _Forward(self._hub, record, features, lambda: self._wake(forward))
            self._forwards[key] = forward
            if len(self._threads) < self._threads_max:
                thread = threading.Thread(target=self._work, name=f"arcp-forward-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
        if held is not None:
            held.close()
        self._wake(forward)

    def stop(self, session_id: str, job_id: str) -> None:
        """End a subscription, if it is at work here."""
        with self._lock:
            forward = self._forwards.pop((session_id, job_id), None)
        if forward is not None:
            forward.close()
            self._hub.note_quiet(forward.record.source_session_id)

    def stop_session(self, session_id: str) -> None:
        """End all that a session follows, until it comes back."""
        with self._lock:
            jobs = [job_id for held, job_id in self._forwards if held == session_id]
        for job_id in jobs:
            self.stop(session_id, job_id)

    def sessions(self) -> set[str]:
        """Return the sessions that are read from or written to."""
        with self._lock:
            records = [forward.record for forward in self._forwards.values()]
        return {record.session_id for record in records} | {record.source_session_id for record in records}

    def close(self) -> None:
        """Stop all of them, and the threads."""
        with self._lock:
            forwards = list(self._forwards.values())
            self._forwards.clear()
            threads = list(self._threads)
        for forward in forwards:
            forward.close()
        for _ in threads:
            self._ready.put(None)
        for thread in threads:
            thread.join(self._hub.limits.close_wait_s)

    def _wake(self, forward: _Forward) -> None:
        with self._lock:
            if forward.scheduled:
                forward.pending = True  # it may have looked before what this call is about
                return
            forward.scheduled = True
        self._ready.put(forward)

    def _work(self) -> None:
        while (forward := self._ready.get()) is not None:
            try:
                more = forward.step()
            except RuntimeClosed:
                return
            except Exception as error:
                self._fail(forward, error)
                continue
            with self._lock:
                more = more or forward.pending
                forward.pending = False
                forward.scheduled = more
            if more:
                self._ready.put(forward)  # behind the others

    def _fail(self, forward: _Forward, error: Exception) -> None:
        """Torn down in the open: the follower is disconnected, and goes on from its own log when it resumes."""
        record = forward.record
        self._hub.log.error(
            "arcp_forward_failed",
            session=record.session_id,
            job=record.job_id,
            error=type(error).__name__,
            exc_info=None if isinstance(error, LogmarkError) else error,
        )
        self.stop(record.session_id, record.job_id)
        self._hub.disconnect(record.session_id, "a subscription cannot go on")
