"""The runtime: one store, its actors, and the sessions that a program has opened."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pykka import ActorDeadError, ActorRef

from ._session import EventLike, Session
from .actors import ActorSystem, Seams, ThreadSeams, refuse_in_turn
from .actors.messages import Unwatch, Watch
from .protocol import (
    EncodedEvent,
    EventEncoder,
    EventTypes,
    ForkedRuntime,
    JobStatusRule,
    Limits,
    LogCorrupt,
    RuntimeClosed,
    SchemaMismatch,
    StorageUnavailable,
    UlidSequence,
    check_session_id,
)
from .storage import EventStore, Logger, SessionInfo, get_logger, open_store, rfc3339

if TYPE_CHECKING:
    from .gateway import Agents

__all__ = ["Runtime", "open_runtime"]

F = TypeVar("F", bound=Callable[..., Any])

# Strong references: a program may drop its own and still rely on what it has submitted.
_open_runtimes: set[Runtime] = set()


class Runtime:
    """An open store and the actors that work on it. Safe from any thread; a context manager that closes.

    Made by ``logmark.open``. Its threads are daemons: at interpreter exit every runtime that is still open is closed,
    which waits for what was accepted.
    """

    def __init__(
        self,
        store: EventStore,
        *,
        limits: Limits | None = None,
        types: EventTypes | None = None,
        seams: Seams | None = None,
        log: Logger | None = None,
    ) -> None:
        self.store = store
        self.limits = limits or Limits()
        self.types = types or EventTypes()
        self.encoder = EventEncoder(self.types, self.limits)
        self.log = log or get_logger()
        self._threads: ThreadSeams | None = None
        if seams is None:
            self._threads = ThreadSeams(self.limits)
            seams = self._threads.seams
        self.clock = seams.clock
        self.actors = ActorSystem(store, limits=self.limits, types=self.types, seams=seams, log=self.log)
        self._watch: ActorRef[Any] | None = None
        self._ulids = UlidSequence(seams.random_bits)
        self._ulid_mutex = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self._agents: Agents | None = None
        self._mutex = threading.Lock()
        self._pid = os.getpid()
        self._forked = False
        self._closing = False
        self._closed = threading.Event()
        self._close_mutex = threading.Lock()
        _open_runtimes.add(self)
        self.log.info("runtime_opened", store=store.url)

    # -- sessions -----------------------------------------------------------------------------------------------

    def session(self, session_id: str) -> Session:
        """Return the session with this id, always the same object. It comes into being with its first event.

        Args:
            session_id: non-empty text of at most ``Limits.session_id_bytes_max`` UTF-8 bytes.

        Raises:
            InvalidArgument: no valid id.
            RuntimeClosed, ForkedRuntime: there is no runtime here.
        """
        self.check_usable()
        try:
            session = self._sessions.get(session_id)
        except TypeError:  # not even hashable
            session = None
        if session is None:
            check_session_id(session_id, bytes_max=self.limits.session_id_bytes_max)
            with self._mutex:
                session = self._sessions.get(session_id)
                if session is None:
                    session = self._sessions[session_id] = Session(self, session_id)
        return session

    def forget_session(self, session_id: str) -> Session | None:
        """Take a session object out of the runtime, so that the next ``session`` makes another; the log is untouched.

        For whoever opens a great many: the caller knows that nobody uses the object any more, and then stops it.
        """
        with self._mutex:
            return self._sessions.pop(session_id, None)

    def sessions(self) -> Iterator[SessionInfo]:
        """Iterate over every session in the store, whoever wrote it, in the order of their ids.

        A session whose log is damaged is there too, with ``damage`` saying so and ``last_seq`` as far as it is good.
        """
        self.check_usable()
        return (self._info(session_id) for session_id in self.store.sessions())

    def _info(self, session_id: str) -> SessionInfo:
        try:
            return self.store.info(session_id)
        except (LogCorrupt, SchemaMismatch) as error:
            bad_seq = error.event_seq if isinstance(error, LogCorrupt) else None
            good = max(0, (bad_seq or 1) - 1)
            return SessionInfo(session_id=session_id, last_seq=good, next_seq=good + 1, damage=str(error))

    # -- agents -------------------------------------------------------------------------------------------------

    @property
    def agents(self) -> Agents:
        """The agents that this runtime serves; see ``agent``."""
        with self._mutex:
            if self._agents is None:
                from .gateway import Agents

                self._agents = Agents()
            return self._agents

    def agent(self, name: str, *, version: str, default: bool = False) -> Callable[[F], F]:
        """Return a decorator that registers an agent: a function of a context and an input that does the work of jobs.

        Clients that ``logmark.serve`` lets in submit jobs to it by ``name`` or ``name@version`` (ARCP draft,
        section 7.5). It is called in a thread of the gateway, with an ``AgentContext`` and the job's input, possibly
        several times at once; what it returns is the result of the job. The decorated function stays as it is.

        Args:
            name: ``[a-z0-9][a-z0-9._-]*``.
            version: ``[a-zA-Z0-9.+_-]+``; several versions of an agent stand side by side.
            default: this version is what the bare name stands for. Without such a mark it is the one registered last.

        Raises:
            InvalidArgument: no valid name or version, no plain function of a context and an input, a version that is
                there already, or a second one marked as the default.
        """
        return self.agents.register(name, version=version, default=default)

    # -- what sessions use --------------------------------------------------------------------------------------

    def check_usable(self) -> None:
        """Raise unless the runtime is open and of this process."""
        self.check_process()
        if self._closing:
            raise RuntimeClosed

    def check_process(self) -> None:
        """Raise in a forked child, where locks may be held by threads that do not exist."""
        if self._forked:
            raise ForkedRuntime(owner_pid=self._pid, pid=os.getpid())

    def stamp(self) -> tuple[str, str, int]:
        """Return a new event id and the time, as text and in nanoseconds."""
        now_ns = self.clock.time_ns()
        with self._ulid_mutex:
            event_id = self._ulids.next(now_ns // 1_000_000)
        return event_id, rfc3339(now_ns), now_ns

    def encode_many(self, events: Iterable[EventLike]) -> tuple[tuple[EncodedEvent, ...], int]:
        """Encode events for one append, at one time; return that too."""
        self.check_usable()
        given = list(events)
        now_ns = self.clock.time_ns()
        with self._ulid_mutex:
            ids = self._ulids.many(now_ns // 1_000_000, len(given))
        return self.encoder.encode_many(given, ids, rfc3339(now_ns)), now_ns

    def watch(self, session_id: str) -> None:
        """Look out for what other processes append to a session."""
        self._tell_watch(Watch(session_id))

    def unwatch(self, session_id: str) -> None:
        """Undo one ``watch``."""
        self._tell_watch(Unwatch(session_id))

    def _tell_watch(self, message: object) -> None:
        if not self.store.is_shared:
            return
        with self._mutex:
            if self._watch is None or not self._watch.is_alive():
                if self._closing:
                    return
                try:
                    self._watch = self.actors.start_watch(self._observed)
                except RuntimeError as error:  # no thread for it
                    raise StorageUnavailable(store=self.store.url, reason=f"it cannot be watched: {error}") from error
            watch = self._watch
        try:
            watch.tell(message)
        except ActorDeadError:
            return  # closing

    def _observed(self, session_id: str, last_seq: int) -> None:
        session = self._sessions.get(session_id)
        if session is not None:
            session.observed(last_seq)

    # -- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Refuse what is new, finish what was accepted, stop. Returns when the last accepted append was answered.

        Accepted appends have ``Limits.close_wait_s`` seconds; those that the disk has not answered by then fail with
        ``AppendUncertain``, those that had not reached it with ``RuntimeClosed``. Subscriptions end. A second call does
        nothing; one from another thread waits for the first.
        """
        if self._forked:
            return
        refuse_in_turn("close()")
        with self._close_mutex:
            if self._closed.is_set():
                return
            self._closing = True
            sessions = list(self._sessions.values())
            deadline = self.clock.monotonic() + self.limits.close_wait_s
            drained = [session.drain(deadline) for session in sessions]
            if not all(drained):
                self.log.error("close_timed_out", sessions=drained.count(False), waited_s=self.limits.close_wait_s)
            if self._watch is not None:
                self._watch.stop(block=False)
            for session in sessions:
                session.stop()
            if all(drained):
                self.actors.stop_writers(self.limits.close_wait_s)
            if self._threads is not None:
                self._threads.stop(writers=all(drained))
            if all(drained):
                self.store.close()
            self._closed.set()
            _open_runtimes.discard(self)
            self.log.info("runtime_closed", store=self.store.url, drained=all(drained))

    def abandon(self) -> None:
        """Drop the runtime as a crash would: nothing is finished, nothing is released. For simulations of one."""
        self._closing = True
        self._closed.set()
        _open_runtimes.discard(self)

    def after_fork_in_child(self) -> None:
        """Become unusable in a forked child: the threads are the parent's."""
        self._forked = True
        self.store.after_fork_in_child()

    def __enter__(self) -> Self:
        """Return the runtime; leaving closes it."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the runtime."""
        self.close()

    def __repr__(self) -> str:
        return f"<Runtime {self.store.url!r}{' closed' if self._closing else ''}>"


def open_runtime(
    url: str,
    *,
    limits: Limits | None = None,
    durability: str = "fsync",
    control_types: Iterable[str] = (),
    job_status: Mapping[str, JobStatusRule] | None = None,
    create: bool = True,
) -> Runtime:
    """Open a store; see ``logmark.open``."""
    types = EventTypes(control=control_types, job_status=job_status)
    store = open_store(os.fspath(url), limits=limits, durability=durability, create=create)
    return Runtime(store, limits=limits, types=types)


def _close_all() -> None:
    for runtime in list(_open_runtimes):
        runtime.close()


def _after_fork_in_child() -> None:
    for runtime in list(_open_runtimes):
        runtime.after_fork_in_child()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
