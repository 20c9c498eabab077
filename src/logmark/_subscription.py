"""Subscriptions: history and live without a seam, at the reader's own pace."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from .protocol import (
    Clock,
    Envelope,
    ForkedRuntime,
    InvalidArgument,
    Limits,
    RawEnvelope,
    RuntimeClosed,
    StorageUnavailable,
    SubscriptionClosed,
    WaitTimeout,
)
from .storage import EventStore, Logger

__all__ = ["Subscription", "check_timeout"]


def check_timeout(timeout: object) -> float | None:
    """Return the seconds to wait at most, None for without end.

    Raises:
        InvalidArgument: not a number, or NaN.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout != timeout:  # noqa: PLR0124 - NaN
        message = f"timeout is a number of seconds or None, not {timeout!r}"
        raise InvalidArgument(message)
    return None if timeout > threading.TIMEOUT_MAX else timeout


class Subscription:
    """An iterator over a session's events from some number on: gap-free, in order, each once.

    It rests on one number, the next one wanted. What is broadcast waits in a bounded queue; whatever is not there when
    its turn comes, because it was written before, by another process, or while the queue was full, is read from the
    log. So a slow reader costs its own position and nobody waits for it.

    Iterate it, or call ``get``. One thread at a time reads; ``close`` may be called from any.
    """

    def __init__(
        self,
        *,
        session_id: str,
        store: EventStore,
        next_seq: int,
        job_id: str | None,
        control: bool,
        limits: Limits,
        clock: Clock,
        log: Logger,
        on_close: Callable[[Subscription], None],
        check_process: Callable[[], None],
    ) -> None:
        self.session_id = session_id
        self.job_id = job_id
        self.store = store
        self._control = control
        self._limits = limits
        self._clock = clock
        self._log = log.bind(actor="subscriber", session=session_id)
        self._on_close = on_close
        self._check_process = check_process
        self._next_seq = next_seq
        self._known_seq = next_seq - 1
        self._changed = threading.Condition(threading.Lock())
        self._reading = threading.Lock()
        self._queue: deque[tuple[int, tuple[RawEnvelope, ...]]] = deque()
        self._queued_events = 0
        self._queued_bytes = 0
        self._at_hand: Iterator[RawEnvelope] = iter(())
        self._at_hand_through = 0
        self._lagging = False
        self._closed = False
        self._ended = False
        self.lag_count = 0
        """How often the queue overflowed, so that events were read from the log instead."""
        self.controls_dropped = 0
        """Control envelopes that found the queue full; they are stored nowhere, so they are gone."""

    # -- from the BroadcastActor --------------------------------------------------------------------------------

    def offer(self, envelopes: tuple[RawEnvelope, ...], last_seq: int) -> None:
        """Take what was broadcast, as far as there is room. Called by the BroadcastActor."""
        events = envelopes if self._control else tuple(each for each in envelopes if each.event_seq is not None)
        # A batch is due when the first number in it is; one of control envelopes alone, after the last event so far.
        due = next((each.event_seq for each in events if each.event_seq is not None), last_seq + 1)
        size = sum(len(each.payload_json) for each in events)
        with self._changed:
            if self._closed:
                return
            self._known_seq = max(self._known_seq, last_seq)
            if events:
                room = (
                    self._queued_events + len(events) <= self._limits.subscriber_events_max
                    and self._queued_bytes + size <= self._limits.subscriber_bytes_max
                )
                if room:
                    self._queue.append((due, events))
                    self._queued_events += len(events)
                    self._queued_bytes += size
                else:
                    self.controls_dropped += sum(each.event_seq is None for each in events)
                    self._overflow()
            self._changed.notify_all()

    def _overflow(self) -> None:
        if not self._lagging:
            self._lagging = True
            self.lag_count += 1
            self._log.warning("subscriber_lagged", next_seq=self._next_seq, last_seq=self._known_seq, lag=self.lag)

    def end(self) -> None:
        """Learn that the runtime is closing; what is at hand can still be read."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def note_last_seq(self, last_seq: int) -> None:
        """Learn how far the log goes."""
        with self._changed:
            self._known_seq = max(self._known_seq, last_seq)
            self._changed.notify_all()

    # -- for the reader -----------------------------------------------------------------------------------------

    @property
    def next_seq(self) -> int:
        """The number that comes next; subscribe from it to go on later without a gap."""
        return self._next_seq

    @property
    def lag(self) -> int:
        """How many numbers the log is ahead of what was handed out."""
        return max(0, self._known_seq - self._next_seq + 1)

    def get(self, timeout: float | None = None) -> Envelope:
        """Return the next event, waiting for it.

        Args:
            timeout: seconds; None waits without end, 0 does not wait.

        Raises:
            WaitTimeout: a ``TimeoutError``: none came in time. Nothing is lost: the next call goes on.
            InvalidArgument: ``timeout`` is not a number.
            SubscriptionClosed: the subscription or its runtime was closed.
            ForkedRuntime: this is a fork of the process that subscribed.
            SessionHalted, LogCorrupt, SchemaMismatch: the log cannot be read at this place.
        """
        return self.get_raw(timeout).decode()

    def get_raw(self, timeout: float | None = None) -> RawEnvelope:
        """Return the next event with its payload as bytes; otherwise as ``get``."""
        self._check_process()
        timeout = check_timeout(timeout)
        deadline = None if timeout is None else self._clock.monotonic() + timeout
        with self._reading:
            while True:
                envelope = self._next(deadline)
                if envelope is None:
                    raise WaitTimeout(
                        session_id=self.session_id, what=f"event {self._next_seq}", timeout_s=timeout or 0
                    )
                if self.job_id is None or envelope.job_id == self.job_id:
                    return envelope
                if envelope.event_seq is None and envelope.job_id is None:
                    return envelope  # a control envelope of the session as a whole

    def _next(self, deadline: float | None) -> RawEnvelope | None:
        """Return the next envelope of any job; None when the deadline has passed."""
        while True:
            try:
                for envelope in self._at_hand:
                    seq = envelope.event_seq
                    if self._closed:
                        raise SubscriptionClosed(session_id=self.session_id)
                    if seq is None:
                        return envelope
                    if seq >= self._next_seq:
                        self._next_seq = seq + 1
                        return envelope
            except BaseException:
                # A generator that has raised passes for one that has ended. What it still had is not to be skipped:
                # the next call reads it again from the log, and meets the same damage there.
                self._at_hand, self._at_hand_through = iter(()), 0
                raise
            self._next_seq = max(self._next_seq, self._at_hand_through + 1)
            if not self._take_more(deadline):
                return None

    def _take_more(self, deadline: float | None) -> bool:
        """Put the next batch at hand, from the queue or from the log; False when the deadline has passed."""
        with self._changed:
            while True:
                if self._closed:
                    raise SubscriptionClosed(session_id=self.session_id)
                if self._queue and self._queue[0][0] <= self._next_seq:
                    self._take_queued()
                    return True
                if self._next_seq <= self._known_seq:
                    through = min(self._known_seq, self._queue[0][0] - 1 if self._queue else self._known_seq)
                    break
                if self._lagging:
                    self._lagging = False
                    self._log.info("subscriber_caught_up", next_seq=self._next_seq)
                if self._ended:
                    raise SubscriptionClosed(session_id=self.session_id)
                left = None if deadline is None else deadline - self._clock.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
        try:
            self._at_hand = self.store.read(self.session_id, from_seq=self._next_seq, through_seq=through)
        except (StorageUnavailable, RuntimeClosed):
            if self._ended:
                raise SubscriptionClosed(session_id=self.session_id) from None
            raise
        self._at_hand_through = through
        return True

    def _take_queued(self) -> None:
        _, envelopes = self._queue.popleft()
        self._queued_events -= len(envelopes)
        self._queued_bytes -= sum(len(each.payload_json) for each in envelopes)
        self._at_hand = iter(envelopes)
        self._at_hand_through = 0

    def __iter__(self) -> Iterator[Envelope]:
        """Iterate until the subscription is closed."""
        return self

    def __next__(self) -> Envelope:
        """Return the next event; StopIteration once the subscription is closed."""
        try:
            return self.get()
        except SubscriptionClosed:
            raise StopIteration from None

    def close(self) -> None:
        """End the iteration, in whatever thread it is. A second call does nothing, nor does one in a forked child."""
        try:
            self._check_process()
        except ForkedRuntime:
            return
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()
        self._on_close(self)

    def __enter__(self) -> Self:
        """Return the subscription; leaving closes it."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the subscription."""
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"next_seq={self._next_seq} lag={self.lag}"
        return f"<Subscription {self.session_id!r} {state}>"
