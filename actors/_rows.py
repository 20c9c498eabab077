"""The RowActor: where a session's rows stand and which events have their content, derived from the log."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from ..protocol import Clock, Limits, LogmarkError, RawEnvelope, RowMark, RowTable
from ..storage import EventStore, Logger
from ._dispatch import Dispatcher
from ._fold import FoldActor
from ._seams import BlockingReads, Timers
from .messages import GetRows, GetRowsBase

__all__ = ["RowActor", "RowIndex"]


class RowIndex:
    """A ``RowTable`` that one actor writes and any thread reads, without asking that actor."""

    __slots__ = ("_mutex", "_retired", "_table")

    def __init__(self) -> None:
        self._table = RowTable()
        self._mutex = threading.Lock()
        self._retired = False

    @property
    def last_seq(self) -> int:
        """Number of the last event that was folded in."""
        return self._table.last_seq

    def includes(self, seq: int) -> bool:
        """Say whether everything up to a number is in it, and will be from now on."""
        return not self._retired and self._table.last_seq >= seq

    def retire(self) -> None:
        """Have whoever holds it ask for the next one: nothing is folded into this one any more."""
        self._retired = True

    def fold(self, events: Iterable[RawEnvelope]) -> None:
        """Fold events in; for the actor."""
        with self._mutex:
            self._table.apply(events)

    def restore(self, seq: int, rows: Iterable[RowMark]) -> None:
        """Begin with rows that were kept; for the actor."""
        with self._mutex:
            self._table.restore(seq, rows)

    def entries(self) -> tuple[int, Callable[[], bytes]]:
        """Return how many rows there are, and what encodes them as they are now."""
        with self._mutex:
            copied = self._table.copied()
        return len(copied[0]), lambda: RowTable.encoded(copied)

    def beginnings(self, first_available: int, first_kept: int) -> tuple[int, Callable[[], bytes]]:
        """Return the rows whose changes remain and whose beginning does not, as ``entries`` does."""
        with self._mutex:
            rows = self._table.beginnings(first_available, first_kept)
        return len(rows), lambda: RowTable.encoded_rows(rows)

    def prune(self, first_available: int, through_seq: int) -> None:
        """Forget the rows whose content was pruned; see ``RowTable.prune``."""
        with self._mutex:
            self._table.prune(first_available, through_seq)

    def find(self, row_id: str) -> tuple[RowMark | None, int]:
        """Return one row, if it is there, and the number up to which that is so."""
        with self._mutex:
            return self._table.get(row_id), self._table.last_seq

    def page(self, *, before: int | None, after: int | None, limit: int) -> tuple[list[RowMark], bool, int]:
        """Return a page (see ``RowTable.page``), and the last number it includes."""
        with self._mutex:
            return *self._table.page(before=before, after=after, limit=limit), self._table.last_seq


class RowActor(FoldActor):
    """Folds a session's events into rows; there is one only when rows were asked for.

    A question is answered with its ``RowIndex``, once that includes the number that the question names. After a failure
    it is another one.
    """

    snapshot_name = "rows"

    def __init__(
        self,
        *,
        session_id: str,
        store: EventStore,
        reads: BlockingReads,
        limits: Limits,
        dispatcher: Dispatcher,
        clock: Clock,
        log: Logger,
        timers: Timers | None = None,
    ) -> None:
        super().__init__(
            session_id=session_id,
            store=store,
            reads=reads,
            limits=limits,
            dispatcher=dispatcher,
            clock=clock,
            log=log.bind(actor="rows", session=session_id),
            timers=timers,
        )
        self._index = RowIndex()

    @property
    def folded_seq(self) -> int:
        """See ``FoldActor``."""
        return self._index.last_seq

    def _fold(self, envelopes: tuple[RawEnvelope, ...]) -> None:
        self._index.fold(envelopes)

    def _clear(self) -> None:
        self._index.retire()
        self._index = RowIndex()

    def on_stop(self) -> None:
        """Answer who waits."""
        self._index.retire()
        super().on_stop()

    def _reply_to(self, question: GetRows) -> Any:
        if isinstance(question, GetRowsBase):
            # No state of the fold, but what a fold of the kept events cannot know: it goes to no number of its own.
            return (0, *self._index.beginnings(question.first_available, question.first_kept))
        return self._index

    # -- what is kept -------------------------------------------------------------------------------------------

    def _entries(self) -> tuple[int, Callable[[], bytes]]:
        index = self._index
        count, encode = index.entries()

        def encoded() -> bytes:
            # Here it may block: a process that only ever writes would otherwise remember what others have pruned.
            info = self._store.info(self._session_id)
            index.prune(info.first_available, info.last_seq)
            return encode()

        return count, encoded

    def _decoded(self, data: bytes) -> list[RowMark]:
        return RowTable.decoded(data)

    def _restore(self, seq: int, kept: list[RowMark]) -> None:
        self._index.restore(seq, kept)

    def _load_base(self) -> tuple[int, Any] | None:
        base = super()._load_base()
        if base is None:
            return None
        return self._store.info(self._session_id).first_available - 1, base[1]

    # -- log events ---------------------------------------------------------------------------------------------

    def _note_unavailable(self, error: LogmarkError) -> None:
        self._log.warning("rows_unavailable", error=type(error).__name__, reason=str(error))

    def _note_unsaved(self, seq: int, error: Exception) -> None:
        self._log.warning("rows_unsaved", seq=seq, error=repr(error))

    def _note_taken_over(self, seq: int, kept: list[Any]) -> None:
        self._log.info("rows_taken_over", seq=seq, rows=len(kept))

    def _note_not_taken_over(self, seq: int, error: ValueError) -> None:
        self._log.info("rows_not_taken_over", seq=seq, reason=str(error))
