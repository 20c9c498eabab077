"""The JobActor: each job's mark, derived from the log."""

from __future__ import annotations

import itertools
from typing import Any

from pykka import ActorDeadError

from ..protocol import (
    SEQ_MAX,
    Clock,
    EventTypes,
    JobMark,
    JobMarks,
    Limits,
    LogmarkError,
    RawEnvelope,
    RuntimeClosed,
    StorageUnavailable,
    decode_marks,
    encode_marks,
)
from ..storage import EventStore, Logger, Snapshot
from ._base import LogmarkActor
from ._dispatch import Dispatcher
from ._seams import BlockingReads, Timers
from .messages import Committed, GetMarks, Loaded, Observed, Saved

__all__ = ["JobActor"]

_LOAD_EVENTS = 4096
_SNAPSHOT = "marks"
_EVENTS_PER_MARK = 4  # a snapshot has all marks: with many of them it is made less often, so that it stays cheap


class JobActor(LogmarkActor):
    """Folds a session's events into marks.

    What it is not told in order it reads from the log: everything at the start, what another process wrote later. The
    reading is done elsewhere, as this actor never blocks; questions wait until the marks include the number they name.

    Every ``Limits.marks_unsaved_events_max`` events it has the store keep the marks, so that the next one need not read
    from the start. A program whose status rules are functions goes without: nobody can tell whether they still are what
    they were.
    """

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
            dispatcher=dispatcher,
            clock=clock,
            log=log.bind(actor="job", session=session_id),
            restarts_max=limits.actor_restarts_max,
            restart_window_s=limits.actor_restart_window_s,
            timers=timers,
        )
        self._session_id = session_id
        self._store = store
        self._types = types
        self._reads = reads
        self._marks = JobMarks(types, rule_failed=self._rule_failed)
        self._loading = False
        self._wanted_seq = 0
        self._history_seq = SEQ_MAX
        """Up to this number the events were there before this actor was: they move marks too, but tell no story."""
        self._load_wanted_seq = 0  # what was wanted, and how many had asked, when the read on its way began
        self._load_questions = 0
        self._questions: list[GetMarks] = []
        self._unsaved_max = limits.marks_unsaved_events_max
        self._saved_seq = 0
        self._saving = False

    def on_receive(self, message: Any) -> None:
        """Fold, load or answer."""
        match message:
            case Committed():
                self._history_seq = min(self._history_seq, message.last_seq_before)
                self._wanted_seq = max(self._wanted_seq, message.last_seq)
                if not self._loading and message.last_seq_before == self._marks.last_seq:
                    self._fold(message.envelopes)
            case Observed():
                self._wanted_seq = max(self._wanted_seq, message.last_seq)
            case GetMarks():
                self._wanted_seq = max(self._wanted_seq, message.min_seq)
                self._questions.append(message)
            case Loaded():
                self._on_loaded(message)
            case Saved():
                self._saving = False
            case _:
                super().on_receive(message)

    def on_drained(self) -> None:
        """Answer who can be answered, and read what is missing."""
        ready = [each for each in self._questions if each.min_seq <= self._marks.last_seq]
        if ready:
            self._questions = [each for each in self._questions if each.min_seq > self._marks.last_seq]
            for question in ready:
                self._answer(question)
        if self._marks.last_seq < self._wanted_seq and not self._loading:
            self._loading = True
            self._load_wanted_seq, self._wanted_seq = self._wanted_seq, self._marks.last_seq
            self._load_questions = len(self._questions)
            from_seq = self._marks.last_seq + 1
            try:
                self._reads.submit(lambda: self._load(from_seq))
            except RuntimeError as error:  # no thread for it
                reason = f"its marks cannot be read: {error}"
                self._on_loaded(Loaded(from_seq, (), 0, StorageUnavailable(store=self._store.url, reason=reason)))
        unsaved = self._marks.last_seq - self._saved_seq
        if unsaved >= self._unsaved_max and not self._saving and self._types.status_rules is not None:
            self._save_marks(unsaved)

    def _save_marks(self, unsaved: int) -> None:
        """Have the marks kept by the store, unless they are so many that it is not yet worth it."""
        seq, marks = self._marks.last_seq, self._marks.all()
        if unsaved < len(marks) * _EVENTS_PER_MARK:
            return
        self._saved_seq = seq  # whether or not it can be saved: a disk that refuses is asked again as late as this
        try:
            self._reads.submit(lambda: self._save(seq, marks))
        except RuntimeError as error:  # no thread for it
            self._log.warning("marks_unsaved", seq=seq, error=repr(error))
        else:
            self._saving = True

    def _save(self, seq: int, marks: list[JobMark]) -> None:
        """Keep the marks; runs in a thread that may block."""
        try:
            data = encode_marks(self._types.status_rules or "", marks)
            self._store.save_snapshot(self._session_id, _SNAPSHOT, Snapshot(seq, data))
        except Exception as error:  # they are derived: without them, the log is read
            self._log.warning("marks_unsaved", seq=seq, error=repr(error))
        try:
            self.actor_ref.tell(Saved())
        except ActorDeadError:
            return  # closing

    def _load_marks(self) -> tuple[int, list[JobMark]] | None:
        """Return the marks that the store has kept, and the number they go to; runs in a thread that may block."""
        rules = self._types.status_rules
        kept = None if rules is None else self._store.load_snapshot(self._session_id, _SNAPSHOT)
        if rules is None or kept is None:
            return None
        try:
            marks = decode_marks(rules, kept.data)
        except ValueError as error:
            self._log.info("marks_not_taken_over", seq=kept.seq, reason=str(error))
            return None
        self._log.info("marks_taken_over", seq=kept.seq, jobs=len(marks))
        return kept.seq, marks

    def _load(self, from_seq: int) -> None:
        """Read the next part of the log; runs in a thread that may block."""
        try:
            kept = self._load_marks() if from_seq == 1 else None
            start = from_seq if kept is None else kept[0] + 1
            events = tuple(itertools.islice(self._store.read(self._session_id, from_seq=start), _LOAD_EVENTS))
            loaded = Loaded(from_seq, events, self._store.last_seq(self._session_id), kept=kept)
        except LogmarkError as error:
            loaded = Loaded(from_seq, (), 0, error)
        except Exception as error:  # whatever it is, who waits for the marks is told
            loaded = Loaded(from_seq, (), 0, StorageUnavailable(store=self._store.url, reason=repr(error)))
        try:
            self.actor_ref.tell(loaded)
        except ActorDeadError:
            self._log.debug("load_dropped", from_seq=from_seq)

    def _on_loaded(self, message: Loaded) -> None:
        self._loading = False
        if message.error is not None:
            # The log cannot be read: who asked is told so; who asks next makes the next attempt.
            self._log.warning("marks_unavailable", error=type(message.error).__name__, reason=str(message.error))
            self._wanted_seq = self._marks.last_seq
            self._answer_all(message.error)
            return
        if message.from_seq != self._marks.last_seq + 1:
            return  # read for a state that a restart has thrown away
        if message.kept is not None:
            self._marks.restore(*message.kept)
            self._saved_seq = self._marks.last_seq
        if message.events or message.kept is not None:
            self._fold(message.events)
            self._wanted_seq = max(self._wanted_seq, self._load_wanted_seq)
            return
        # The log went no further when it was read, whatever number somebody had named by then: that is the answer.
        # What has become durable since, and who has asked for it since, needs another look.
        asked, self._questions = self._questions[: self._load_questions], self._questions[self._load_questions :]
        for question in asked:
            self._answer(question)

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

    def _answer(self, question: GetMarks) -> None:
        job_id = question.job_id
        self._tell_asker(question, self._marks.all() if job_id is None else [self._marks.get(job_id)])

    def _answer_all(self, error: LogmarkError) -> None:
        questions, self._questions = self._questions, []
        for question in questions:
            self._tell_asker(question, error)

    def _tell_asker(self, question: GetMarks, answer: list[JobMark] | LogmarkError) -> None:
        try:
            question.answer(answer)
        except BaseException as error:  # the asker's own fault: it may not keep the answers from the others
            self._log.error("reply_failed", error=repr(error), exc_info=error)

    def _rule_failed(self, event: RawEnvelope, error: Exception) -> None:
        self._log.error("job_status_rule_failed", seq=event.event_seq, type=event.type, error=repr(error))

    def on_message_failed(self, message: Any) -> None:
        """Note what the failed handler may not have noted."""
        match message:
            case Committed() | Observed():
                self._wanted_seq = max(self._wanted_seq, message.last_seq)
            case GetMarks() if all(message is not each for each in self._questions):
                self._wanted_seq = max(self._wanted_seq, message.min_seq)
                self._questions.append(message)
            case _:
                pass

    def on_restarted(self, error: Exception) -> None:
        """Start again from the log."""
        self._wanted_seq = max(self._wanted_seq, self._load_wanted_seq, self._marks.last_seq)
        self._marks = JobMarks(self._types, rule_failed=self._rule_failed)
        self._saved_seq = 0
        self._loading = False

    def on_gave_up(self, error: Exception) -> None:
        """Answer who waits."""
        self.on_stop()

    def on_stop(self) -> None:
        """Answer who waits."""
        self._answer_all(RuntimeClosed())

    def on_dead_letter(self, message: Any) -> None:
        """Answer who asked too late."""
        if isinstance(message, GetMarks):
            self._tell_asker(message, RuntimeClosed())
