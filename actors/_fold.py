"""What folds a session's events into something derived has in common: reading, keeping, answering, starting again."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from pykka import ActorDeadError

from ..protocol import (
    Clock,
    Limits,
    LogmarkError,
    RawEnvelope,
    RuntimeClosed,
    SeqPruned,
    StorageUnavailable,
)
from ..storage import EventStore, Logger, Snapshot
from ._base import LogmarkActor
from ._bases import BASE_PREFIX, decode_base
from ._dispatch import Dispatcher
from ._seams import BlockingReads, Timers
from .messages import Committed, GetMarks, GetRows, Loaded, Observed, Saved

__all__ = ["FoldActor"]

_LOAD_EVENTS = 4096
_EVENTS_PER_ENTRY = 4  # a snapshot has all entries: with many of them it is made less often, so that it stays cheap

Question = GetMarks | GetRows


class FoldActor(LogmarkActor, abc.ABC):
    """Folds a session's events, each once and in order.

    What it is not told in order it reads from the log: everything at the start, what another process wrote later. The
    reading is done elsewhere, as this actor never blocks; questions wait until the fold includes the number they name.

    Every ``Limits.marks_unsaved_events_max`` events it has the store keep what was derived, so that the next one need
    not read from the start. What is kept decides nothing: without it, the log is read.
    """

    travels = True

    snapshot_name: ClassVar[str]
    """What the fold is kept under."""

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
            dispatcher=dispatcher,
            clock=clock,
            log=log,
            restarts_max=limits.actor_restarts_max,
            restart_window_s=limits.actor_restart_window_s,
            timers=timers,
        )
        self._session_id = session_id
        self._store = store
        self._reads = reads
        self._loading = False
        self._wanted_seq = 0
        self._load_wanted_seq = 0  # what was wanted, and how many had asked, when the read on its way began
        self._load_questions = 0
        self._questions: list[Question] = []
        self._unsaved_max = limits.marks_unsaved_events_max
        self._saved_seq = 0
        self._saving = False

    # -- what is folded -----------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def folded_seq(self) -> int:
        """Number of the last event that was folded in."""

    @abc.abstractmethod
    def _fold(self, envelopes: tuple[RawEnvelope, ...]) -> None:
        """Fold in what follows; an event at or below ``folded_seq`` was folded in before."""

    @abc.abstractmethod
    def _clear(self) -> None:
        """Begin again with nothing."""

    @abc.abstractmethod
    def _reply_to(self, question: Any) -> Any:
        """Return the answer to a question, now that the fold includes what it names."""

    # -- what is kept of it -------------------------------------------------------------------------------------

    @property
    def _is_kept(self) -> bool:
        """Whether it makes sense to keep what was derived."""
        return True

    @abc.abstractmethod
    def _entries(self) -> tuple[int, Callable[[], bytes]]:
        """Return how many entries there are to keep, as they are now, and what encodes them in another thread."""

    @abc.abstractmethod
    def _decoded(self, data: bytes) -> Any:
        """Return what was kept, for ``_restore``; ValueError when it cannot be taken over. In another thread."""

    def _decoded_base(self, data: bytes) -> Any:
        """Return what was kept when its events were pruned; otherwise as ``_decoded``."""
        return self._decoded(data)

    @abc.abstractmethod
    def _restore(self, seq: int, kept: Any) -> None:
        """Begin with what was kept, derived from all events up to ``seq``."""

    # -- what is logged of it, under names of its own -----------------------------------------------------------

    @abc.abstractmethod
    def _note_unavailable(self, error: LogmarkError) -> None: ...

    @abc.abstractmethod
    def _note_unsaved(self, seq: int, error: Exception) -> None: ...

    @abc.abstractmethod
    def _note_taken_over(self, seq: int, kept: Any) -> None: ...

    @abc.abstractmethod
    def _note_not_taken_over(self, seq: int, error: ValueError) -> None: ...

    # -- turns --------------------------------------------------------------------------------------------------

    def on_receive(self, message: Any) -> None:
        """Fold, load or answer."""
        match message:
            case Committed():
                self._wanted_seq = max(self._wanted_seq, message.last_seq)
                if not self._loading and message.last_seq_before == self.folded_seq:
                    self._fold(message.envelopes)
            case Observed():
                self._wanted_seq = max(self._wanted_seq, message.last_seq)
            case GetMarks() | GetRows():
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
        ready = [each for each in self._questions if each.min_seq <= self.folded_seq]
        if ready:
            self._questions = [each for each in self._questions if each.min_seq > self.folded_seq]
            for question in ready:
                self._answer(question)
        if self.folded_seq < self._wanted_seq and not self._loading:
            self._loading = True
            self._load_wanted_seq, self._wanted_seq = self._wanted_seq, self.folded_seq
            self._load_questions = len(self._questions)
            from_seq = self.folded_seq + 1
            try:
                self._reads.submit(lambda: self._load(from_seq))
            except RuntimeError as error:  # no thread for it
                reason = f"its events cannot be read: {error}"
                self._on_loaded(Loaded(from_seq, (), 0, StorageUnavailable(store=self._store.url, reason=reason)))
        unsaved = self.folded_seq - self._saved_seq
        if unsaved >= self._unsaved_max and not self._saving and self._is_kept:
            self._save_entries(unsaved)

    # -- keeping ------------------------------------------------------------------------------------------------

    def _save_entries(self, unsaved: int) -> None:
        """Have the entries kept by the store, unless they are so many that it is not yet worth it."""
        seq = self.folded_seq
        count, encode = self._entries()
        if unsaved < count * _EVENTS_PER_ENTRY:
            return
        self._saved_seq = seq  # whether or not it can be saved: a disk that refuses is asked again as late as this
        try:
            self._reads.submit(lambda: self._save(seq, encode))
        except RuntimeError as error:  # no thread for it
            self._note_unsaved(seq, error)
        else:
            self._saving = True

    def _save(self, seq: int, encode: Callable[[], bytes]) -> None:
        """Keep the entries; runs in a thread that may block."""
        try:
            self._store.save_snapshot(self._session_id, self.snapshot_name, Snapshot(seq, encode()))
        except Exception as error:  # they are derived: without them, the log is read
            self._note_unsaved(seq, error)
        try:
            self.actor_ref.tell(Saved())
        except ActorDeadError:
            return  # closing

    def _load_kept(self) -> tuple[int, Any] | None:
        """Return what the store has kept, and the number it goes to; runs in a thread that may block."""
        kept = self._store.load_snapshot(self._session_id, self.snapshot_name) if self._is_kept else None
        if kept is None:
            return None
        try:
            decoded = self._decoded(kept.data)
        except ValueError as error:
            self._note_not_taken_over(kept.seq, error)
            return None
        self._note_taken_over(kept.seq, decoded)
        return kept.seq, decoded

    # -- reading ------------------------------------------------------------------------------------------------

    def _load(self, from_seq: int) -> None:
        """Read the next part of the log; runs in a thread that may block."""
        try:
            kept = self._load_kept() if from_seq == 1 else None
            kept, events = self._events(from_seq, kept)
            loaded = Loaded(from_seq, events, self._store.last_seq(self._session_id), kept=kept)
        except LogmarkError as error:
            loaded = Loaded(from_seq, (), 0, error)
        except Exception as error:  # whatever it is, who waits for the fold is told
            loaded = Loaded(from_seq, (), 0, StorageUnavailable(store=self._store.url, reason=repr(error)))
        try:
            self.actor_ref.tell(loaded)
        except ActorDeadError:
            self._log.debug("load_dropped", from_seq=from_seq)

    def _events(
        self, start: int, kept: tuple[int, Any] | None
    ) -> tuple[tuple[int, Any] | None, tuple[RawEnvelope, ...]]:
        """Return events from a number on, behind what was kept; behind the base when they were pruned."""
        start = start if kept is None else kept[0] + 1
        while True:
            try:
                events = tuple(itertools.islice(self._store.read(self._session_id, from_seq=start), _LOAD_EVENTS))
            except SeqPruned as pruned:
                base = self._load_base()
                if base is not None and base[0] >= start:
                    kept = base
                start = max(pruned.first_available, start if kept is None else kept[0] + 1)
            else:
                return kept, events

    def _load_base(self) -> tuple[int, Any] | None:
        """Return what was derived before events were pruned, and the number it goes to; see ``_bases.py``."""
        record = self._store.load_record(self._session_id, BASE_PREFIX + self.snapshot_name)
        if record is None:
            return None
        try:
            seq, data = decode_base(record.data)
            if seq >= self._store.info(self._session_id).next_seq:
                message = f"it goes to {seq}, beyond the log"
                raise ValueError(message)
            base = seq, self._decoded_base(data)
        except ValueError as error:
            self._log.warning("base_ignored", name=self.snapshot_name, reason=str(error))
            return None
        self._log.info("base_taken_over", name=self.snapshot_name, seq=seq)
        return base

    def _on_loaded(self, message: Loaded) -> None:
        self._loading = False
        if message.error is not None:
            # The log cannot be read: who asked is told so; who asks next makes the next attempt.
            self._note_unavailable(message.error)
            self._wanted_seq = self.folded_seq
            self._answer_all(message.error)
            return
        if message.from_seq != self.folded_seq + 1:
            return  # read for a state that a restart has thrown away
        if message.kept is not None:
            self._restore(*message.kept)
            self._saved_seq = self.folded_seq
        if message.events or message.kept is not None:
            self._fold(message.events)
            self._wanted_seq = max(self._wanted_seq, self._load_wanted_seq)
            return
        # The log went no further when it was read, whatever number somebody had named by then: that is the answer.
        # What has become durable since, and who has asked for it since, needs another look.
        asked, self._questions = self._questions[: self._load_questions], self._questions[self._load_questions :]
        for question in asked:
            self._answer(question)

    # -- answering ----------------------------------------------------------------------------------------------

    def _answer(self, question: Question) -> None:
        self._tell_asker(question, self._reply_to(question))

    def _answer_all(self, error: LogmarkError) -> None:
        questions, self._questions = self._questions, []
        for question in questions:
            self._tell_asker(question, error)

    def _tell_asker(self, question: Question, answer: Any) -> None:
        try:
            question.answer(answer)
        except BaseException as error:  # the asker's own fault: it may not keep the answers from the others
            self._log.error("reply_failed", error=repr(error), exc_info=error)

    # -- failure and the end ------------------------------------------------------------------------------------

    def on_message_failed(self, message: Any) -> None:
        """Note what the failed handler may not have noted."""
        match message:
            case Committed() | Observed():
                self._wanted_seq = max(self._wanted_seq, message.last_seq)
            case GetMarks() | GetRows() if _is_new(message, self._questions):
                self._wanted_seq = max(self._wanted_seq, message.min_seq)
                self._questions.append(message)
            case _:
                pass

    def on_restarted(self, error: Exception) -> None:
        """Start again from the log."""
        self._wanted_seq = max(self._wanted_seq, self._load_wanted_seq, self.folded_seq)
        self._clear()
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
        if isinstance(message, GetMarks | GetRows):
            self._tell_asker(message, RuntimeClosed())


def _is_new(question: Question, questions: Iterable[Question]) -> bool:
    return all(question is not each for each in questions)
