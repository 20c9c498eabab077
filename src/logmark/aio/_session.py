"""A session, from an event loop."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from .._checks import check_name, check_seq
from .._cursor import CursorMark
from .._page import Page
from .._rows import Row, RowPage
from .._session import Session
from .._subscription import check_timeout
from .._tracing import Tracing
from ..actors import AppendSpan
from ..protocol import (
    EncodedEvent,
    Envelope,
    JobMark,
    LogmarkError,
    Overloaded,
    SubscriptionClosed,
    WaitTimeout,
    versioned,
)
from ..storage import Appended
from ._bridge import Bridge, finish
from ._cancelled import CancelledAppend, LoopReply, note_cancelled
from ._cursor import AsyncCursor
from ._job import AsyncJob
from ._reading import AsyncEvents
from ._subscription import AsyncSubscription

if TYPE_CHECKING:
    from ._runtime import AsyncRuntime

__all__ = ["AsyncSession"]

T = TypeVar("T")

EventLike = Envelope | tuple[str, Any]
Position = int | Envelope
_ENCODED_HERE_MAX = 64  # more of them are encoded by a thread


class AsyncSession:
    """One ordered, durable stream of events; ``Session``, from an event loop. Made by ``AsyncRuntime.session``.

    Events that one task appends one after the other are numbered in that order; those of tasks that run side by side
    in the order in which they reached the session.
    """

    def __init__(self, runtime: AsyncRuntime, session: Session) -> None:
        self.runtime = runtime
        self.session = session
        """The session itself, for whatever does not block."""
        self._bridges = runtime.bridges

    @property
    def session_id(self) -> str:
        """The id that the session was opened by."""
        return self.session.session_id

    # -- appending ----------------------------------------------------------------------------------------------

    async def append(
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
        """Append one event and return its ``event_seq`` once it is on disk; as ``Session.append``.

        While the session's inbox is full it waits, up to ``Limits.inbox_wait_s``, without a thread.

        Raises:
            AppendError: as ``Session.append``.
            CancelledError: the caller was cancelled; ``cancelled_append(error)`` says whether the event was written.
        """
        if type_version != 1:
            extensions = versioned(extensions, type_version)
        event: EventLike = (type, payload)
        if (job_id, id, source, stream_seq, trace_id, timestamp, extensions) != (None,) * 7:
            event = Envelope(
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
        return (await self._append([event], expected_seq)).first_seq

    async def upsert(
        self,
        row_id: str,
        type: str,
        payload: Any = None,
        *,
        final: bool = False,
        extensions: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> int:
        """Create a row, or replace its content, and return the ``event_seq`` of this change once it is on disk.

        As ``Session.upsert``; ``options`` are the further arguments of ``append``.
        """
        fields = await self._run(lambda: self.session.row_fields(row_id, extensions, final=final))
        seq = await self.append(type, payload, extensions=fields, **options)
        self.session.upserted(seq)
        return seq

    async def append_many(self, events: Iterable[EventLike], *, expected_seq: int | None = None) -> tuple[int, int]:
        """Append several events with contiguous numbers, all or none; return first and last number.

        As ``Session.append_many``. More than a few are encoded by a thread: leave their payloads as they are until it
        returns.

        Raises:
            InvalidEvent: one of the events cannot be stored; none of them is.
            AppendError, CancelledError: as ``append``.
        """
        given = list(events)
        if not given:
            last_seq = await self.last_seq()
            return last_seq + 1, last_seq
        answer = await self._append(given, expected_seq)
        return answer.first_seq, answer.last_seq

    async def _append(self, events: list[EventLike], expected_seq: int | None) -> Appended:
        tracing = self.runtime.runtime.tracing
        if tracing is None:
            return await self._submit(await self._encoded(events), expected_seq)
        with Tracing.of_many(tracing, self.session_id, events) as traced:
            encoded = await self._encoded([traced.envelope(event) for event in events])
            return traced.answered(await self._submit(encoded, expected_seq, traced.span))

    async def _encoded(self, events: list[EventLike]) -> tuple[tuple[EncodedEvent, ...], int]:
        runtime = self.runtime.runtime
        if len(events) <= _ENCODED_HERE_MAX:
            return runtime.encode_many(events)
        runtime.check_usable()
        return await self._bridges.run(lambda: runtime.encode_many(events))

    async def _submit(
        self, encoded: tuple[tuple[EncodedEvent, ...], int], expected_seq: int | None, span: AppendSpan | None = None
    ) -> Appended:
        events, now_ns = encoded
        bridge = self._bridges.here()
        reply = LoopReply(bridge)

        def hand_in() -> bool:
            return self.session.hand_in(events, expected_seq, reply, now_ns, span)

        try:
            room = bridge.rooms.get(self.session_id)
            if (room is not None and room.waiting) or not hand_in():
                await self._wait_for_room(bridge, hand_in)
            return await reply.wait()
        except asyncio.CancelledError as error:
            reply.withdraw()
            note_cancelled(error, CancelledAppend(self.session_id, tuple(event.id for event in events), reply))
            raise

    async def _wait_for_room(self, bridge: Bridge, hand_in: Callable[[], bool]) -> None:
        """Hand in as soon as the session's inbox has the places, behind those of this loop that came before."""
        session, limits = self.session, self.runtime.runtime.limits
        room = bridge.room(self.session_id)
        room.waiting += 1
        try:
            async with asyncio.timeout(limits.inbox_wait_s), room.turn:
                while True:
                    waiter: asyncio.Future[None] = bridge.loop.create_future()
                    session.when_room(functools.partial(_tell, bridge, waiter))
                    if hand_in():  # it may have come free before anybody was to tell
                        return
                    await waiter
        except TimeoutError as error:
            waiting = 0 if session.gate is None else session.gate.events
            refusal = Overloaded(session_id=self.session_id, waited_s=limits.inbox_wait_s, waiting_events=waiting)
            if self.runtime.runtime.instruments is not None:
                self.runtime.runtime.instruments.append_refused(refusal)
            raise refusal from error
        finally:
            room.waiting -= 1
            if not room.waiting:
                bridge.rooms.pop(self.session_id, None)

    def send(self, type: str, payload: Any = None, **options: Any) -> None:
        """Pass a control envelope to the subscribers that asked for them; it does not wait. See ``Session.send``."""
        self.session.send(type, payload, **options)

    # -- reading ------------------------------------------------------------------------------------------------

    async def last_seq(self) -> int:
        """Return the number of the last durable event, whoever wrote it; 0 when there is none."""
        return await self._run(lambda: self.session.last_seq)

    async def first_seq(self) -> int:
        """Return the smallest number that can be asked for; see ``Session.first_seq``."""
        return await self._run(lambda: self.session.first_seq)

    def read(
        self,
        from_seq: Position = 1,
        limit: int | None = None,
        job_id: str | None = None,
        *,
        halted_ok: bool = False,
    ) -> AsyncEvents:
        """Iterate over the durable events from a number upwards, as of the first step; see ``Session.read``."""
        return AsyncEvents(self._bridges, lambda: self.session.read(from_seq, limit, job_id, halted_ok=halted_ok))

    async def page(self, before: Position | None = None, after: Position | None = None, limit: int = 50) -> Page:
        """Return one page of events; see ``Session.page``."""
        return await self._run(lambda: self.session.page(before, after, limit))

    async def rows(self, before: int | Row | None = None, after: int | Row | None = None, limit: int = 50) -> RowPage:
        """Return one page of rows; see ``Session.rows``."""
        return await self._run(lambda: self.session.rows(before, after, limit))

    async def row(self, row_id: str) -> Row | None:
        """Return a row as it is now, or None when there is none of that id; see ``Session.row``."""
        return await self._run(lambda: self.session.row(row_id))

    async def cursor(self, name: str) -> AsyncCursor:
        """Return the cursor of that name; see ``Session.cursor``."""
        return AsyncCursor(self._bridges, await self._run(lambda: self.session.cursor(name)))

    async def cursors(self) -> list[CursorMark]:
        """Return how far each cursor of the session has come; see ``Session.cursors``."""
        return await self._run(self.session.cursors)

    async def delete_cursor(self, name: str) -> bool:
        """Remove a cursor durably; False when there is none of that name."""
        return await self._run(lambda: self.session.delete_cursor(name))

    def subscribe(
        self,
        from_seq: Position | None = None,
        job_id: str | None = None,
        *,
        control: bool = False,
        cursor: str | AsyncCursor | None = None,
        coalesce: bool = False,
    ) -> AsyncSubscription:
        """Follow the session: every event from a number on, in order, each once; see ``Session.subscribe``.

        ``async with session.subscribe() as events`` has it open from there on; otherwise it is opened when the first
        event is asked for.
        """
        start = cursor.cursor if isinstance(cursor, AsyncCursor) else cursor
        return AsyncSubscription(
            self._bridges,
            self.session_id,
            lambda: self.session.subscribe(from_seq, job_id, control=control, cursor=start, coalesce=coalesce),
        )

    async def wait_for(self, seq: int, timeout: float | None = None) -> None:
        """Wait until event ``seq`` is durable, whoever appends it; no thread waits.

        Raises:
            WaitTimeout: it was not within ``timeout`` seconds.
            InvalidArgument: ``seq`` is not a number of an event, or ``timeout`` not one of seconds.
            RuntimeClosed: the runtime was closed first.
        """
        check_seq("seq", seq, 0)
        timeout = check_timeout(timeout)
        limits = dataclasses.replace(self.runtime.runtime.limits, subscriber_events_max=1, subscriber_bytes_max=1)
        # Hardly any room: it is never read, and only how far the log goes counts.
        watching = AsyncSubscription(self._bridges, self.session_id, lambda: self.session.follow(seq, limits=limits))
        if await self.last_seq() >= seq:
            return
        try:
            async with watching:
                await watching.reach(timeout)
        except SubscriptionClosed:
            self.runtime.runtime.check_usable()
            raise
        except WaitTimeout:
            raise WaitTimeout(session_id=self.session_id, what=f"event {seq}", timeout_s=timeout or 0) from None

    # -- its lifetime -------------------------------------------------------------------------------------------

    async def truncate_before(self, seq: int) -> int:
        """Remove the events below a number, durably; see ``Session.truncate_before``."""
        return await self._run(lambda: self.session.truncate_before(seq))

    async def prune(self, *, keep_days: float | None = None, acked: bool = False) -> int:
        """Remove events by age, or those that every cursor has acknowledged; see ``Session.prune``."""
        return await self._run(lambda: self.session.prune(keep_days=keep_days, acked=acked))

    async def seal(self) -> int:
        """Refuse further events for good; see ``Session.seal``."""
        return await self._run(self.session.seal)

    # -- jobs ---------------------------------------------------------------------------------------------------

    async def jobs(self) -> list[JobMark]:
        """Return the mark of every job of the session, in the order of their first events; see ``Session.jobs``."""
        return await self.marks(None)

    def job(self, job_id: str) -> AsyncJob:
        """Return a job of this session; it need not have events yet."""
        return AsyncJob(self, check_name("job_id", job_id))

    async def marks(self, job_id: str | None) -> list[JobMark]:
        """Return the marks of all jobs, or of one; no thread waits while they are derived."""
        bridge = self._bridges.here()
        found: asyncio.Future[list[JobMark]] = bridge.loop.create_future()

        def answer(marks: list[JobMark] | LogmarkError) -> None:
            bridge.post(lambda: _give(found, marks))

        await self._run(lambda: self.session.ask_marks(job_id, answer))
        return await found

    async def _run(self, call: Callable[[], T]) -> T:
        self.runtime.runtime.check_usable()
        return await self._bridges.run(call)

    def __repr__(self) -> str:
        return f"<AsyncSession {self.session_id!r}>"


def _tell(bridge: Bridge, waiter: asyncio.Future[None]) -> None:
    bridge.post(lambda: finish(waiter))


def _give(found: asyncio.Future[list[JobMark]], marks: list[JobMark] | LogmarkError) -> None:
    if found.done():
        return
    if isinstance(marks, LogmarkError):
        found.set_exception(marks)
    else:
        found.set_result(marks)
