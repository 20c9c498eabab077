"""How the actors of one runtime are wired together, and on what they run."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

from pykka import ActorDeadError, ActorRef, Timeout

from ..protocol import Clock, EventTypes, Limits, SessionDeleted
from ..storage import EventStore, Logger, SystemClock
from ._broadcast import BroadcastActor
from ._dispatch import Dispatcher, ThreadDispatcher
from ._gate import Gate
from ._instrumentation import Instruments
from ._job import JobActor
from ._linger import Linger, RateLinger
from ._persist import PersistActor, WriterPool
from ._rows import RowActor
from ._seams import BlockingReads, ThreadBlockingReads, ThreadTimers, Timers
from ._session import SessionActor
from ._watch import WatchActor
from ._watermark import Watermark

__all__ = ["ActorSystem", "Seams", "ThreadSeams"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """What a runtime reaches the world through: threads and the real clock, or one thread and a virtual one.

    Attributes:
        clock: the time.
        dispatcher: gives turns to the actors that never block.
        writer_dispatcher: returns what gives turns to the PersistActor with this number, which blocks.
        timers: sends messages later.
        reads: runs what may block on behalf of actors that must not.
        random_bits: returns so many random bits, for event ids.
        new_linger: returns what waits for a session's callers before a commit.
    """

    clock: Clock
    dispatcher: Dispatcher
    writer_dispatcher: Callable[[int], Dispatcher]
    timers: Timers
    reads: BlockingReads
    random_bits: Callable[[int], int]
    new_linger: Callable[[], Linger]


class ThreadSeams:
    """The real thing: daemon threads, each started when it is first needed."""

    def __init__(self, limits: Limits) -> None:
        self._clock = SystemClock()
        self._pool = ThreadDispatcher("pool", limits.pool_threads_max)
        self._writers: list[ThreadDispatcher] = []
        self._timers = ThreadTimers(self._clock)
        self._reads = ThreadBlockingReads(limits.io_threads_max)
        self.seams = Seams(
            clock=self._clock,
            dispatcher=self._pool,
            writer_dispatcher=self._writer_dispatcher,
            timers=self._timers,
            reads=self._reads,
            random_bits=random.Random().getrandbits,  # noqa: S311 - seeded by the system; ids are unique, not secret
            new_linger=lambda: RateLinger(self._clock),
        )

    def _writer_dispatcher(self, number: int) -> Dispatcher:
        dispatcher = ThreadDispatcher(f"persist-{number}", 1, may_block=True)
        self._writers.append(dispatcher)
        return dispatcher

    def stop(self, *, writers: bool) -> None:
        """End the threads; those of the writers only if they are not stuck in a write."""
        self._timers.stop()
        self._pool.stop()
        self._reads.stop()
        if writers:
            for dispatcher in self._writers:
                dispatcher.stop()


class ActorSystem:
    """Starts the actors of one store and keeps its writers."""

    def __init__(
        self,
        store: EventStore,
        *,
        limits: Limits,
        types: EventTypes,
        seams: Seams,
        log: Logger,
        instruments: Instruments | None = None,
    ) -> None:
        self._store = store
        self._limits = limits
        self._types = types
        self._seams = seams
        self._log = log
        self._instruments = instruments
        self._writers_started = 0
        self._writers = WriterPool(self._start_writer, limits.persist_threads_max)

    def start_session(self, session_id: str, gate: Gate, watermark: Watermark) -> ActorRef[Any]:
        """Start the SessionActor of a session; it starts those behind it as they are needed."""
        return SessionActor.start(
            session_id=session_id,
            choose_writer=self._writers.choose,
            children=_Children(self, session_id),
            gate=gate,
            watermark=watermark,
            limits=self._limits,
            timers=self._seams.timers,
            dispatcher=self._seams.dispatcher,
            clock=self._seams.clock,
            log=self._log,
            instruments=self._instruments,
            new_linger=self._seams.new_linger,
        )

    @property
    def writers(self) -> int:
        """How many PersistActors there are."""
        return len(self._writers.refs())

    def start_broadcast(self, session_id: str) -> ActorRef[Any]:
        """Start the BroadcastActor of a session."""
        return BroadcastActor.start(
            session_id=session_id,
            limits=self._limits,
            dispatcher=self._seams.dispatcher,
            clock=self._seams.clock,
            log=self._log,
            timers=self._seams.timers,
        )

    def start_jobs(self, session_id: str) -> ActorRef[Any]:
        """Start the JobActor of a session."""
        return JobActor.start(
            session_id=session_id,
            store=self._store,
            types=self._types,
            reads=self._seams.reads,
            limits=self._limits,
            dispatcher=self._seams.dispatcher,
            clock=self._seams.clock,
            log=self._log,
            timers=self._seams.timers,
        )

    def start_rows(self, session_id: str) -> ActorRef[Any]:
        """Start the RowActor of a session."""
        return RowActor.start(
            session_id=session_id,
            store=self._store,
            reads=self._seams.reads,
            limits=self._limits,
            dispatcher=self._seams.dispatcher,
            clock=self._seams.clock,
            log=self._log,
            timers=self._seams.timers,
        )

    def start_watch(self, observed: Callable[[str, int | SessionDeleted], None]) -> ActorRef[Any]:
        """Start the actor that watches for what other processes append."""
        return WatchActor.start(
            store=self._store,
            observed=observed,
            timers=self._seams.timers,
            reads=self._seams.reads,
            limits=self._limits,
            dispatcher=self._seams.dispatcher,
            clock=self._seams.clock,
            log=self._log,
        )

    def _start_writer(self, answered: Callable[[ActorRef[Any]], None]) -> ActorRef[Any]:
        self._writers_started += 1
        return PersistActor.start(
            store=self._store,
            limits=self._limits,
            dispatcher=self._seams.writer_dispatcher(self._writers_started),
            clock=self._seams.clock,
            log=self._log,
            timers=self._seams.timers,
            answered=answered,
        )

    def stop_writers(self, timeout_s: float) -> None:
        """Stop the writers after what they were told before."""
        for writer in self._writers.refs():
            try:
                writer.stop(block=True, timeout=timeout_s)
            except (Timeout, ActorDeadError):
                self._log.warning("writer_stop_failed", writer=str(writer))


class _Children:
    """Starts the actors behind one SessionActor."""

    __slots__ = ("_session_id", "_system")

    def __init__(self, system: ActorSystem, session_id: str) -> None:
        self._system = system
        self._session_id = session_id

    def start_broadcast(self) -> ActorRef[Any]:
        return self._system.start_broadcast(self._session_id)

    def start_jobs(self) -> ActorRef[Any]:
        return self._system.start_jobs(self._session_id)

    def start_rows(self) -> ActorRef[Any]:
        return self._system.start_rows(self._session_id)
