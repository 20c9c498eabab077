"""A session as the embedding program sees it."""

from __future__ import annotations

import datetime as dt
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from pykka import ActorDeadError, ActorRef, Timeout

from ._job import Job
from ._page import Page
from ._replies import BlockingReply, FutureReply, RangeReply
from ._subscription import Subscription, check_timeout
from .actors import CallerLane, Gate, Watermark, refuse_in_turn
from .actors.messages import Append, AppendReply, GetMarks, Observed, Send, Subscribe, Unsubscribe
from .protocol import (
    SEQ_MAX,
    CursorAhead,
    EncodedEvent,
    Envelope,
    ForeignCursor,
    InvalidArgument,
    JobMark,
    Limits,
    LogmarkError,
    NotControl,
    RawEnvelope,
    RuntimeClosed,
    SessionHalted,
    StorageRejected,
    WaitTimeout,
)
from .storage import Appended, AppendRequest

if TYPE_CHECKING:
    from ._runtime import Runtime

__all__ = ["Session"]

E = TypeVar("E", Envelope, RawEnvelope)
EventLike = Envelope | tuple[str, Any]
_CALM_S_MAX = 0.05  # a commit that took longer is not one to hold a Ctrl-C for

Position = int | Envelope
"""A place in a session: a number, or an event of that session."""


class Session:
    """One ordered, durable stream of events. Safe from any thread; made by ``Runtime.session``."""

    def __init__(self, runtime: Runtime, session_id: str) -> None:
        self._runtime = runtime
        self._id = session_id
        self._gate: Gate | None = None
        self._ref: ActorRef[Any] | None = None
        self._watermark = Watermark(runtime.clock)
        self._starting = threading.Lock()

    @property
    def session_id(self) -> str:
        """The id that the session was opened by."""
        return self._id

    # -- appending ----------------------------------------------------------------------------------------------

    def append(
        self,
        type: str,
        payload: Any = None,
        *,
        job_id: str | None = None,
        id: str | None = None,
        expected_seq: int | None = None,
        source: Any = None,
        stream_seq: int | None = None,
        trace_id: str | None = None,
        timestamp: dt.datetime | str | None = None,
        extensions: Mapping[str, Any] | None = None,
    ) -> int:
        """Append one event and return its ``event_seq`` once it is on disk.

        When it returns, ``last_seq``, ``read``, ``page``, ``jobs`` and every subscriber's catch-up include the event.
        When it raises ``AppendRejected``, nothing was written and no subscriber will see it. The payload is encoded
        before anything else happens; later changes of it have no effect.

        Args:
            type: a countable type.
            payload: any JSON value.
            job_id: the job that the event belongs to.
            id: the event's id. A repeated id is a retry: it returns the number of the first write, whose content stays.
            expected_seq: append only if ``last_seq`` is this number at the moment of numbering.
            source: who produced the event, any JSON value.
            stream_seq: the producer's own number.
            trace_id: the trace that the event belongs to.
            timestamp: when it happened, if not now: with a zone, or RFC 3339 text.
            extensions: further top-level fields to keep with the event.

        Raises:
            InvalidEvent: the event cannot be stored as it is.
            WrongExpectedSeq, EventIdConflict, SequenceExhausted: the log says no.
            Overloaded, LockTimeout: a deadline has passed (``Limits.inbox_wait_s``, ``lock_wait_s``).
            StorageRejected: the disk said no, and the write was rolled back.
            SessionHalted, LogCorrupt, SchemaMismatch: the session takes nothing until it is repaired.
            AppendUncertain: nobody knows whether it was written; the session is halted.
            RuntimeClosed, ForkedRuntime: there is no runtime here.
        """
        refuse_in_turn("append()")
        event, now_ns = self._encode(type, payload, job_id, id, source, stream_seq, trace_id, timestamp, extensions)
        return self._append((event,), expected_seq, now_ns).first_seq

    def submit(
        self,
        type: str,
        payload: Any = None,
        *,
        job_id: str | None = None,
        id: str | None = None,
        expected_seq: int | None = None,
        source: Any = None,
        stream_seq: int | None = None,
        trace_id: str | None = None,
        timestamp: dt.datetime | str | None = None,
        extensions: Mapping[str, Any] | None = None,
    ) -> Future[int]:
        """Append one event without waiting: the future's result is its ``event_seq``, once it is on disk.

        Events are stored in the order in which one thread submits them. The call itself raises what is wrong with the
        event, and waits while the session's inbox is full; everything else that ``append`` raises is the future's
        exception. Cancelling the future works until the event is handed to the disk, and then nothing is written.
        """
        event, now_ns = self._encode(type, payload, job_id, id, source, stream_seq, trace_id, timestamp, extensions)
        reply = FutureReply()
        self._submit((event,), expected_seq, reply, now_ns)
        return reply

    def append_many(self, events: Iterable[EventLike], *, expected_seq: int | None = None) -> tuple[int, int]:
        """Append several events with contiguous numbers, all of them or none, and return the first and last number.

        Args:
            events: ``(type, payload)`` pairs or envelopes. None at all writes nothing and returns
                ``(last_seq + 1, last_seq)``, an empty range.
            expected_seq: as for ``append``.

        Raises:
            InvalidEvent: one of the events cannot be stored; none of them is.
            AppendError: as for ``append``.
        """
        refuse_in_turn("append_many()")
        encoded, now_ns = self._runtime.encode_many(events)
        if not encoded:
            last_seq = self.last_seq
            return last_seq + 1, last_seq
        answer = self._append(encoded, expected_seq, now_ns)
        return answer.first_seq, answer.last_seq

    def submit_many(self, events: Iterable[EventLike], *, expected_seq: int | None = None) -> Future[tuple[int, int]]:
        """Append several events without waiting, all of them or none: the future's result is the first and last number.

        Otherwise as ``append_many`` and ``submit``; at least one event.
        """
        encoded, now_ns = self._runtime.encode_many(events)
        if not encoded:
            raise InvalidArgument("submit_many needs at least one event")
        reply = RangeReply()
        self._submit(encoded, expected_seq, reply, now_ns)
        return reply

    def send(
        self,
        type: str,
        payload: Any = None,
        *,
        job_id: str | None = None,
        id: str | None = None,
        trace_id: str | None = None,
        source: Any = None,
        extensions: Mapping[str, Any] | None = None,
    ) -> None:
        """Pass a control envelope to the subscribers that asked for them (``subscribe(control=True)``).

        It gets no number and is not stored. It keeps its place: it is shown after the events that were submitted before
        it and before those submitted later.

        Raises:
            NotControl: the type is countable.
            InvalidEvent: the envelope has no exact JSON form.
            RuntimeClosed, ForkedRuntime: there is no runtime here.
        """
        self._runtime.check_usable()
        envelope = Envelope(
            type=type, payload=payload, job_id=job_id, id=id, trace_id=trace_id, source=source, extensions=extensions
        )
        if self._runtime.types.is_countable(type):
            raise NotControl(type=type)
        event_id, now, _ = self._runtime.stamp()
        encoded = self._runtime.encoder.encode_any(envelope, event_id, now)
        self._tell(Send(encoded.stamped(self._id, None)))

    def _encode(
        self,
        type: str,
        payload: Any,
        job_id: str | None,
        id: str | None,
        source: Any,
        stream_seq: int | None,
        trace_id: str | None,
        timestamp: dt.datetime | str | None,
        extensions: Mapping[str, Any] | None,
    ) -> tuple[EncodedEvent, int]:
        """Return the event as bytes, and the time in nanoseconds."""
        self._runtime.check_usable()
        event_id, now, now_ns = self._runtime.stamp()
        encoder = self._runtime.encoder
        plain = id is None and timestamp is None and source is None and stream_seq is None
        if plain and trace_id is None and extensions is None:
            return encoder.encode(type, payload, job_id, event_id, now), now_ns
        envelope = Envelope(
            type=type,
            payload=payload,
            job_id=job_id,
            id=id,
            source=source,
            stream_seq=stream_seq,
            trace_id=trace_id,
            timestamp=timestamp,
            extensions=extensions,
        )
        return encoder.encode_envelope(envelope, event_id, now), now_ns

    def _append(self, events: tuple[EncodedEvent, ...], expected_seq: int | None, now_ns: int) -> Appended:
        """Submit and wait; a caller who is alone gives the turns himself."""
        reply = BlockingReply()
        gate = self._gate
        if gate is not None and gate.is_calm(_CALM_S_MAX):
            lane = CallerLane.open(is_local=self._runtime.store.is_local)
            if lane is not None:
                with lane:
                    self._submit(events, expected_seq, reply, now_ns)
                    lane.give_turns(reply.is_settled)
                return reply.wait()
        self._submit(events, expected_seq, reply, now_ns)
        return reply.wait()

    def _submit(
        self, events: tuple[EncodedEvent, ...], expected_seq: int | None, reply: AppendReply, now_ns: int
    ) -> None:
        if expected_seq is not None:
            _check_seq("expected_seq", expected_seq, 0)
        gate = self._gate or self._open_gate()
        size = (
            events[0].size_bytes
            if len(events) == 1
            else sum([len(event.head) + len(event.payload_json) for event in events])
        )
        gate.enter(len(events), size)
        try:
            self._tell(Append(AppendRequest(events, expected_seq), reply, now_ns, size))
        except BaseException:
            gate.leave(len(events), size)
            raise

    # -- the actor ----------------------------------------------------------------------------------------------

    def _open_gate(self) -> Gate:
        with self._starting:
            if self._gate is None:
                self._gate = Gate(self._id, self._runtime.limits, self._runtime.clock)
            return self._gate

    def _actor(self) -> ActorRef[Any]:
        ref = self._ref
        if ref is not None and ref.is_alive():
            return ref
        gate = self._open_gate()
        with self._starting:
            if self._ref is None or not self._ref.is_alive():
                self._runtime.check_usable()
                try:
                    self._ref = self._runtime.actors.start_session(self._id, gate, self._watermark)
                except RuntimeError as error:  # no thread for it
                    raise StorageRejected(session_id=self._id, reason=f"there is no actor: {error!r}") from error
            return self._ref

    def _tell(self, message: object) -> None:
        try:
            if self._ref is not None:
                self._ref.tell(message)
                return
        except ActorDeadError:
            pass  # it has given up: the next one takes the message, unless the runtime is closed
        try:
            self._actor().tell(message)
        except ActorDeadError:
            raise RuntimeClosed from None

    # -- reading ------------------------------------------------------------------------------------------------

    @property
    def last_seq(self) -> int:
        """Number of the last durable event, whoever wrote it; 0 when there is none."""
        self._runtime.check_usable()
        return self._runtime.store.last_seq(self._id)

    def read(
        self,
        from_seq: Position = 1,
        limit: int | None = None,
        job_id: str | None = None,
        *,
        halted_ok: bool = False,
    ) -> Iterator[Envelope]:
        """Iterate over the durable events from a number upwards, as of this call.

        Lazy: what lies before ``from_seq`` is not read, and what is not consumed is not either.

        Args:
            from_seq: first number wanted; 0 is the same as 1. An event of this session stands for its number.
            limit: at most so many events.
            job_id: only the events of this job.
            halted_ok: read a halted session too, and a damaged one up to the damage, where ``LogCorrupt`` is raised.

        Raises:
            CursorAhead: ``from_seq`` is beyond the number that comes next.
            SessionHalted, LogCorrupt, SchemaMismatch: at the call, or at the damaged place while iterating.
        """
        start = self._reads_from(from_seq, limit, job_id, halted_ok=halted_ok)
        events = self._runtime.store.read_envelopes(self._id, from_seq=start, halted_ok=halted_ok)
        return _selected(events, limit, job_id)

    def read_raw(
        self,
        from_seq: Position = 1,
        limit: int | None = None,
        job_id: str | None = None,
        *,
        halted_ok: bool = False,
    ) -> Iterator[RawEnvelope]:
        """Iterate as ``read`` does, leaving the payloads as the bytes that they are."""
        start = self._reads_from(from_seq, limit, job_id, halted_ok=halted_ok)
        events = self._runtime.store.read(self._id, from_seq=start, halted_ok=halted_ok)
        return _selected(events, limit, job_id)

    def _reads_from(self, from_seq: Position, limit: int | None, job_id: str | None, *, halted_ok: bool) -> int:
        self._runtime.check_usable()
        start = self._position("from_seq", from_seq)
        if limit is not None:
            _check_seq("limit", limit, 0)
        if job_id is not None:
            _check_name("job_id", job_id)
        if not halted_ok:
            self._check_not_ahead(start - 1)
        return start

    def page(self, before: Position | None = None, after: Position | None = None, limit: int = 50) -> Page:
        """Return one page of events: the newest, the ones right below ``before``, or the ones right above ``after``.

        Raises:
            CursorAhead: the position is beyond the log.
            ForeignCursor: the position is an event of another session.
            InvalidArgument: both are given, or a number is out of range.
        """
        self._runtime.check_usable()
        _check_seq("limit", limit, 0)
        if limit > self._runtime.limits.page_events_max:
            message = f"limit is at most {self._runtime.limits.page_events_max} (Limits.page_events_max), not {limit}"
            raise InvalidArgument(message)
        store = self._runtime.store
        if after is not None:
            if before is not None:
                message = "a page is before one position or after one, not both"
                raise InvalidArgument(message)
            start = self._position("after", after)
            self._check_not_ahead(start)
            found = list(itertools.islice(store.read(self._id, from_seq=start + 1), limit + 1))
            events = found[:limit]
        else:
            before_seq = None
            if before is not None:
                before_seq = self._position("before", before)
                self._check_not_ahead(before_seq - 1)
            found = list(itertools.islice(store.read_backwards(self._id, before_seq=before_seq), limit + 1))
            events = found[:limit][::-1]
        return Page(events=tuple(event.decode() for event in events), has_more=0 < limit < len(found))

    def _position(self, name: str, value: Position) -> int:
        if isinstance(value, Envelope):
            if value.session_id != self._id or value.event_seq is None:
                raise ForeignCursor(session_id=self._id, cursor_session_id=value.session_id)
            return value.event_seq
        return _check_seq(name, value, 0)

    def _check_not_ahead(self, seq: int) -> None:
        """Refuse a number of which the log knows nothing: an empty answer would pass for "nothing new"."""
        store = self._runtime.store
        last_seq = store.last_seq(self._id)
        if seq > last_seq and seq >= store.info(self._id).next_seq:
            halt = store.halted(self._id)
            if halt is not None:  # how far the log goes is not known before it is repaired
                raise SessionHalted(session_id=self._id, reason=halt.reason, halted_at=halt.at)
            raise CursorAhead(session_id=self._id, cursor=seq, last_seq=last_seq)

    def subscribe(
        self, from_seq: Position | None = None, job_id: str | None = None, *, control: bool = False
    ) -> Subscription:
        """Follow the session: every event from a number on, in order, each once, however slow the reader is.

        Args:
            from_seq: first number wanted (0 is the same as 1); None for what is appended from now on.
            job_id: only the events of this job.
            control: control envelopes too: those of the job, if one is given, and those of no job.

        Raises:
            CursorAhead: ``from_seq`` is beyond the number that comes next.
        """
        self._runtime.check_usable()
        last_seq = self._runtime.store.last_seq(self._id)
        if from_seq is None:
            next_seq = last_seq + 1
        else:
            next_seq = max(1, self._position("from_seq", from_seq))
            self._check_not_ahead(next_seq - 1)
        if job_id is not None:
            _check_name("job_id", job_id)
        return self.follow(next_seq, job_id, control=control)

    def follow(
        self,
        next_seq: int,
        job_id: str | None = None,
        *,
        control: bool = False,
        limits: Limits | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> Subscription:
        """Follow as ``subscribe`` does, for a reader that polls with a timeout of 0 between other work.

        Args:
            next_seq: the first number wanted, which the caller knows to be within the log or right behind it.
            job_id: only the events of this job.
            control: control envelopes too.
            limits: bounds of this subscription's queue, if not the runtime's.
            on_change: called whenever there may be something to read, in an actor's turn: it must not block.
        """
        subscription = Subscription(
            session_id=self._id,
            store=self._runtime.store,
            next_seq=next_seq,
            job_id=job_id,
            control=control,
            limits=limits or self._runtime.limits,
            clock=self._runtime.clock,
            log=self._runtime.log,
            on_close=self._unsubscribe,
            check_process=self._runtime.check_process,
            on_change=on_change,
        )
        # Registered first, then told how far the log goes: what becomes durable in between is in one or the other.
        self._tell(Subscribe(subscription))
        self._runtime.watch(self._id)
        subscription.note_last_seq(self._runtime.store.last_seq(self._id))
        return subscription

    def _unsubscribe(self, subscription: Subscription) -> None:
        self._runtime.unwatch(self._id)
        try:
            self._actor_if_alive(Unsubscribe(subscription))
        except ActorDeadError:
            return  # the runtime was closed, and the subscription with it

    def _actor_if_alive(self, message: object) -> None:
        if self._ref is not None:
            self._ref.tell(message)

    def wait_for(self, seq: int, timeout: float | None = None) -> None:
        """Wait until event ``seq`` is durable, whoever appends it.

        Raises:
            WaitTimeout: a ``TimeoutError``: it was not within ``timeout`` seconds.
            InvalidArgument: ``seq`` is not a number of an event, or ``timeout`` not one of seconds.
        """
        self._runtime.check_usable()
        _check_seq("seq", seq, 0)
        timeout = check_timeout(timeout)
        refuse_in_turn("wait_for()")
        self._watermark.rise(self._runtime.store.last_seq(self._id))
        if self._watermark.seq >= seq:
            return
        self._runtime.watch(self._id)
        try:
            if not self._watermark.wait_for(seq, timeout):
                self._runtime.check_usable()
                raise WaitTimeout(session_id=self._id, what=f"event {seq}", timeout_s=timeout or 0)
        finally:
            self._runtime.unwatch(self._id)

    def observed(self, last_seq: int) -> None:
        """Learn from the watcher how far the log goes."""
        if last_seq <= self._watermark.seq:
            return
        ref = self._ref
        if ref is None:
            self._watermark.rise(last_seq)
            return
        try:
            ref.tell(Observed(last_seq))
        except ActorDeadError:
            return  # closing

    # -- the end ------------------------------------------------------------------------------------------------

    def drain(self, deadline: float) -> bool:
        """Accept nothing more and wait until all that was accepted is answered; False at the (monotonic) deadline."""
        gate = self._gate
        if gate is None:
            return True
        gate.close()
        return gate.wait_empty(deadline)

    def stop(self) -> None:
        """Stop the session's actors, after what they were told before."""
        self._watermark.end()
        with self._starting:
            ref = self._ref
        if ref is not None:
            try:
                ref.stop(block=True, timeout=self._runtime.limits.close_wait_s)
            except Timeout:
                self._runtime.log.error("session_stop_timed_out", session=self._id)

    # -- jobs ---------------------------------------------------------------------------------------------------

    def jobs(self) -> list[JobMark]:
        """Return the mark of every job of the session, in the order of their first events.

        Raises:
            SessionHalted, LogCorrupt, SchemaMismatch: the marks cannot be derived from the log.
        """
        return self._marks(None)

    def job(self, job_id: str) -> Job:
        """Return a job of this session; it need not have events yet."""
        return Job(self, _check_name("job_id", job_id), lambda name: self._marks(name)[0])

    def _marks(self, job_id: str | None) -> list[JobMark]:
        refuse_in_turn("jobs()")
        future: Future[list[JobMark]] = Future()

        def answer(marks: list[JobMark] | LogmarkError) -> None:
            if isinstance(marks, LogmarkError):
                future.set_exception(marks)
            else:
                future.set_result(marks)

        self.ask_marks(job_id, answer)
        return future.result()

    def ask_marks(self, job_id: str | None, answer: Callable[[list[JobMark] | LogmarkError], None]) -> None:
        """Ask for the marks of all jobs, or of one, without waiting: ``answer`` is called once, in an actor's turn."""
        self._tell(GetMarks(self.last_seq, job_id, answer))

    def __repr__(self) -> str:
        return f"<Session {self._id!r}>"


def _selected(events: Iterator[E], limit: int | None, job_id: str | None) -> Iterator[E]:
    if job_id is not None:
        events = (event for event in events if event.job_id == job_id)
    return events if limit is None else itertools.islice(events, limit)


def _check_seq(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= SEQ_MAX:
        message = f"{name} must be an integer of {least} to {SEQ_MAX}, not {value!r}"
        raise InvalidArgument(message)
    return value


def _check_name(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        message = f"{name} must be non-empty text, not {value!r}"
        raise InvalidArgument(message)
    return value
