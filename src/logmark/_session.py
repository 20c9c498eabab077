"""A session as the embedding program sees it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from ._checks import check_name, check_seq
from ._job import Job
from ._replies import BlockingReply, FutureReply, RangeReply
from ._session_lifetime import SessionLifetime
from ._tracing import Tracing
from .actors import AppendSpan, CallerLane, refuse_in_turn
from .actors.messages import Append, AppendReply, GetMarks, Send
from .protocol import (
    SEQ_MAX,
    EncodedEvent,
    Envelope,
    InvalidArgument,
    JobMark,
    LogmarkError,
    NotControl,
    new_tuple,
    versioned,
)
from .storage import Appended, AppendRequest

__all__ = ["Session"]

EventLike = Envelope | tuple[str, Any]
_CALM_S_MAX = 0.05  # a commit that took longer is not one to hold a Ctrl-C for


class Session(SessionLifetime):
    """One ordered, durable stream of events. Safe from any thread; made by ``Runtime.session``."""

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
        type_version: int = 1,
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
            type_version: the version of the payload, for ``Runtime.upcaster``.

        Raises:
            InvalidEvent: the event cannot be stored as it is.
            WrongExpectedSeq, EventIdConflict, SequenceExhausted: the log says no.
            Overloaded, LockTimeout: a deadline has passed (``Limits.inbox_wait_s``, ``lock_wait_s``).
            StorageRejected: the disk said no, and the write was rolled back.
            SessionSealed, SessionDeleted: the session takes nothing any more.
            SessionHalted, LogCorrupt, SchemaMismatch: the session takes nothing until it is repaired.
            AppendUncertain: nobody knows whether it was written; the session is halted.
            RuntimeClosed, ForkedRuntime: there is no runtime here.
        """
        refuse_in_turn("append()")
        if type_version != 1:
            extensions = versioned(extensions, type_version)
        tracing = self._runtime.tracing
        if tracing is None:
            event, now_ns = self._encode(type, payload, job_id, id, source, stream_seq, trace_id, timestamp, extensions)
            return self._append((event,), expected_seq, now_ns).first_seq
        with Tracing(tracing, self._id, (type,), trace_id) as traced:
            extensions, trace_id = traced.extensions(extensions, trace_id), traced.trace_id(trace_id)
            event, now_ns = self._encode(type, payload, job_id, id, source, stream_seq, trace_id, timestamp, extensions)
            return traced.answered(self._append((event,), expected_seq, now_ns, traced.span)).first_seq

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
        type_version: int = 1,
    ) -> Future[int]:
        """Append one event without waiting: the future's result is its ``event_seq``, once it is on disk.

        Events are stored in the order in which one thread submits them. The call itself raises what is wrong with the
        event, and waits while the session's inbox is full; everything else that ``append`` raises is the future's
        exception. Cancelling the future works until the event is handed to the disk, and then nothing is written.
        """
        if type_version != 1:
            extensions = versioned(extensions, type_version)
        reply = FutureReply()
        tracing = self._runtime.tracing
        if tracing is None:
            event, now_ns = self._encode(type, payload, job_id, id, source, stream_seq, trace_id, timestamp, extensions)
            self._submit((event,), expected_seq, reply, now_ns)
            return reply
        with Tracing(tracing, self._id, (type,), trace_id) as traced:
            extensions, trace_id = traced.extensions(extensions, trace_id), traced.trace_id(trace_id)
            event, now_ns = self._encode(type, payload, job_id, id, source, stream_seq, trace_id, timestamp, extensions)
            traced.answered_by(reply)
            self._submit((event,), expected_seq, reply, now_ns, traced.span)
        return reply

    def upsert(
        self,
        row_id: str,
        type: str,
        payload: Any = None,
        *,
        final: bool = False,
        job_id: str | None = None,
        id: str | None = None,
        expected_seq: int | None = None,
        source: Any = None,
        stream_seq: int | None = None,
        trace_id: str | None = None,
        timestamp: dt.datetime | str | None = None,
        extensions: Mapping[str, Any] | None = None,
        type_version: int = 1,
    ) -> int:
        """Create a row, or replace its content, and return the ``event_seq`` of this change once it is on disk.

        The change is an event as any other, with ``payload`` as the whole content of the row; what else is given is as
        for ``append``. The row's position is the number of the event that created it, and stays; ``rows`` and ``row``
        show it with this content from now on. When two threads or processes create one row at the same time, the first
        one does and the other changes it.

        With ``final=True``, the content is said to be complete: readers who let changes be left out
        (``subscribe(coalesce=True)``) get every such change. The row may be changed again all the same.

        Raises:
            InvalidEvent: ``row_id`` is not non-empty text of at most ``Limits.name_bytes_max`` bytes, or the event
                cannot be stored as it is.
            AppendError: as for ``append``.
        """
        refuse_in_turn("upsert()")
        self._runtime.check_usable()
        seq = self.append(
            type,
            payload,
            job_id=job_id,
            id=id,
            expected_seq=expected_seq,
            source=source,
            stream_seq=stream_seq,
            trace_id=trace_id,
            timestamp=timestamp,
            extensions=self.row_fields(row_id, extensions, final=final),
            type_version=type_version,
        )
        self.upserted(seq)
        return seq

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
        tracing = self._runtime.tracing
        if tracing is not None and (events := list(events)):
            with Tracing.of_many(tracing, self._id, events) as traced:
                encoded, now_ns = self._runtime.encode_many(map(traced.envelope, events))
                answer = traced.answered(self._append(encoded, expected_seq, now_ns, traced.span))
            return answer.first_seq, answer.last_seq
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
        reply = RangeReply()
        tracing = self._runtime.tracing
        if tracing is not None and (events := list(events)):
            with Tracing.of_many(tracing, self._id, events) as traced:
                encoded, now_ns = self._runtime.encode_many(map(traced.envelope, events))
                traced.answered_by(reply)
                self._submit(encoded, expected_seq, reply, now_ns, traced.span)
            return reply
        encoded, now_ns = self._runtime.encode_many(events)
        if not encoded:
            raise InvalidArgument("submit_many needs at least one event")
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

    def _append(
        self, events: tuple[EncodedEvent, ...], expected_seq: int | None, now_ns: int, span: AppendSpan | None = None
    ) -> Appended:
        """Submit and wait; a caller who is alone gives the turns himself."""
        reply = BlockingReply()
        gate = self._gate
        if gate is not None and gate.is_calm(_CALM_S_MAX):
            lane = CallerLane.open(is_local=self._runtime.store.is_local)
            if lane is not None:
                with lane:
                    self._submit(events, expected_seq, reply, now_ns, span)
                    lane.give_turns(reply.is_settled)
                return reply.wait()
        self._submit(events, expected_seq, reply, now_ns, span)
        return reply.wait()

    def hand_in(
        self,
        events: tuple[EncodedEvent, ...],
        expected_seq: int | None,
        reply: AppendReply,
        now_ns: int,
        span: AppendSpan | None = None,
    ) -> bool:
        """Submit encoded events without ever waiting: False when the inbox has no place for them (``when_room``).

        For callers that must not block, such as event loops; otherwise as ``submit_many``, with a reply of one's own.
        """
        return self._submit(events, expected_seq, reply, now_ns, span, may_wait=False)

    def when_room(self, told: Callable[[], None]) -> None:
        """Have ``told`` called once, in any thread, when there is room in the inbox again; see ``Gate.when_room``."""
        (self._gate or self._open_gate()).when_room(told)

    def _submit(
        self,
        events: tuple[EncodedEvent, ...],
        expected_seq: int | None,
        reply: AppendReply,
        now_ns: int,
        span: AppendSpan | None = None,
        *,
        may_wait: bool = True,
    ) -> bool:
        if expected_seq is not None:
            check_seq("expected_seq", expected_seq, 0)
        gate = self._gate or self._open_gate()
        size = (
            events[0].size_bytes
            if len(events) == 1
            else sum([len(event.head) + len(event.payload_json) for event in events])
        )
        if may_wait:
            try:
                gate.enter(len(events), size)
            except LogmarkError as error:
                if self._runtime.instruments is not None:
                    self._runtime.instruments.append_refused(error)
                raise
        elif not gate.try_enter(len(events), size):
            return False
        try:
            request = new_tuple(AppendRequest, (events, expected_seq))
            self._tell(new_tuple(Append, (request, reply, now_ns, size, span)))
        except BaseException:
            gate.withdraw(len(events), size)
            raise
        return True

    # -- jobs ---------------------------------------------------------------------------------------------------

    def jobs(self) -> list[JobMark]:
        """Return the mark of every job of the session, in the order of their first events, also of pruned ones.

        Raises:
            SessionDeleted: the session was deleted.
            SessionHalted, LogCorrupt, SchemaMismatch: the marks cannot be derived from the log.
        """
        return self._marks(None)

    def job(self, job_id: str) -> Job:
        """Return a job of this session; it need not have events yet."""
        return Job(self, check_name("job_id", job_id), lambda name: self._marks(name)[0])

    def _marks(self, job_id: str | None) -> list[JobMark]:
        refuse_in_turn("jobs()")
        future: Future[list[JobMark]] = Future()

        def answer(marks: list[JobMark] | LogmarkError) -> None:
            if isinstance(marks, LogmarkError):
                future.set_exception(marks)
            else:
                future.set_result(marks)

        self.ask_marks(job_id, answer)
        marks = future.result()
        self._check_readable(SEQ_MAX)  # marks in memory outlive it when another process has deleted it
        return marks

    def ask_marks(self, job_id: str | None, answer: Callable[[list[JobMark] | LogmarkError], None]) -> None:
        """Ask for the marks of all jobs, or of one, without waiting: ``answer`` is called once, in an actor's turn."""
        self._tell(GetMarks(self.last_seq, job_id, answer))

    def __repr__(self) -> str:
        return f"<Session {self._id!r}>"
