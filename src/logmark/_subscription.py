"""Subscriptions: history and live without a seam, at the reader's own pace."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from types import TracebackType
from typing import Self

from ._coalescing import coalesced
from ._tracing import tell_delivered
from .actors import Batch, Bell, Instruments
from .protocol import (
    Clock,
    Envelope,
    ForkedRuntime,
    InvalidArgument,
    Limits,
    LogmarkError,
    RawEnvelope,
    RuntimeClosed,
    StorageUnavailable,
    SubscriptionClosed,
    Upcasters,
    WaitTimeout,
)
from .storage import EventStore, Logger, put_off

__all__ = ["LogNeeded", "Subscription", "check_timeout"]

_TAKEN_EVENTS_MAX = 256
_numbers = itertools.count(1)


class LogNeeded(Exception):
    """What comes next stands in the log, which must not be read here (``Subscription.may_read``)."""


def check_timeout(timeout: object) -> float | None:
    """Return the seconds to wait at most, None for without end.

    Raises:
        InvalidArgument: not a number, or NaN.
    """
    if timeout is None:
        return None
    if type(timeout) is float and timeout <= threading.TIMEOUT_MAX:
        return timeout
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
        on_change: Callable[[], None] | None = None,
        tracing: Instruments | None = None,
        coalesce: bool = False,
        upcasters: Upcasters | None = None,
    ) -> None:
        self.session_id = session_id
        self.job_id = job_id
        self.store = store
        self._control = control
        self._limits = limits
        self._clock = clock
        self._log = log.bind(actor="subscriber", session=session_id, subscriber=next(_numbers))
        self._on_close = on_close
        self._check_process = check_process
        self._on_change = on_change
        self._tracing = tracing
        self._coalesce = coalesce
        self._upcasters = upcasters or Upcasters()
        self._next_seq = next_seq
        self._known_seq = next_seq - 1
        self._mutex = threading.Lock()
        self._bell = Bell(self._mutex)
        self._reading = threading.Lock()
        self._queue: deque[tuple[int, Batch]] = deque()
        self._queued_events = 0
        self._queued_bytes = 0
        self._at_hand: Iterator[RawEnvelope] = iter(())
        self._at_hand_through = 0
        self._lagging = False
        self._closed = False
        self._ended = False
        self._end_error: LogmarkError | None = None
        self.may_read = True
        """Whether ``get`` may read the log; a reader that must not block sets it to False and gets ``LogNeeded``."""
        self.lag_count = 0
        """How often the queue overflowed, so that events were read from the log instead."""
        self.passed = 0
        """How many events came by, of whatever job."""
        self.controls_dropped = 0
        """Control envelopes that found the queue full; they are stored nowhere, so they are gone."""
        self.coalesced = 0
        """How many changes of rows were left out, as later ones replace them (``subscribe(coalesce=True)``)."""
        self._log.info("subscriber_opened", next_seq=next_seq, job=job_id)

    # -- from the BroadcastActor --------------------------------------------------------------------------------

    def offer(self, envelopes: tuple[RawEnvelope, ...], last_seq: int) -> None:
        """Take what was broadcast, as far as there is room. Called by the BroadcastActor."""
        batch = envelopes if isinstance(envelopes, Batch) else Batch(envelopes)
        if not self._control:
            batch = batch.events()
        with self._mutex:
            if self._closed:
                return
            self._known_seq = max(self._known_seq, last_seq)
            if batch:
                room = (
                    self._queued_events + len(batch) <= self._limits.subscriber_events_max
                    and self._queued_bytes + batch.size_bytes <= self._limits.subscriber_bytes_max
                )
                if room:
                    # It is due when its first number is; one of control envelopes alone, after the last event so far.
                    self._queue.append((batch.first_seq or last_seq + 1, batch))
                    self._queued_events += len(batch)
                    self._queued_bytes += batch.size_bytes
                else:
                    self.controls_dropped += batch.controls
                    self._overflow()
            ring = self._bell.take()
        # A writer's thread has the reader woken when its next batch is on its way to the disk.
        if ring is not None and not put_off(ring):
            ring()
        self._tell_change()

    def _overflow(self) -> None:
        if not self._lagging:
            self._lagging = True
            self.lag_count += 1
            if self._on_change is None:  # for one that polls between other work, such as a connection, it is daily life
                self._log.warning("subscriber_lagged", next_seq=self._next_seq, last_seq=self._known_seq, lag=self.lag)

    def end(self, error: LogmarkError | None = None) -> None:
        """Learn that the runtime is closing, or that the session is over; what is at hand can still be read.

        Args:
            error: what ``get`` raises then, if not ``SubscriptionClosed``.
        """
        with self._mutex:
            self._ended = True
            self._end_error = self._end_error or error
            ring = self._bell.take()
        if ring is not None:
            ring()
        self._tell_change()

    def note_last_seq(self, last_seq: int) -> None:
        """Learn how far the log goes."""
        with self._mutex:
            self._known_seq = max(self._known_seq, last_seq)
            ring = self._bell.take()
        if ring is not None:
            ring()
        self._tell_change()

    def tell(self, on_change: Callable[[], None]) -> None:
        """Have ``on_change`` called whenever there may be something to read, in any thread, and once at once.

        It must not block. For readers that poll (``get`` with a timeout of 0).
        """
        self._on_change = on_change
        on_change()

    def _tell_change(self) -> None:
        """Outside the lock, so that whoever is told may read at once."""
        if self._on_change is not None:
            self._on_change()

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
            SeqPruned: what comes next was pruned, as this reader was behind; subscribe from ``first_available``.
            SessionDeleted: the session was deleted, here or by another process.
            ForkedRuntime: this is a fork of the process that subscribed.
            SessionHalted, LogCorrupt, SchemaMismatch: the log cannot be read at this place.
        """
        envelope = self.get_raw(timeout).decode()
        return self._upcasters.typed(envelope) if self._upcasters.types else envelope

    def get_raw(self, timeout: float | None = None) -> RawEnvelope:
        """Return the next event with its payload as bytes; otherwise as ``get``."""
        self._check_process()
        if timeout is not None:
            timeout = check_timeout(timeout)
        with self._reading:
            envelope = self._next_at_hand()
            if envelope is None:
                deadline = None if timeout is None else self._clock.monotonic() + timeout
                while envelope is None:
                    if not self._take_more(deadline):
                        what = f"event {self._next_seq}"
                        raise WaitTimeout(session_id=self.session_id, what=what, timeout_s=timeout or 0)
                    envelope = self._next_at_hand()
        if self._tracing is not None:
            tell_delivered(self._tracing, envelope, self._clock.time_ns())
        return envelope

    def _next_at_hand(self) -> RawEnvelope | None:
        """Return the next envelope wanted of those at hand."""
        if not self.may_read and self._at_hand_through:
            if self._next_seq <= self._at_hand_through:
                raise LogNeeded
            self._at_hand, self._at_hand_through = iter(()), 0  # read to its end: nothing is left in it
        try:
            for envelope in self._at_hand:
                if self._closed:
                    raise SubscriptionClosed(session_id=self.session_id)
                seq = envelope.event_seq
                if seq is None:
                    # Of no job: one of the session as a whole.
                    if self.job_id is None or envelope.job_id is None or envelope.job_id == self.job_id:
                        return envelope
                elif seq >= self._next_seq:
                    self._next_seq = seq + 1
                    self.passed += 1
                    if self.job_id is None or envelope.job_id == self.job_id:
                        return envelope
        except BaseException:
            # A generator that has raised passes for one that has ended. What it still had is not to be skipped: the
            # next call reads it again from the log, and meets the same damage there.
            self._at_hand, self._at_hand_through = iter(()), 0
            raise
        self._next_seq = max(self._next_seq, self._at_hand_through + 1)
        return None

    def _take_more(self, deadline: float | None) -> bool:
        """Put the next batch at hand, from the queue or from the log; False when the deadline has passed."""
        with self._mutex:
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
                    if self._on_change is None:
                        self._log.info("subscriber_caught_up", next_seq=self._next_seq)
                if self._ended:
                    raise self._end_error or SubscriptionClosed(session_id=self.session_id)
                left = None if deadline is None else deadline - self._clock.monotonic()
                if left is not None and left <= 0:
                    return False
                self._bell.wait(left)
        if not self.may_read:
            raise LogNeeded
        try:
            self._at_hand = self._wanted(self.store.read(self.session_id, from_seq=self._next_seq, through_seq=through))
        except (StorageUnavailable, RuntimeClosed):
            if self._ended and self._end_error is None:
                raise SubscriptionClosed(session_id=self.session_id) from None
            raise
        self._at_hand_through = through
        return True

    def _take_queued(self) -> None:
        """Take what follows without a gap, but not so much that a second queueful is held."""
        batches: list[Batch] = []
        due, taken = self._next_seq, 0
        while self._queue and self._queue[0][0] <= due and taken < _TAKEN_EVENTS_MAX:
            _, batch = self._queue.popleft()
            batches.append(batch)
            due = max(due, (batch.last_seq or 0) + 1)
            taken += len(batch)
            self._queued_events -= len(batch)
            self._queued_bytes -= batch.size_bytes
        self._at_hand = self._wanted(chain.from_iterable(batches))
        self._at_hand_through = 0

    def _wanted(self, events: Iterator[RawEnvelope]) -> Iterator[RawEnvelope]:
        return coalesced(events, self.job_id, self._left_out) if self._coalesce else events

    def _left_out(self, count: int) -> None:
        self.coalesced += count
        self.passed += count

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
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            self._queue.clear()
            ring = self._bell.take()
        if ring is not None:
            ring()
        self._log_closed()
        self._on_close(self)

    def _log_closed(self) -> None:
        # While another thread reads, number and count are not of one moment; who closes what he reads knows both. What
        # coalescing leaves out may have been handed out before, so there is no count then.
        at_rest = self._reading.acquire(blocking=False)
        try:
            passed = self.passed if at_rest and not self._coalesce else None
            self._log.info("subscriber_closed", next_seq=self._next_seq, passed=passed, lags=self.lag_count)
        finally:
            if at_rest:
                self._reading.release()

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
