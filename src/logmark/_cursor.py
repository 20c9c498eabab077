"""Durable cursors: how far a reader has come, kept beside the log."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import TYPE_CHECKING, Any

import orjson

from ._checks import check_name, check_seq
from .protocol import (
    CursorAhead,
    Envelope,
    ForeignCursor,
    InvalidArgument,
    RecordChanged,
    SchemaMismatch,
    SeqPruned,
    StaleCursor,
)
from .storage import EventStore, Record, rfc3339

if TYPE_CHECKING:
    from ._runtime import Runtime

__all__ = ["Cursor", "CursorMark", "cursor_marks", "delete_cursor"]

_PREFIX = "cursor:"
_NAME_BYTES_MAX = 200 - len(_PREFIX)
_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CursorMark:
    """How far a cursor has come.

    Attributes:
        position: number of the last event that was acknowledged, 0 when none was.
        lag: how many numbers the log is ahead of it; 0 also when the cursor is ahead, which ``Session.cursor`` tells.
        updated_at: when it was last acknowledged, in UTC.
    """

    name: str
    position: int
    lag: int
    updated_at: dt.datetime


@dataclasses.dataclass(frozen=True, slots=True)
class _Kept:
    """What the record of a cursor says, and which version of it."""

    seq: int = 0
    event_id: str | None = None
    at: str = ""
    version: int = 0


def _decoded(session_id: str, record: Record | None) -> _Kept:
    if record is None:
        return _Kept()
    members: dict[str, Any] = orjson.loads(record.data)
    if members.get("v") != _VERSION:
        raise SchemaMismatch(session_id=session_id, expected=_VERSION, found=members.get("v"))
    return _Kept(members["seq"], members["id"], members["at"], record.version)


def _record_name(name: object) -> str:
    text = check_name("name", name)
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        message = f"name {name!r} is not valid Unicode: {error.reason}"
        raise InvalidArgument(message) from error
    if size > _NAME_BYTES_MAX:
        message = f"a cursor's name has at most {_NAME_BYTES_MAX} bytes, this one has {size}"
        raise InvalidArgument(message)
    return _PREFIX + text


def cursor_marks(store: EventStore, session_id: str) -> list[CursorMark]:
    """Return every cursor of a session, in the order of their names, whatever state the session is in.

    Raises:
        LogCorrupt, SchemaMismatch: a record or the end of the log cannot be trusted.
        SessionDeleted: the session was deleted, and its cursors with it.
    """
    kept = {
        name.removeprefix(_PREFIX): _decoded(session_id, record)
        for name, record in store.records(session_id).items()
        if name.startswith(_PREFIX)
    }
    last_seq = store.last_seq(session_id) if kept else 0
    return [
        CursorMark(
            name=name,
            position=cursor.seq,
            lag=max(0, last_seq - cursor.seq),
            updated_at=dt.datetime.fromisoformat(cursor.at).astimezone(dt.UTC),
        )
        for name, cursor in kept.items()
    ]


def delete_cursor(store: EventStore, session_id: str, name: str) -> bool:
    """Remove a cursor durably, whatever it says; False when there is none of that name."""
    record_name = _record_name(name)
    while True:
        record = store.load_record(session_id, record_name)
        if record is None:
            return False
        try:
            store.save_record(session_id, record_name, None, version=record.version)
        except RecordChanged:  # it was acknowledged in between
            continue
        return True


class Cursor:
    """A reader's position in a session, which outlives the process. Safe from any thread; made by ``Session.cursor``.

    Cursors of one name, in whatever process, are one cursor. It only ever moves forward. What was handled and not yet
    acknowledged when a process dies is seen again by the next one, under the same numbers: at least once, and a handler
    that notes the last ``event_seq`` with what it does can tell a repetition.
    """

    __slots__ = ("_record_name", "_runtime", "name", "session_id")

    def __init__(self, runtime: Runtime, session_id: str, name: str) -> None:
        self.name = name
        self.session_id = session_id
        self._runtime = runtime
        self._record_name = _record_name(name)
        self._check(self._load())

    def _load(self) -> _Kept:
        self._runtime.check_usable()
        record = self._runtime.store.load_record(self.session_id, self._record_name)
        return _decoded(self.session_id, record)

    def _check(self, kept: _Kept) -> None:
        """Refuse a position of another log, to which "nothing new" would be no answer."""
        self._check_not_ahead(kept.seq)
        if kept.event_id is None:
            return
        found_id = self._event_id(kept.seq)
        if found_id is not None and found_id != kept.event_id:
            raise StaleCursor(
                session_id=self.session_id, name=self.name, seq=kept.seq, event_id=kept.event_id, found_id=found_id
            )

    def _check_not_ahead(self, seq: int) -> None:
        store = self._runtime.store
        last_seq = store.last_seq(self.session_id)
        if seq > last_seq and seq >= store.info(self.session_id).next_seq:
            raise CursorAhead(session_id=self.session_id, cursor=seq, last_seq=last_seq)

    def _event_id(self, seq: int) -> str | None:
        """Return the id of the event with a number; None when it was pruned, or lost before a repair."""
        try:
            events = self._runtime.store.read(self.session_id, from_seq=seq, through_seq=seq, halted_ok=True)
            return next((event.id for event in events if event.event_seq == seq), None)
        except SeqPruned:
            return None

    @property
    def position(self) -> int:
        """Number of the last event that was acknowledged, by whatever process; 0 when none was. One small read."""
        return self._load().seq

    @property
    def lag(self) -> int:
        """How many numbers the log is ahead of ``position``."""
        return max(0, self._runtime.store.last_seq(self.session_id) - self.position)

    def ack(self, event: int | Envelope) -> int:
        """Acknowledge everything up to an event and return the position, which is durable when this returns.

        A number at or below the position changes nothing. It takes as long as an append that waits for the disk, and
        with the file engine, which replaces a small file and syncs twice, some five times that. So a reader of many
        small events acknowledges every hundred of them, and repeats at most as many after a crash.

        Args:
            event: a number, or an event of this session.

        Raises:
            CursorAhead: the number is beyond the log.
            ForeignCursor: the event is of another session.
            StaleCursor: the event is not the one that has its number in this log.
            InvalidArgument: neither a number nor an event.
            LockTimeout, StorageUnavailable: it could not be saved; the position is as it was.
        """
        seq, given_id = self._given(event)
        kept = self._load()
        while seq > kept.seq:
            event_id = self._checked_id(seq, given_id)
            data = orjson.dumps(
                {"v": _VERSION, "seq": seq, "id": event_id, "at": rfc3339(self._runtime.clock.time_ns())}
            )
            try:
                self._runtime.store.save_record(self.session_id, self._record_name, data, version=kept.version)
            except RecordChanged:  # somebody else has acknowledged: perhaps more
                kept = self._load()
                continue
            self._runtime.log.info("cursor_moved", session=self.session_id, cursor=self.name, acked_seq=seq)
            return seq
        return kept.seq

    def _given(self, event: int | Envelope) -> tuple[int, str | None]:
        if not isinstance(event, Envelope):
            return check_seq("event", event, 0), None
        if event.session_id != self.session_id or event.event_seq is None:
            raise ForeignCursor(session_id=self.session_id, cursor_session_id=event.session_id)
        return event.event_seq, event.id

    def _checked_id(self, seq: int, given_id: str | None) -> str | None:
        """Return the id of the event that is acknowledged, None when there is none of that number."""
        self._check_not_ahead(seq)
        found_id = self._event_id(seq)
        if given_id is not None and found_id is not None and given_id != found_id:
            raise StaleCursor(session_id=self.session_id, name=self.name, seq=seq, event_id=given_id, found_id=found_id)
        return found_id

    def next_seq(self) -> int:
        """Return the number to go on from, for ``Session.subscribe``.

        Raises:
            CursorAhead, StaleCursor: the position is of another log.
            SeqPruned: what comes after the position was pruned.
        """
        kept = self._load()
        self._check(kept)
        first_available = self._runtime.store.info(self.session_id).first_available
        if kept.seq + 1 < first_available:
            raise SeqPruned(session_id=self.session_id, seq=kept.seq + 1, first_available=first_available)
        return kept.seq + 1

    def delete(self) -> None:
        """Remove the cursor durably: its name stands at 0 again. A second call changes nothing."""
        self._runtime.check_usable()
        delete_cursor(self._runtime.store, self.session_id, self.name)

    def __repr__(self) -> str:
        return f"<Cursor {self.name!r} of {self.session_id!r}>"
