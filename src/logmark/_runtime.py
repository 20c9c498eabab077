"""The runtime: one store, its actors, and the sessions that a program has opened."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pykka import ActorDeadError, ActorRef

from ._health import Health, Monitor, Status
from ._session import EventLike, Session
from .actors import ActorSystem, Changes, Instrumentation, Instruments, Seams, ThreadSeams, refuse_in_turn
from .actors.messages import Unwatch, Watch
from .protocol import (
    EncodedEvent,
    EventEncoder,
    EventTypes,
    ForkedRuntime,
    InvalidArgument,
    JobStatusRule,
    Limits,
    LogCorrupt,
    RuntimeClosed,
    SchemaMismatch,
    SessionDeleted,
    StorageUnavailable,
    UlidSequence,
    Upcaster,
    Upcasters,
    check_session_id,
)
from .storage import EventStore, Logger, SessionInfo, get_logger, open_store, rfc3339

if TYPE_CHECKING:
    from ._feed import Feed
    from ._subscription import Subscription
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
        instrumentation: Instrumentation | Sequence[Instrumentation] | None = None,
        upcasters: Upcasters | None = None,
    ) -> None:
        instrumentations = _instrumentations(instrumentation)
        self.store = store
        self.limits = limits or Limits()
        self.types = types or EventTypes()
        self.encoder = EventEncoder(self.types, self.limits)
        self.upcasters = upcasters or Upcasters()
        # Several runtimes, also in several processes, may write one log: each event says which it is of.
        self.log = (log or get_logger()).bind(runtime=f"{os.getpid()}-{os.urandom(3).hex()}").apart()
        self._threads: ThreadSeams | None = None
        if seams is None:
            self._threads = ThreadSeams(self.limits)
            seams = self._threads.seams
        self.clock = seams.clock
        self.instruments = Instruments(instrumentations, self.log) if instrumentations else None
        self.tracing = self.instruments if self.instruments is not None and self.instruments.tracer else None
        self._monitor = Monitor(store, self.clock)
        self._monitor.instruments = self.instruments
        self.actors = ActorSystem(
            store, limits=self.limits, types=self.types, seams=seams, log=self.log, instruments=self.instruments
        )
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self.changes = Changes()
        self._feeds: weakref.WeakSet[Feed] = weakref.WeakSet()
        self._feeds_hinted_s: float | None = None
        self._hints_started = False
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
        for log_of_its_own in (self.log, store.log):
            if log_of_its_own is not None:
                log_of_its_own.tap(self._monitor.notice)
        self.log.info("runtime_opened", store=store.url)
        if self.instruments is not None:
            self.instruments.opened(self.health)

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

    def delete_session(self, session_id: str) -> None:
        """Remove a session and all that is kept of it, durably, halted or damaged or not; a second call does nothing.

        Its id and its numbers are not used again: from now on appends and reads raise ``SessionDeleted``, in every
        process. Subscriptions get what they have at hand and then that error; those of other processes notice within
        ``Limits.watch_interval_s``, or when their engine tells them.

        Raises:
            InvalidArgument: no valid id.
            LockTimeout: somebody is writing; nothing was removed.
            StorageUnavailable: the disk refused; done or not, the next call settles it.
            RuntimeClosed, ForkedRuntime: there is no runtime here.
        """
        self.check_usable()
        refuse_in_turn("delete_session()")
        check_session_id(session_id, bytes_max=self.limits.session_id_bytes_max)
        self.store.delete(session_id)
        try:
            self.store.read(session_id)
        except SessionDeleted as error:
            self._end_session(session_id, error)

    def sessions(self) -> Iterator[SessionInfo]:
        """Iterate over every session in the store, whoever wrote it, in the order of their ids; not deleted ones.

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

    # -- how it is ----------------------------------------------------------------------------------------------

    def health(self, *, timeout: float = 0.25) -> Health:
        """Return how the runtime is; from any thread, also of a closed or forked runtime, and never raises.

        It does not wait for the disk: whether the store answers is asked in a thread of its own, at most once a
        second, and waited for at most ``timeout`` seconds; 0 does not wait. What it counts is read without a lock, so
        numbers may be of moments a few microseconds apart.
        """
        forked = self._forked
        with contextlib.nullcontext() if forked else self._mutex:
            sessions = list(self._sessions.values())
            subscriptions = list(self._subscriptions)
        stopped: Status | None = None
        if self._closing:
            stopped = "closed" if self._closed.is_set() else "closing"
        return self._monitor.health(
            sessions=sessions,
            subscriptions=subscriptions,
            writers=0 if forked or stopped == "closed" else self.actors.writers,
            stopped=stopped,
            forked=forked,
            timeout_s=timeout,
        )

    def follow(self, subscription: Subscription) -> None:
        """Count a subscription as open; one that is dropped without being closed is forgotten."""
        with self._mutex:
            self._subscriptions.add(subscription)

    def unfollow(self, subscription: Subscription) -> None:
        """Undo ``follow``."""
        with self._mutex:
            self._subscriptions.discard(subscription)

    def subscriptions(self) -> list[Subscription]:
        """Return the subscriptions that are open, of all sessions."""
        with self._mutex:
            return list(self._subscriptions)

    # -- every session at once ----------------------------------------------------------------------------------

    def feed(self, after: str | None = None, prefix: str = "", *, timeout: float | None = None) -> Feed:
        """Return an iterator over the events of all sessions, live, each with its ``position``; see ``Feed``.

        Args:
            after: go on behind this position, ``FeedEvent.position`` of this store, in whatever process it was handed
                out. None begins with the first event of every session, ``"now"`` with what is appended from now on.
            prefix: only sessions whose ids begin with it. A position taken with one prefix can be gone on from with
                another: sessions that it says nothing of are handed out from their first event.
            timeout: the iteration ends when nothing has come for so many seconds; 0 when all that is there was handed
                out; None goes on until it is closed.

        Raises:
            InvalidPosition: ``after`` is no position, or damaged.
            InvalidArgument: ``prefix`` is no text, or ``timeout`` no number of seconds.
            RuntimeClosed, ForkedRuntime: there is no runtime here.
        """
        from ._feed import Feed

        return Feed(self, after=after, prefix=prefix, timeout=timeout)

    def open_feed(self, feed: Feed) -> float | None:
        """Count a feed as open, and return after how many seconds it is worth looking without a hint, if it gets any.

        One that is dropped without being closed is forgotten.
        """
        self.changes.listen(feed.hint)
        with self._mutex:
            self._feeds.add(feed)
            start, self._hints_started = not self._hints_started, True
        if start:
            self._feeds_hinted_s = self.store.watch(self.changes.tell)
        return self._feeds_hinted_s

    def close_feed(self, feed: Feed) -> None:
        """Undo ``open_feed``."""
        self.changes.forget(feed.hint)
        with self._mutex:
            self._feeds.discard(feed)

    # -- old payloads -------------------------------------------------------------------------------------------

    def upcaster(self, type: str, *, from_version: int = 1) -> Callable[[F], F]:
        """Return a decorator that registers how a payload becomes one of the next version.

        From then on ``read``, ``page``, ``rows`` and subscriptions show events of ``type`` in the newest version that
        upcasters lead to, when their payload is looked at; what is stored never changes, and ``read_raw`` and clients
        of the network get it as it was written. An event says its version with ``append(..., type_version=2)``; it is 1
        for those that do not. An event of a version that no upcaster starts from is shown as it is. Register before
        reading, or give them to ``logmark.open(upcasters=...)``.

        Args:
            type: the event type.
            from_version: the version of the payload that the function is given.

        Raises:
            InvalidArgument: there is one for this version, or an argument is wrong.
        """

        def register(function: F) -> F:
            self.upcasters.register(type, from_version, function)
            return function

        return register

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
        if self._forked or self._closing:
            self.check_process()
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

    def _observed(self, session_id: str, found: int | SessionDeleted) -> None:
        session = self._sessions.get(session_id)
        if isinstance(found, SessionDeleted):
            self._end_session(session_id, found)
        elif session is not None:
            session.observed(found)

    def _end_session(self, session_id: str, error: SessionDeleted) -> None:
        with self._mutex:
            session = self._sessions.get(session_id)
            followers = [each for each in self._subscriptions if each.session_id == session_id]
        if session is not None:
            session.note_deleted(error)
        for subscription in followers:
            subscription.end(error)

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
            with self._mutex:
                feeds = list(self._feeds)
            for feed in feeds:
                feed.end()
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
            if self.instruments is not None:
                self.instruments.closed(self.health)
            if self.store.log is not None:
                self.store.log.untap(self._monitor.notice)

    def abandon(self) -> None:
        """Drop the runtime as a crash would: nothing is finished, nothing is released. For simulations of one."""
        self._closing = True
        self._closed.set()
        if self.store.log is not None:
            self.store.log.untap(self._monitor.notice)
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
    instrumentation: Instrumentation | Sequence[Instrumentation] | None = None,
    upcasters: Mapping[tuple[str, int], Upcaster] | None = None,
) -> Runtime:
    """Open a store; see ``logmark.open``."""
    types = EventTypes(control=control_types, job_status=job_status)
    instrumentations = _instrumentations(instrumentation)
    known_upcasters = Upcasters(upcasters)
    store = open_store(os.fspath(url), limits=limits, durability=durability, create=create)
    return Runtime(store, limits=limits, types=types, instrumentation=instrumentations, upcasters=known_upcasters)


def _instrumentations(
    given: Instrumentation | Sequence[Instrumentation] | None,
) -> tuple[Instrumentation, ...]:
    """Return what was given as a tuple.

    Raises:
        InvalidArgument: it is no instrumentation, or more than one of them traces.
    """
    if given is None:
        return ()
    each: tuple[Any, ...] = tuple(given) if isinstance(given, Sequence) else (given,)
    for one in each:
        if not isinstance(one, Instrumentation):
            message = f"instrumentation is a logmark.Instrumentation, or several, not {one!r}"
            raise InvalidArgument(message)
    if sum(one.traces for one in each) > 1:
        raise InvalidArgument("only one instrumentation may trace: an event has room for one trace context")
    return each


def _close_all() -> None:
    for runtime in list(_open_runtimes):
        runtime.close()


def _after_fork_in_child() -> None:
    for runtime in list(_open_runtimes):
        runtime.after_fork_in_child()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
