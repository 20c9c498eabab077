"""The PersistActor: numbers and writes, and answers when it is on disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from pykka import ActorDeadError, ActorRef

from ..protocol import AppendUncertain, Clock, Limits, RuntimeClosed
from ..storage import BatchResult, EventStore, Logger, WouldWait, catch_up, set_patience
from ._base import LogmarkActor
from ._dispatch import Dispatcher, leave_thread
from ._seams import Timers
from .messages import HaltSession, Persist, Persisted

__all__ = ["PersistActor", "WriterPool"]


class PersistActor(LogmarkActor):
    """Writes batches to the store, one after the other; the only actor that blocks.

    Args:
        store: assigns the numbers.
        answered: called after each answer, so that its pool knows how busy it is.
    """

    travels = True

    def __init__(
        self,
        *,
        store: EventStore,
        limits: Limits,
        dispatcher: Dispatcher,
        clock: Clock,
        log: Logger,
        timers: Timers | None = None,
        answered: Callable[[ActorRef[Any]], None] | None = None,
    ) -> None:
        super().__init__(
            dispatcher=dispatcher,
            clock=clock,
            log=log.bind(actor="persist"),
            restarts_max=limits.actor_restarts_max,
            restart_window_s=limits.actor_restart_window_s,
            timers=timers,
        )
        self._store = store
        self._answered = answered
        self._writing: Persist | None = None

    def on_receive(self, message: Any) -> None:
        """Write a batch, or record a halt."""
        match message:
            case Persist():
                self._writing = message
                if not self._store.catches_up:
                    catch_up()  # or the callers of the last batch would wait for this one too
                began = self._clock.monotonic()
                try:
                    (result,) = self._store.append([message.batch])
                except WouldWait:
                    self._go_home(message)
                else:
                    self._answer(message, result, self._clock.monotonic() - began)
                finally:
                    catch_up()  # unless the store has done so before it waited
            case HaltSession():
                self._count_answered()
                set_patience(may_wait=True)  # a batch of the same session may be next, and must find the halt
                self._store.halt(message.session_id, message.reason, first_event_id=message.first_event_id)
            case _:
                super().on_receive(message)

    def _go_home(self, message: Persist) -> None:
        """Write it in a thread that may wait: the caller's own must not."""
        self._writing = None
        leave_thread()
        self.actor_ref.tell(message)

    def _count_answered(self) -> None:
        if self._answered is not None:
            self._answered(self.actor_ref)

    def _answer(self, message: Persist, result: BatchResult, commit_s: float) -> None:
        self._writing = None
        self._count_answered()
        try:
            message.reply_to.tell(Persisted(message.batch_id, result, commit_s))
        except ActorDeadError:
            self._log.warning("answer_undeliverable", session=result.session_id, last_seq=result.last_seq)

    def on_message_failed(self, message: Any) -> None:
        """Have a batch answered in which the failure came before the write."""
        if isinstance(message, Persist):
            self._writing = message

    def on_restarted(self, error: Exception) -> None:
        """A store may answer with errors and never raise; if it did, nobody knows what it has written."""
        self._fail_writing(f"the writer failed: {error!r}")

    def on_gave_up(self, error: Exception) -> None:
        """As for a restart; another writer takes the next batches."""
        self._fail_writing(f"the writer failed: {error!r}")

    def _fail_writing(self, reason: str) -> None:
        message, self._writing = self._writing, None
        if message is None:
            return
        session_id = message.batch.session_id
        first_id = message.batch.requests[0].events[0].id
        try:
            self._store.halt(session_id, reason, first_event_id=first_id)
        except Exception as second:
            self._log.error("halt_not_recorded", session=session_id, reason=repr(second), exc_info=second)
        error = AppendUncertain(session_id=session_id, reason=reason, first_event_id=first_id)
        self._answer(message, _failed(message, error), 0.0)

    def on_dead_letter(self, message: Any) -> None:
        """Answer a batch that came after the end: certainly not written. Record a halt all the same."""
        if isinstance(message, HaltSession):
            self._store.halt(message.session_id, message.reason, first_event_id=message.first_event_id)
        elif isinstance(message, Persist):
            self._answer(message, _failed(message, RuntimeClosed("the writer was stopped before the write")), 0.0)


def _failed(message: Persist, error: AppendUncertain | RuntimeClosed) -> BatchResult:
    return BatchResult(
        session_id=message.batch.session_id,
        answers=(error,) * len(message.batch.requests),
        last_seq_before=0,
        last_seq=0,
    )


class WriterPool:
    """PersistActors, and which of them gets the next batch.

    The least busy one gets it, so that a slow disk or a lock that is waited for in one session leaves the others a
    writer. A writer that has stopped is replaced.

    Args:
        start: starts a PersistActor; its argument is what the actor calls after each answer.
        writers_max: how many there may be.
    """

    def __init__(self, start: Callable[[Callable[[ActorRef[Any]], None]], ActorRef[Any]], writers_max: int) -> None:
        self._start = start
        self._writers_max = writers_max
        self._mutex = threading.Lock()
        self._busy: dict[ActorRef[Any], int] = {}

    def choose(self) -> ActorRef[Any]:
        """Return the writer for the next batch, and count the batch as its own."""
        with self._mutex:
            for idle, busy in self._busy.items():
                if not busy and idle.is_alive():
                    self._busy[idle] = 1
                    return idle
            for dead in [ref for ref in self._busy if not ref.is_alive()]:
                del self._busy[dead]
            writer = min(self._busy, key=lambda ref: self._busy[ref], default=None)
            if writer is None or (self._busy[writer] > 0 and len(self._busy) < self._writers_max):
                try:
                    started = self._start(self._answered)
                except (
                    RuntimeError
                ):  # no thread can be started any more: the interpreter is going down, or has too many
                    if writer is None:
                        raise
                else:
                    writer = started
                    self._busy[writer] = 0
            self._busy[writer] += 1
            return writer

    def _answered(self, writer: ActorRef[Any]) -> None:
        with self._mutex:
            if self._busy.get(writer, 0) > 0:  # a batch that follows a halt was not counted
                self._busy[writer] -= 1

    def refs(self) -> list[ActorRef[Any]]:
        """Return the writers there are."""
        with self._mutex:
            return list(self._busy)
