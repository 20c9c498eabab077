"""The JobActor: each job's mark, derived from the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..protocol import (
    SEQ_MAX,
    Clock,
    EventTypes,
    JobMark,
    JobMarks,
    Limits,
    LogmarkError,
    RawEnvelope,
    decode_marks,
    encode_marks,
)
from ..storage import EventStore, Logger
from ._dispatch import Dispatcher
from ._fold import FoldActor
from ._seams import BlockingReads, Timers
from .messages import Committed, GetMarks, GetMarksBase

__all__ = ["JobActor"]


class JobActor(FoldActor):
    """Folds a session's events into marks.

    A program whose status rules are functions goes without a snapshot: nobody can tell whether they still are what they
    were.
    """

    snapshot_name = "marks"

    def __init__(
        self,
        *,
        session_id: str,
        store: EventStore,
        types: EventTypes,
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
            log=log.bind(actor="job", session=session_id),
            timers=timers,
        )
        self._types = types
        # The program's own functions run in the pool: in the thread of a lone caller, one that hangs could not even be
        # interrupted.
        self.travels = types.status_rules is not None
        self._marks = JobMarks(types, rule_failed=self._rule_failed)
        self._history_seq = SEQ_MAX
        """Up to this number the events were there before this actor was: they move marks too, but tell no story."""

    @property
    def folded_seq(self) -> int:
        """See ``FoldActor``."""
        return self._marks.last_seq

    def on_receive(self, message: Any) -> None:
        """Fold, load or answer."""
        if isinstance(message, Committed):
            self._history_seq = min(self._history_seq, message.last_seq_before)
        super().on_receive(message)

    def _fold(self, envelopes: tuple[RawEnvelope, ...]) -> None:
        moved = self._marks.apply(envelopes)
        if moved and self._log.enabled("info"):
            seqs: dict[str | None, list[int]] = {}
            for envelope in envelopes:
                if envelope.event_seq is not None and envelope.event_seq > self._history_seq:
                    seqs.setdefault(envelope.job_id, []).append(envelope.event_seq)
            self._log.info(
                "marks_moved",
                through_seq=self._marks.last_seq,
                marks=[
                    {
                        "job": mark.job_id,
                        "first_seq": mark.first_seq,
                        "last_seq": mark.last_seq,
                        "count": mark.count,
                        "status": mark.status,
                        "seqs": seqs.get(mark.job_id, []),
                    }
                    for mark in moved
                ],
            )

    def _clear(self) -> None:
        self._marks = JobMarks(self._types, rule_failed=self._rule_failed)

    def _reply_to(self, question: GetMarks) -> Any:
        if isinstance(question, GetMarksBase):
            return (self.folded_seq, *self._entries())
        job_id = question.job_id
        return self._marks.all() if job_id is None else [self._marks.get(job_id)]

    # -- what is kept -------------------------------------------------------------------------------------------

    @property
    def _is_kept(self) -> bool:
        return self._types.status_rules is not None

    def _entries(self) -> tuple[int, Callable[[], bytes]]:
        marks, rules = self._marks.all(), self._types.status_rules or ""
        return len(marks), lambda: encode_marks(rules, marks)

    def _decoded(self, data: bytes) -> list[JobMark]:
        return decode_marks(self._types.status_rules or "", data)

    def _decoded_base(self, data: bytes) -> list[JobMark]:
        return decode_marks(None, data)  # whatever the rules were: the events are gone, and their statuses are facts

    def _restore(self, seq: int, kept: list[JobMark]) -> None:
        self._marks.restore(seq, kept)

    # -- log events ---------------------------------------------------------------------------------------------

    def _note_unavailable(self, error: LogmarkError) -> None:
        self._log.warning("marks_unavailable", error=type(error).__name__, reason=str(error))

    def _note_unsaved(self, seq: int, error: Exception) -> None:
        self._log.warning("marks_unsaved", seq=seq, error=repr(error))

    def _note_taken_over(self, seq: int, kept: list[JobMark]) -> None:
        self._log.info("marks_taken_over", seq=seq, jobs=len(kept))

    def _note_not_taken_over(self, seq: int, error: ValueError) -> None:
        self._log.info("marks_not_taken_over", seq=seq, reason=str(error))

    def _rule_failed(self, event: RawEnvelope, error: Exception) -> None:
        self._log.error("job_status_rule_failed", seq=event.event_seq, type=event.type, error=repr(error))
