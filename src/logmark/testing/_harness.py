"""A session's actors around a writer that the test controls, ready in one line."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from pykka import ActorRef

from .._replies import FutureReply
from ..actors import (
    BlockingReads,
    BroadcastActor,
    Dispatcher,
    Gate,
    JobActor,
    Linger,
    PersistActor,
    RowActor,
    SessionActor,
    ThreadBlockingReads,
    ThreadDispatcher,
    ThreadTimers,
    Timers,
    Watermark,
    WriterPool,
)
from ..actors.messages import Append, AppendReply, GetMarks, Observed, Send, Subscribe, Subscriber, Unsubscribe
from ..protocol import Clock, EncodedEvent, EventTypes, JobMark, Limits, LogmarkError, RawEnvelope
from ..storage import AppendRequest, EventStore, SystemClock, add_sink, get_logger, remove_sink
from ._clock import ManualClock
from ._events import encoded_event
from ._step import InlineReads, ManualTimers, StepDispatcher
from ._subscriber import RecordingSubscriber
from ._writer import MockWriter

__all__ = ["ActorHarness"]

_numbers = itertools.count(1)


class ActorHarness:
    """A SessionActor with its BroadcastActor and JobActor, a ``MockWriter`` and a ``RecordingSubscriber``.

    >>> from logmark.testing import ActorHarness
    >>> with ActorHarness() as harness:
    ...     held = harness.writer.hold()
    ...     future = harness.append("message.created", {"text": "hi"})
    ...     assert held.wait() and not future.done() and harness.subscriber.envelopes == []
    ...     held.release()
    ...     future.result(timeout=5)
    1

    The actors run on threads; with ``stepped=True`` they run in ``run()``, on the test's thread and on a virtual clock,
    and nothing happens before. Leaving the block stops everything and raises what an actor has raised in a handler,
    unless failures are what the test is about. Safe from any thread; with ``stepped``, one thread runs.

    Args:
        session_id: the session.
        limits: the bounds, such as the size of the inbox.
        types: which types are control, and how events change a job's status.
        store: what the writer writes to and the JobActor reads; a ``MemoryEventStore`` by default.
        persist: let PersistActors do the writing instead of ``.writer``, in threads of their own unless ``stepped``.
        writer: the ref of yet another writer; it must write to ``store``, and the harness does not stop it.
        stepped: no threads.
        failures_ok: actors may fail.
        dispatcher: what gives the actors their turns, if not threads.
        timers: what sends messages later.
        reads: where reads of the log are done.
        clock: what the time is read from.
        new_linger: returns what waits for callers before a commit; nothing does by default.
    """

    def __init__(
        self,
        session_id: str = "session",
        *,
        limits: Limits | None = None,
        types: EventTypes | None = None,
        store: EventStore | None = None,
        persist: bool = False,
        writer: ActorRef[Any] | None = None,
        stepped: bool = False,
        failures_ok: bool = False,
        dispatcher: Dispatcher | None = None,
        timers: Timers | None = None,
        reads: BlockingReads | None = None,
        clock: Clock | None = None,
        new_linger: Callable[[], Linger] | None = None,
    ) -> None:
        self.session_id = session_id
        self._new_linger = new_linger
        self.limits = limits or Limits()
        self.types = types or EventTypes()
        self.clock: Clock = clock or (ManualClock() if stepped else SystemClock())
        self.gate = Gate(session_id, self.limits, self.clock)
        """The bound of the inbox: ``gate.events`` is what was accepted and not yet answered."""
        self.watermark = Watermark(self.clock)
        self.subscriber = RecordingSubscriber()
        """Subscribed from the start."""
        self._stepper = StepDispatcher() if stepped else None
        self._threads: list[ThreadDispatcher | ThreadTimers | ThreadBlockingReads] = []
        self.dispatcher: Dispatcher = dispatcher or self._stepper or self._threaded(ThreadDispatcher("harness", 2))
        if timers is None and isinstance(self.clock, ManualClock):
            timers = ManualTimers(self.clock)
        self.timers: Timers = timers or self._threaded(ThreadTimers(self.clock))
        self.reads: BlockingReads = reads or (InlineReads() if stepped else self._threaded(ThreadBlockingReads(1)))
        self._number = next(_numbers)
        self._log = get_logger(harness=self._number)
        self._failures_ok = failures_ok
        self.failures: list[Exception] = []
        """What actors have raised in their handlers, in order."""
        add_sink(self._note_failure)
        self.writer = MockWriter(store=store, dispatcher=self.dispatcher, clock=self.clock, log=self._log)
        """Gets the batches. Put another one here to replace a writer that has died."""
        self.store = self.writer.store
        self.writers = WriterPool(self._start_writer, self.limits.persist_threads_max)
        """The PersistActors, with ``persist``."""
        self.choose_writer: Callable[[], ActorRef[Any]] = lambda: self.writer.choose()  # noqa: PLW0108 - may be replaced
        """Called for each batch and each halt; put another function here to choose otherwise."""
        if persist:
            self.choose_writer = self.writers.choose
        elif writer is not None:
            self.choose_writer = lambda: writer
        self.broadcast: ActorRef[Any] | None = None
        """The BroadcastActor, once there is one."""
        self.jobs: ActorRef[Any] | None = None
        """The JobActor, once there is one: after the first event of a job, or the first question for marks."""
        self.rows: ActorRef[Any] | None = None
        """The RowActor, once there is one: after the first question for rows."""
        self._stopped = False
        self.session = self.start_session()
        """The SessionActor."""
        self.subscribe(self.subscriber)

    def _threaded(self, part: Any) -> Any:
        self._threads.append(part)
        return part

    def _note_failure(self, event: Mapping[str, Any]) -> None:
        if event["event"] in ("actor_failed", "actor_restart_failed") and event.get("harness") == self._number:
            self.failures.append(event["exc_info"])

    # -- the actors ---------------------------------------------------------------------------------------------

    def start_session(self) -> ActorRef[Any]:
        """Start a SessionActor on the same gate, watermark, writer and store, as after one that has given up."""
        return SessionActor.start(
            session_id=self.session_id,
            choose_writer=lambda: self.choose_writer(),  # noqa: PLW0108 - may be replaced
            children=self,
            gate=self.gate,
            watermark=self.watermark,
            limits=self.limits,
            timers=self.timers,
            dispatcher=self.dispatcher,
            clock=self.clock,
            log=self._log,
            new_linger=self._new_linger,
        )

    def _start_writer(self, answered: Callable[[ActorRef[Any]], None]) -> ActorRef[Any]:
        return PersistActor.start(
            store=self.store,
            limits=self.limits,
            dispatcher=self._stepper or self._threaded(ThreadDispatcher("harness-persist", 1)),
            clock=self.clock,
            log=self._log,
            answered=answered,
        )

    def start_broadcast(self) -> ActorRef[Any]:
        """Start the BroadcastActor; the SessionActor calls it."""
        self.broadcast = BroadcastActor.start(
            session_id=self.session_id,
            limits=self.limits,
            dispatcher=self.dispatcher,
            clock=self.clock,
            log=self._log,
        )
        return self.broadcast

    def start_jobs(self) -> ActorRef[Any]:
        """Start the JobActor; the SessionActor calls it."""
        self.jobs = JobActor.start(
            session_id=self.session_id,
            store=self.store,
            types=self.types,
            reads=self.reads,
            limits=self.limits,
            dispatcher=self.dispatcher,
            clock=self.clock,
            log=self._log,
        )
        return self.jobs

    def start_rows(self) -> ActorRef[Any]:
        """Start the RowActor; the SessionActor calls it."""
        self.rows = RowActor.start(
            session_id=self.session_id,
            store=self.store,
            reads=self.reads,
            limits=self.limits,
            dispatcher=self.dispatcher,
            clock=self.clock,
            log=self._log,
        )
        return self.rows

    # -- what a session does ------------------------------------------------------------------------------------

    def append(
        self,
        type: str = "message.created",
        payload: Any = None,
        *,
        id: str | None = None,
        job_id: str | None = None,
        expected_seq: int | None = None,
    ) -> Future[int]:
        """Submit one event, and return the future of its number; as ``Session.submit``.

        Raises:
            Overloaded, RuntimeClosed: as the gate says.
        """
        return self.append_many([encoded_event(type, payload, id=id, job_id=job_id)], expected_seq=expected_seq)

    def append_many(self, events: Sequence[EncodedEvent], *, expected_seq: int | None = None) -> Future[int]:
        """Submit several events as one append, and return the future of the first number."""
        reply = FutureReply()
        self.submit(AppendRequest(tuple(events), expected_seq), reply)
        return reply

    def submit(self, request: AppendRequest, reply: AppendReply) -> None:
        """Take places in the inbox and tell the SessionActor, as ``Session`` does, with a reply of the test's own."""
        events, size = len(request.events), sum(event.size_bytes for event in request.events)
        self.gate.enter(events, size)
        try:
            size_bytes = sum(event.size_bytes for event in request.events)
            self.session.tell(Append(request, reply, self.clock.time_ns(), size_bytes))
        except BaseException:
            self.gate.leave(events, size)
            raise

    def send(self, type: str = "session.ping", payload: Any = None) -> None:
        """Submit a control envelope, as ``Session.send``."""
        self.session.tell(Send(encoded_event(type, payload).stamped(self.session_id, None)))

    def observe(self, last_seq: int) -> None:
        """Tell the session how far the log goes, as the watcher of other processes does."""
        self.session.tell(Observed(last_seq))

    def subscribe(self, subscriber: Subscriber) -> None:
        """Subscribe to everything from here on."""
        self.session.tell(Subscribe(subscriber))

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Undo ``subscribe``."""
        self.session.tell(Unsubscribe(subscriber))

    def marks(self, job_id: str | None = None, *, min_seq: int | None = None) -> Future[list[JobMark]]:
        """Ask for marks that include ``min_seq`` (by default the last number in the store); return their future."""
        future: Future[list[JobMark]] = Future()

        def answer(marks: list[JobMark] | LogmarkError) -> None:
            if isinstance(marks, LogmarkError):
                future.set_exception(marks)
            else:
                future.set_result(marks)

        wanted = self.store.last_seq(self.session_id) if min_seq is None else min_seq
        self.session.tell(GetMarks(wanted, job_id, answer))
        return future

    @property
    def last_seq(self) -> int:
        """The session's counter: the highest number known to be durable."""
        return self.watermark.seq

    @property
    def log(self) -> list[RawEnvelope]:
        """The events in the store, halted or not."""
        return list(self.store.read(self.session_id, halted_ok=True))

    # -- turns and the end --------------------------------------------------------------------------------------

    def run(self) -> int:
        """Give turns until no actor is due; return how many.

        Raises:
            RuntimeError: the harness is not stepped.
        """
        if self._stepper is None:
            message = "the actors run on threads: only a stepped harness is run by the test"
            raise RuntimeError(message)
        return self._stepper.run_until_idle()

    def advance(self, seconds: float) -> int:
        """Let virtual time pass, moment by moment, and run what that brings; return how many messages were due.

        Raises:
            RuntimeError: the harness is not stepped.
        """
        timers, told = self._manual_timers(), 0
        self.run()
        until = timers.clock.monotonic() + seconds
        while (pending := timers.pending) and pending[0][0] <= until:
            told += timers.advance(max(0.0, pending[0][0] - timers.clock.monotonic()))
            self.run()
        timers.advance(max(0.0, until - timers.clock.monotonic()))
        return told

    def _manual_timers(self) -> ManualTimers:
        match self.timers:
            case ManualTimers() as timers:
                return timers
            case _:
                message = "time passes by itself: only a harness with ManualTimers is moved by the test"
                raise RuntimeError(message)

    def stop(self) -> None:
        """Stop the session and everything behind it; who waits is answered. A second call does nothing."""
        if self._stopped:
            return
        self._stopped = True
        self.gate.close()
        self.watermark.end()
        for ref in (self.session, self.writer.choose(), *self.writers.refs()):
            if self._stepper is None:
                ref.stop(block=True, timeout=10)
            else:
                ref.stop(block=False)
                self.run()
        for part in self._threads:
            part.stop()
        remove_sink(self._note_failure)

    def __enter__(self) -> Self:
        """Return the harness."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop; raise the first failure of an actor unless the block itself has raised."""
        self.stop()
        if exc is None and self.failures and not self._failures_ok:
            raise self.failures[0]
