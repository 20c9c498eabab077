"""Reading a session: history, pages, and following it live."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TypeVar

from pykka import ActorDeadError

from ._checks import check_name, check_seq
from ._cursor import Cursor
from ._page import Page
from ._session_cursors import SessionCursors
from ._subscription import Subscription, check_timeout
from .actors import refuse_in_turn
from .actors.messages import Subscribe, Unsubscribe
from .protocol import (
    SEQ_MAX,
    CursorAhead,
    Envelope,
    ForeignCursor,
    InvalidArgument,
    Limits,
    RawEnvelope,
    SessionHalted,
    WaitTimeout,
)

__all__ = ["Position", "SessionReading"]

E = TypeVar("E", Envelope, RawEnvelope)

Position = int | Envelope
"""A place in a session: a number, or an event of that session."""


class SessionReading(SessionCursors):
    """The reading half of a session."""

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
            SeqPruned: at the call, ``from_seq`` was pruned; or while iterating, what comes next was meanwhile.
            SessionDeleted: at the call, or while iterating.
            SessionHalted, LogCorrupt, SchemaMismatch: at the call, or at the damaged place while iterating.
        """
        start = self._reads_from(from_seq, limit, job_id, halted_ok=halted_ok)
        events = self._runtime.store.read_envelopes(self._id, from_seq=start, halted_ok=halted_ok)
        return _selected(self._runtime.upcasters.all_typed(events), limit, job_id)

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
            check_seq("limit", limit, 0)
        if job_id is not None:
            check_name("job_id", job_id)
        if not halted_ok:
            self._check_not_ahead(start - 1)
        return start

    def page(self, before: Position | None = None, after: Position | None = None, limit: int = 50) -> Page:
        """Return one page of events: the newest, the ones right below ``before``, or the ones right above ``after``.

        Raises:
            CursorAhead: the position is beyond the log.
            SeqPruned: what comes right above ``after`` was pruned; downwards, a page ends with what there is.
            SessionDeleted: the session was deleted.
            ForeignCursor: the position is an event of another session.
            InvalidArgument: both are given, or a number is out of range.
        """
        self._runtime.check_usable()
        check_seq("limit", limit, 0)
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
        return Page(events=tuple(map(self._typed, events)), has_more=0 < limit < len(found))

    def _typed(self, event: RawEnvelope) -> Envelope:
        return self._runtime.upcasters.typed(event.decode())

    def _position(self, name: str, value: Position) -> int:
        if isinstance(value, Envelope):
            if value.session_id != self._id or value.event_seq is None:
                raise ForeignCursor(session_id=self._id, cursor_session_id=value.session_id)
            return value.event_seq
        return check_seq(name, value, 0)

    def _check_not_ahead(self, seq: int) -> None:
        """Refuse a number of which the log knows nothing: an empty answer would pass for "nothing new"."""
        store = self._runtime.store
        last_seq = store.last_seq(self._id)
        if seq > last_seq and seq >= store.info(self._id).next_seq:
            halt = store.halted(self._id)
            if halt is not None:  # how far the log goes is not known before it is repaired
                raise SessionHalted(session_id=self._id, reason=halt.reason, halted_at=halt.at)
            raise CursorAhead(session_id=self._id, cursor=seq, last_seq=last_seq)

    def _check_readable(self, seq: int) -> None:
        """Refuse a number below the first that is available, and any of a deleted session; no event is read."""
        self._runtime.store.read(self._id, from_seq=seq, through_seq=0, halted_ok=True)

    def subscribe(
        self,
        from_seq: Position | None = None,
        job_id: str | None = None,
        *,
        control: bool = False,
        cursor: str | Cursor | None = None,
        coalesce: bool = False,
    ) -> Subscription:
        """Follow the session: every event from a number on, in order, each once, however slow the reader is.

        Args:
            from_seq: first number wanted (0 is the same as 1); None for what is appended from now on.
            job_id: only the events of this job.
            control: control envelopes too: those of the job, if one is given, and those of no job.
            cursor: go on behind the last event that was acknowledged (``Cursor.ack``), in whatever process: from the
                first, when none was. What was seen and not acknowledged comes again, under the same number.
            coalesce: of the changes of one row that wait for this reader, leave out those that a later one replaces;
                the event that creates a row, its final ones and all that is no change of a row are there.
                ``Subscription.coalesced`` counts what was left out, and the numbers show where.

        Raises:
            CursorAhead: ``from_seq`` is beyond the number that comes next, or the cursor beyond the log.
            StaleCursor: the cursor is of another log.
            SeqPruned: ``from_seq``, or what comes behind the cursor, was pruned; it says where there is something.
            SessionDeleted: the session was deleted.
            ForeignCursor: the cursor, or the event given for its number, is of another session.
            InvalidArgument: a number and a cursor were given, or one that is out of range.
        """
        self._runtime.check_usable()
        last_seq = self._runtime.store.last_seq(self._id)
        if cursor is not None:
            if from_seq is not None:
                raise InvalidArgument("a subscription starts from a number or from a cursor, not both")
            next_seq = self._own_cursor(cursor).next_seq()
        elif from_seq is None:
            next_seq = last_seq + 1
        else:
            next_seq = max(1, self._position("from_seq", from_seq))
            self._check_not_ahead(next_seq - 1)
        if job_id is not None:
            check_name("job_id", job_id)
        self._check_readable(SEQ_MAX if from_seq is None else next_seq)
        return self.follow(next_seq, job_id, control=control, coalesce=coalesce)

    def follow(
        self,
        next_seq: int,
        job_id: str | None = None,
        *,
        control: bool = False,
        coalesce: bool = False,
        limits: Limits | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> Subscription:
        """Follow as ``subscribe`` does, for a reader that polls with a timeout of 0 between other work.

        Args:
            next_seq: the first number wanted, which the caller knows to be within the log or right behind it.
            job_id: only the events of this job.
            control: control envelopes too.
            coalesce: as for ``subscribe``.
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
            tracing=self._runtime.tracing,
            coalesce=coalesce,
            upcasters=self._runtime.upcasters,
        )
        self._runtime.follow(subscription)
        # Registered first, then told how far the log goes: what becomes durable in between is in one or the other.
        self._tell(Subscribe(subscription))
        self._runtime.watch(self._id)
        subscription.note_last_seq(self._runtime.store.last_seq(self._id))
        if self._deleted is not None:  # since it was last looked at
            subscription.end(self._deleted)
        return subscription

    def _unsubscribe(self, subscription: Subscription) -> None:
        self._runtime.unfollow(subscription)
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
        check_seq("seq", seq, 0)
        timeout = check_timeout(timeout)
        refuse_in_turn("wait_for()")
        self._watermark.rise(self._runtime.store.last_seq(self._id))
        if self._watermark.seq >= seq:
            return
        self._check_readable(SEQ_MAX)
        self._runtime.watch(self._id)
        try:
            if not self._watermark.wait_for(seq, timeout):
                self._runtime.check_usable()
                if self._deleted is not None:
                    raise self._deleted
                raise WaitTimeout(session_id=self._id, what=f"event {seq}", timeout_s=timeout or 0)
        finally:
            self._runtime.unwatch(self._id)


def _selected(events: Iterator[E], limit: int | None, job_id: str | None) -> Iterator[E]:
    if job_id is not None:
        events = (event for event in events if event.job_id == job_id)
    return events if limit is None else itertools.islice(events, limit)
