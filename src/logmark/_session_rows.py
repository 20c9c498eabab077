"""The rows of a session: what its upserts leave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from ._checks import check_name, check_seq
from ._event_cache import EventCache
from ._rows import Row, RowPage
from ._session_reading import SessionReading
from .actors import RowIndex, refuse_in_turn
from .actors.messages import GetRows
from .protocol import (
    ROW_FIELDS,
    Envelope,
    InvalidArgument,
    InvalidEvent,
    LogCorrupt,
    LogmarkError,
    RowMark,
    SeqPruned,
)

__all__ = ["SessionRows"]

_NEIGHBOURS_SEQS_MAX = 16  # events so near each other are read together: cheaper than finding each by itself


class SessionRows(SessionReading):
    """The part of a session that has its rows."""

    _row_index: RowIndex | None = None
    _row_events: EventCache | None = None
    _upserted_seq = 0

    def rows(self, before: int | Row | None = None, after: int | Row | None = None, limit: int = 50) -> RowPage:
        """Return one page of rows: the newest, the ones right below position ``before``, or right above ``after``.

        It is as of one moment, ``RowPage.last_seq``, and includes every upsert that had returned. The first call looks
        through the session, or through what was appended since that was last done; later ones read the events of the
        page and nothing else. A row whose content was pruned is gone; one of which only the beginning was pruned stands
        where it stood.

        Args:
            before: a position, or a row.
            after: a position, or a row.
            limit: at most so many rows.

        Raises:
            CursorAhead: the position is beyond the log.
            InvalidArgument: both are given, or a number is out of range.
            SessionHalted, LogCorrupt, SchemaMismatch: the log cannot be read.
        """
        self._runtime.check_usable()
        refuse_in_turn("rows()")
        check_seq("limit", limit, 0)
        if limit > self._runtime.limits.page_events_max:
            message = f"limit is at most {self._runtime.limits.page_events_max} (Limits.page_events_max), not {limit}"
            raise InvalidArgument(message)
        if before is not None and after is not None:
            raise InvalidArgument("a page is before one position or after one, not both")
        before, after = _row_position("before", before), _row_position("after", after)
        if before is not None:
            self._check_not_ahead(before - 1)
        if after is not None:
            self._check_not_ahead(after)
        while True:
            marks, has_more, last_seq = self._rows_now().page(before=before, after=after, limit=limit)
            try:
                events = self._events_of(marks)
            except SeqPruned:  # since the index was asked
                continue
            rows = tuple(Row.of(mark, events[mark.last_seq]) for mark in marks)
            return RowPage(rows=rows, has_more=has_more, last_seq=last_seq)

    def row(self, row_id: str) -> Row | None:
        """Return a row as it is now, or None when there is none of that id; otherwise as ``rows``."""
        self._runtime.check_usable()
        refuse_in_turn("row()")
        check_name("row_id", row_id)
        while True:
            mark, _ = self._rows_now().find(row_id)
            if mark is None:
                return None
            try:
                return Row.of(mark, self._events_of([mark])[mark.last_seq])
            except SeqPruned:  # since the index was asked
                continue

    def row_fields(self, row_id: str, extensions: Mapping[str, Any] | None, *, final: bool) -> dict[str, Any]:
        """Return the top-level fields that make an append an upsert, for who appends in his own way; it may block.

        The number of the append is then told to ``upserted``.
        """
        _check_row_id(row_id, self._runtime.limits.name_bytes_max)
        if extensions and not ROW_FIELDS.isdisjoint(extensions):
            message = f"{', '.join(sorted(ROW_FIELDS))} are upsert's own fields"
            raise InvalidEvent(message)
        index = self._row_index
        # Later upserts take what the index has by then: it may lag behind, which the fold tells from what is said here.
        if index is None or not index.includes(0):
            index = self._rows_now()
        mark, through_seq = index.find(row_id)
        if mark is None and through_seq < self._upserted_seq:  # it may be a row that was just created here
            mark, through_seq = self._rows_through(self._upserted_seq).find(row_id)
        fields: dict[str, Any] = {**(extensions or {}), "row_id": row_id}
        if mark is not None:
            fields["row_position"] = mark.position
        elif through_seq:
            fields["row_absent_at"] = through_seq
        if final:
            fields["row_final"] = True
        return fields

    def upserted(self, seq: int) -> None:
        """Learn that an event with ``row_fields`` is durable: the next upsert of its row has to know of it."""
        self._upserted_seq = max(self._upserted_seq, seq)

    def _rows_now(self) -> RowIndex:
        """Return where the rows stand that are there; raise when the session cannot be read, whatever is in memory."""
        info = self._runtime.store.info(self._id)
        if info.halted is not None or info.deleted:
            next(self._runtime.store.read(self._id, from_seq=info.first_available), None)
        index = self._rows_through(info.last_seq)
        index.prune(info.first_available, info.last_seq)
        return index

    def _events_of(self, marks: Iterable[RowMark]) -> dict[int, Envelope]:
        """Return the last change of each row by its number, reading no more than these and what is between neighbours.

        Raises:
            SeqPruned: one of them was pruned.
            LogCorrupt: one of them is not there.
        """
        cache = self._row_events
        if cache is None:
            cache = self._row_events = EventCache()
        seqs = [mark.last_seq for mark in marks]
        found = cache.get(seqs)
        wanted = sorted(seq for seq in seqs if seq not in found)
        start = 0
        while start < len(wanted):
            end = start + 1
            while end < len(wanted) and wanted[end] - wanted[end - 1] <= _NEIGHBOURS_SEQS_MAX:
                end += 1
            near = set(wanted[start:end])
            for event in self._runtime.store.read(self._id, from_seq=min(near), through_seq=max(near)):
                if event.event_seq in near:
                    found[event.event_seq] = event
            start = end
        for seq in wanted:
            if seq not in found:
                first_available = self._runtime.store.info(self._id).first_available
                if seq < first_available:
                    raise SeqPruned(session_id=self._id, seq=seq, first_available=first_available)
                reason = "the event was there and is not any more"
                raise LogCorrupt(session_id=self._id, reason=reason, event_seq=seq, segment=None, offset=None)
        cache.put(found[seq] for seq in wanted)
        return {seq: self._typed(found[seq]) for seq in seqs}

    def _rows_through(self, seq: int) -> RowIndex:
        """Return where the rows stand, everything up to a number included."""
        index = self._row_index
        if index is None or not index.includes(seq):
            future: Future[RowIndex] = Future()

            def answer(found: RowIndex | LogmarkError) -> None:
                if isinstance(found, LogmarkError):
                    future.set_exception(found)
                else:
                    future.set_result(found)

            self._tell(GetRows(seq, answer))
            index = self._row_index = future.result()
        return index

    def _forget_rows_before(self, first_available: int, last_seq: int) -> None:
        """Forget the rows that were pruned, so that who upserts one next makes a new one."""
        if self._row_index is not None:
            self._row_index.prune(first_available, last_seq)


def _check_row_id(row_id: object, bytes_max: int) -> None:
    if not isinstance(row_id, str) or not row_id:
        message = f"row_id must be non-empty text, not {row_id!r}"
        raise InvalidEvent(message)
    if len(row_id) > bytes_max or len(row_id.encode(errors="replace")) > bytes_max:
        message = f"row_id has more than {bytes_max} bytes (Limits.name_bytes_max)"
        raise InvalidEvent(message)


def _row_position(name: str, value: int | Row | None) -> int | None:
    if isinstance(value, Row):
        return value.position
    return None if value is None else check_seq(name, value, 0)
