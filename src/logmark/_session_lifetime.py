"""The life of a session: its events are pruned, it is sealed, it is deleted, here or by another process."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ._retention import cutoff_of, first_kept_seq
from ._session_rows import SessionRows
from .actors import BASE_PREFIX, decode_base, encode_base, refuse_in_turn
from .actors.messages import GetMarks, GetMarksBase, GetRows, GetRowsBase
from .protocol import SEQ_MAX, CursorAhead, InvalidArgument, LogmarkError, RecordChanged
from .storage import Record, SessionInfo

__all__ = ["SessionLifetime"]

BaseQuestion = Callable[[SessionInfo, int, Callable[[Any], None]], GetMarks | GetRows]

_BASES: dict[str, BaseQuestion] = {
    "marks": lambda info, _, answer: GetMarksBase(info.last_seq, None, answer),
    "rows": lambda info, seq, answer: GetRowsBase(info.last_seq, answer, info.first_available, seq),
}
"""What is derived from events and outlives them: what the fold is kept under, and the question for it.

The question is asked of the session as it is, before what is below a number is removed.

The answer is ``(folded_seq, entries, encode)`` or an error. What a fold finds under this name when the log does not
begin with 1 any more, ``FoldActor`` begins with.
"""


class SessionLifetime(SessionRows):
    """The part of a session that says how much of it is kept."""

    @property
    def first_seq(self) -> int:
        """The smallest number that can be asked for: 1, or more when events were pruned; no event need have it.

        Raises:
            SessionDeleted: the session was deleted.
            LogCorrupt, SchemaMismatch: the log cannot be trusted.
        """
        self._runtime.check_usable()
        info = self._runtime.store.info(self._id)
        if info.deleted:
            self._check_readable(SEQ_MAX)
        return info.first_available

    def truncate_before(self, seq: int) -> int:
        """Remove the events below a number, durably, and return the smallest number that can be asked for from now on.

        Numbering goes on as before, and ``last_seq`` stays. Marks of jobs count what was removed, so they are derived
        first, for which a session is read whose marks nobody has asked for in a long time. An id that was removed is no
        retry any more. Readers that are behind get ``SeqPruned``, with ``first_available``; so do those in other
        processes. A number at or below the last one given changes nothing.

        What is removed from the disk at once is what the engine can remove without copying the rest: a file store
        removes whole segments, hides what else is below the number, and removes that with a later call.

        Raises:
            CursorAhead: ``seq`` is beyond the number that comes next, which removes all there are.
            SessionHalted, SessionDeleted, LogCorrupt, SchemaMismatch, LockTimeout: nothing was removed.
            StorageUnavailable: the disk refused; done or not, the next call settles it.
        """
        self._runtime.check_usable()
        refuse_in_turn("truncate_before()")
        seq = self._position("seq", seq)
        store = self._runtime.store
        info = store.info(self._id)
        if info.deleted:
            self._check_readable(SEQ_MAX)
        if seq > info.next_seq:
            raise CursorAhead(session_id=self._id, cursor=seq, last_seq=info.last_seq)
        if seq > info.first_available and info.halted is None:
            for name, question in _BASES.items():
                self._save_base(name, question, info, seq)
        first_available = store.truncate_before(self._id, seq)
        self._forget_rows_before(first_available, info.last_seq)
        return first_available

    def prune(self, *, keep_days: float | None = None, acked: bool = False) -> int:
        """Remove the events at the beginning that are old enough; return the smallest number that is left to ask for.

        Args:
            keep_days: those of the last so many days are kept, by the time that the events themselves have.
            acked: those that some durable cursor has not acknowledged are kept; without any cursor, all are.

        Otherwise as ``truncate_before``.

        Raises:
            InvalidArgument: neither is given, or no number of days: that would remove everything.
        """
        self._runtime.check_usable()
        if keep_days is None and not acked:
            raise InvalidArgument("prune by keep_days, by acked, or by both; truncate_before removes what you name")
        now = dt.datetime.fromtimestamp(self._runtime.clock.time_ns() / 1e9, dt.UTC)
        older_than = None if keep_days is None else cutoff_of(keep_days, now)
        store = self._runtime.store
        return self.truncate_before(first_kept_seq(store, self._id, older_than=older_than, acked=acked))

    def _save_base(self, name: str, question: BaseQuestion, info: SessionInfo, first_kept: int) -> None:
        """Keep what is derived from the events up to now, before some of them are gone."""
        future: Future[tuple[int, int, Callable[[], bytes]]] = Future()

        def answer(found: tuple[int, int, Callable[[], bytes]] | LogmarkError) -> None:
            if isinstance(found, LogmarkError):
                future.set_exception(found)
            else:
                future.set_result(found)

        self._tell(question(info, first_kept, answer))
        folded_seq, entries, encode = future.result()
        if not entries:
            return
        # Behind the last event there may be numbers that none has; they are pruned with those before.
        base_seq = max(folded_seq, first_kept - 1)
        data = encode_base(base_seq, encode())
        store, record_name = self._runtime.store, BASE_PREFIX + name
        while True:
            known = store.load_record(self._id, record_name) or Record(encode_base(0, b""), 0)
            if decode_base(known.data)[0] >= base_seq:
                return  # somebody else prunes too
            try:
                store.save_record(self._id, record_name, data, version=known.version)
            except RecordChanged:
                continue
            return

    def seal(self) -> int:
        """Refuse further events for good, in every process, durably, and return the number of the last one.

        What was appended before is answered with its number, also when it is appended again under its id; everything
        else raises ``SessionSealed`` from now on. The session can still be read, pruned and deleted.

        Raises:
            SessionHalted, SessionDeleted, LogCorrupt, SchemaMismatch, LockTimeout: it is not sealed.
            StorageUnavailable: the disk refused; done or not, the next call settles it.
        """
        self._runtime.check_usable()
        refuse_in_turn("seal()")
        return self._runtime.store.seal(self._id)
