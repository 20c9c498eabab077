"""How much of a session has to be kept: by age, and by what its readers have acknowledged."""

from __future__ import annotations

import datetime as dt

from ._cursor import cursor_marks
from .protocol import InvalidArgument
from .storage import EventStore

__all__ = ["cutoff_of", "first_kept_seq"]


def cutoff_of(keep_days: object, now: dt.datetime) -> dt.datetime:
    """Return the moment that is so many days ago.

    Raises:
        InvalidArgument: no number of days, or one that reaches before the calendar.
    """
    if isinstance(keep_days, bool) or not isinstance(keep_days, int | float) or not keep_days >= 0:
        message = f"keep_days is a number of days, 0 or more, not {keep_days!r}"
        raise InvalidArgument(message)
    try:
        return now - dt.timedelta(days=keep_days)
    except OverflowError:
        message = f"keep_days reaches before the calendar: {keep_days!r}"
        raise InvalidArgument(message) from None


def first_kept_seq(store: EventStore, session_id: str, *, older_than: dt.datetime | None, acked: bool) -> int:
    """Return the first number that has to be kept; everything below it may go.

    What both conditions are given for has to meet both. Only a beginning is ever given up: the first event that has to
    be kept keeps all that follow, whatever times producers have given them.

    Args:
        store: the store.
        session_id: the session.
        older_than: events from this moment on are kept, and those without a time; None: age does not matter.
        acked: events that some durable cursor of the session has not acknowledged are kept; without any cursor, all.

    Raises:
        SessionHalted, SessionDeleted, LogCorrupt, SchemaMismatch: the log cannot be read.
    """
    info = store.info(session_id)
    first, end = info.first_available, info.next_seq
    if acked:
        marks = cursor_marks(store, session_id)
        end = min([mark.position + 1 for mark in marks], default=first)
    if end <= first:
        return first
    if older_than is None:
        return end
    for event in store.read(session_id, from_seq=first, through_seq=end - 1):
        moment = event.timestamp
        if moment is None or moment >= older_than:
            return event.event_seq or first
    return end
