"""A stand-in for the PersistActor, which does what a disk does only on its worst days."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from pykka import ActorDeadError, ActorRef, ActorRegistry

from ..actors import Dispatcher, LogmarkActor, ThreadDispatcher
from ..actors.messages import HaltSession, Persist, Persisted
from ..protocol import AppendError, AppendUncertain, Clock, RuntimeClosed
from ..storage import (
    Appended,
    BatchResult,
    EventStore,
    Logger,
    MemoryEventStore,
    SessionBatch,
    SystemClock,
    get_logger,
)

__all__ = ["HeldCommit", "MockWriter"]

_shared_dispatcher = ThreadDispatcher("mock-writers", 1)  # no thread before the first writer; a writer never blocks it


@dataclasses.dataclass(frozen=True, slots=True)
class _GoOn:
    """To the writer itself: a held commit is done, take the next."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Fail:
    error: AppendError
    request: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Die:
    silent: bool
    written: bool


class HeldCommit:
    """A commit that the writer has begun and not finished. Made by ``MockWriter.hold``; safe from any thread.

    Nothing of it is in the store, and nobody has been answered, before ``release`` or ``fail``. Either may be called
    early, then the commit is not held when it comes, and either also works when the writer has died meanwhile: the disk
    does not know that nobody waits for it any more.
    """

    def __init__(self, writer: MockWriter) -> None:
        self._writer = writer
        self._changed = threading.Condition()
        self._message: Persist | None = None
        self._outcome: _Fail | None = None
        self._decided = False
        self._done = False

    def wait(self, timeout: float = 5.0) -> SessionBatch:
        """Wait until the writer has begun the commit, and return its batch.

        Raises:
            TimeoutError: no commit came within ``timeout`` seconds of real time.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._message is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    message = f"no commit came to be held in {timeout:g} s"
                    raise TimeoutError(message)
                self._changed.wait(left)
            return self._message.batch

    def release(self) -> None:
        """Let the commit succeed; a second call does nothing."""
        self._decide(None)

    def fail(self, error: AppendError, *, request: int | None = None) -> None:
        """Let the commit fail, as ``MockWriter.fail_next`` would; a second call does nothing."""
        self._decide(_Fail(error, request))

    def _decide(self, outcome: _Fail | None) -> None:
        with self._changed:
            if self._decided:
                return
            self._decided, self._outcome = True, outcome
        self._finish_if_due()

    def begin(self, message: Persist) -> bool:
        """Take the commit; True when it is to be held. For the writer."""
        with self._changed:
            self._message = message
            self._changed.notify_all()
        return not self._finish_if_due()

    def _finish_if_due(self) -> bool:
        """Finish a commit that has come and is decided, in whichever thread made it so; True when it is finished."""
        with self._changed:
            if self._message is None or not self._decided or self._done:
                return self._done
            self._done = True
            message, outcome = self._message, self._outcome
        self._writer.finish(self, message, outcome)
        return True


class MockWriter(LogmarkActor):
    """Stands in for a PersistActor: answers each ``Persist`` with ``Persisted``, from a store in memory.

    It numbers as the real store does, for any number of sessions, one batch after the other. A test can hold, fail or
    kill a coming commit; each such plan is for one commit, and plans are used up in the order in which they were made.
    Every method may be called from any thread, also while the actor runs::

        writer = MockWriter()
        writer.fail_next(StorageRejected(session_id="chat-42", reason="no space left"))
        session = SessionActor.start(choose_writer=writer.choose, ...)

    ``ActorHarness`` does the starting. ``MockWriter.start(...)`` works as for every pykka actor.

    Args:
        store: numbers and keeps the events; a ``MemoryEventStore`` by default.
        dispatcher: gives the writer its turns; by default a thread that all such writers share.
    """

    def __init__(
        self,
        *,
        store: EventStore | None = None,
        dispatcher: Dispatcher | None = None,
        clock: Clock | None = None,
        log: Logger | None = None,
    ) -> None:
        super().__init__(
            dispatcher=dispatcher or _shared_dispatcher,
            clock=clock or SystemClock(),
            log=(log or get_logger()).bind(actor="mock_writer"),
        )
        self._store: EventStore = MemoryEventStore() if store is None else store
        self._changed = threading.Condition(threading.RLock())
        self._running = False
        self._plans: deque[HeldCommit | _Fail | _Die] = deque()
        self._asked: list[SessionBatch] = []
        self._halts: list[HaltSession] = []
        self._queue: deque[Persist | HaltSession] = deque()
        self._held: HeldCommit | None = None
        self._dying_silently = False

    # -- for the test -------------------------------------------------------------------------------------------

    @property
    def store(self) -> EventStore:
        """The store that numbers and keeps the events: what is "on disk"."""
        return self._store

    def choose(self) -> ActorRef[Any]:
        """Return the writer's ref, started: what a SessionActor takes as ``choose_writer``."""
        with self._changed:
            if not self._running:
                ActorRegistry.register(self.actor_ref)
                self._start_actor_loop()
        return self.actor_ref

    def hold(self) -> HeldCommit:
        """Hold a coming commit until the returned handle is released; batches behind it wait, as for a slow disk."""
        held = HeldCommit(self)
        with self._changed:
            self._plans.append(held)
        return held

    def fail_next(self, error: AppendError, *, request: int | None = None) -> None:
        """Fail a coming commit: nothing of it is written and its requests are answered with ``error``.

        An ``AppendUncertain`` halts the session as well, as in a real store.

        Args:
            error: an error as a store answers it.
            request: fail only the request at this place of the batch (the last one, if it has fewer); the others are
                written.
        """
        with self._changed:
            self._plans.append(_Fail(error, request))

    def die_next(self, *, silent: bool = True, written: bool = False) -> None:
        """Die when a coming commit begins.

        Args:
            silent: say nothing to anybody, neither about this commit nor about those that wait behind it. Otherwise do
                as a PersistActor that gives up: halt the session, answer ``AppendUncertain``, and answer those behind
                it with ``RuntimeClosed``.
            written: the batch reaches the store all the same.
        """
        with self._changed:
            self._plans.append(_Die(silent, written))

    def die(self) -> None:
        """Die at once and silently, also in the middle of a held commit."""
        with self._changed:
            self._dying_silently = True
            self._queue.clear()
            ActorRegistry.unregister(self.actor_ref)
            self._end()

    @property
    def asked(self) -> tuple[SessionBatch, ...]:
        """Every batch that the writer was asked to write, in order, also those that failed or wait."""
        with self._changed:
            return tuple(self._asked)

    @property
    def halts(self) -> tuple[HaltSession, ...]:
        """Every halt that the writer has recorded, in order."""
        with self._changed:
            return tuple(self._halts)

    def wait_for_asked(self, n: int, timeout: float = 5.0) -> tuple[SessionBatch, ...]:
        """Wait until the writer was asked for ``n`` batches, and return all there are.

        Raises:
            TimeoutError: fewer after ``timeout`` seconds of real time.
        """
        self._wait(lambda: len(self._asked) >= n, timeout, f"{n} batches")
        return self.asked

    def wait_for_halts(self, n: int, timeout: float = 5.0) -> tuple[HaltSession, ...]:
        """Wait until the writer has recorded ``n`` halts, and return all there are.

        Raises:
            TimeoutError: fewer after ``timeout`` seconds of real time.
        """
        self._wait(lambda: len(self._halts) >= n, timeout, f"{n} halts")
        return self.halts

    def _wait(self, reached: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        with self._changed:
            while not reached():
                left = deadline - time.monotonic()
                if left <= 0:
                    sizes = [len(batch.requests) for batch in self._asked]
                    message = (
                        f"the writer was not asked for {what} in {timeout:g} s; there were batches of {sizes}"
                        f" requests and {len(self._halts)} halts"
                    )
                    raise TimeoutError(message)
                self._changed.wait(left)

    # -- the actor ----------------------------------------------------------------------------------------------

    def _start_actor_loop(self) -> None:
        with self._changed:
            self._running = True
        super()._start_actor_loop()

    def on_receive(self, message: Any) -> None:
        """Write a batch as it was planned, or record a halt."""
        match message:
            case Persist():
                with self._changed:
                    self._asked.append(message.batch)
                    self._queue.append(message)
                    self._changed.notify_all()
                self._go_on()
            case HaltSession():
                with self._changed:
                    self._queue.append(message)
                self._go_on()
            case _GoOn():
                self._go_on()
            case _:
                super().on_receive(message)

    def _go_on(self) -> None:
        """Take what waits, up to a commit that is held; a single actor turn at a time comes here."""
        while True:
            with self._changed:
                if self._held is not None or not self._queue:
                    return
                message = self._queue.popleft()
                if isinstance(message, HaltSession):
                    self._store.halt(message.session_id, message.reason, first_event_id=message.first_event_id)
                    self._halts.append(message)
                    self._changed.notify_all()
                    continue
                plan = self._plans.popleft() if self._plans else None
                if isinstance(plan, HeldCommit):
                    self._held = plan
            match plan:
                case HeldCommit():
                    plan.begin(message)
                case _Die():
                    self._die_writing(message, plan)
                case _:
                    self._answer(message, self._commit(message.batch, plan))

    def finish(self, held: HeldCommit, message: Persist, outcome: _Fail | None) -> None:
        """Finish a held commit. For ``HeldCommit``, in whichever thread decided it."""
        self._answer(message, self._commit(message.batch, outcome))
        with self._changed:
            if self._held is held:
                self._held = None
        try:
            self.actor_ref.tell(_GoOn())
        except ActorDeadError:
            self._log.debug("late_commit", session=message.batch.session_id)

    def _commit(self, batch: SessionBatch, plan: _Fail | None) -> BatchResult:
        """Write a batch, without the requests that are planned to fail."""
        if plan is None:
            (result,) = self._store.append([batch])
            return result
        error = plan.error
        if isinstance(error, AppendUncertain):
            self._store.halt(batch.session_id, error.reason, first_event_id=error.first_event_id)
        if plan.request is None:
            return self._unwritten(batch, error)
        failed = min(plan.request, len(batch.requests) - 1)
        rest = tuple(request for index, request in enumerate(batch.requests) if index != failed)
        (result,) = self._store.append([SessionBatch(batch.session_id, rest)])
        answers: tuple[Appended | AppendError, ...] = (*result.answers[:failed], error, *result.answers[failed:])
        return result._replace(answers=answers)

    def _unwritten(self, batch: SessionBatch, error: AppendError) -> BatchResult:
        last_seq = self._store.last_seq(batch.session_id)
        return BatchResult(
            session_id=batch.session_id,
            answers=(error,) * len(batch.requests),
            last_seq_before=last_seq,
            last_seq=last_seq,
        )

    def _die_writing(self, message: Persist, plan: _Die) -> None:
        if plan.written:
            self._store.append([message.batch])
        if plan.silent:
            self.die()
            return
        session_id = message.batch.session_id
        first_id = message.batch.requests[0].events[0].id
        reason = "the writer failed: planned by the test"
        self._store.halt(session_id, reason, first_event_id=first_id)
        error = AppendUncertain(session_id=session_id, reason=reason, first_event_id=first_id)
        self._answer(message, self._unwritten(message.batch, error))
        ActorRegistry.unregister(self.actor_ref)
        self._end()
        self.on_stop()

    def _answer(self, message: Persist, result: BatchResult) -> None:
        try:
            message.reply_to.tell(Persisted(message.batch_id, result, 0.0))
        except ActorDeadError:
            self._log.warning("answer_undeliverable", session=result.session_id, last_seq=result.last_seq)

    def on_stop(self) -> None:
        """Answer the batches behind a held commit; the held one stays without an answer, as when a thread dies."""
        with self._changed:
            waiting = list(self._queue)
            self._queue.clear()
        for message in waiting:
            self.on_dead_letter(message)

    def on_dead_letter(self, message: Any) -> None:
        """Answer a batch that came after the end, unless the writer died silently."""
        if isinstance(message, Persist) and not self._dying_silently:
            error = RuntimeClosed("the writer was stopped before the write")
            self._answer(message, self._unwritten(message.batch, error))
