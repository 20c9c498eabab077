"""What the connections of one gateway share: principals, sessions, jobs and subscriptions, and their upkeep."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import hmac
import itertools
import queue
import secrets
import threading
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ..protocol import (
    InvalidArgument,
    Limits,
    LogCorrupt,
    LogmarkError,
    RuntimeClosed,
    SchemaMismatch,
    SessionHalted,
    UlidSequence,
)
from ..protocol.arcp import (
    FEATURES,
    Dialect,
    Fact,
    JobRecord,
    Ledger,
    Moment,
    Profile,
    Refusal,
    Request,
    Send,
    Status,
    SubscriptionRecord,
    budget_members,
    control_frame,
)
from ._book import Book
from ._contract import AgentCatalogue, JobRunner
from ._desk import Desk
from ._forward import Forwarder
from ._instance import Instance
from ._jobs import LiveJob, end_orphan
from ._limits import GatewayLimits
from ._link import Decision, Link, Transport

if TYPE_CHECKING:
    from .._runtime import Runtime

__all__ = ["Hub"]

_PRINCIPAL_BYTES_MAX = 128
_QUIET_S = 2.0  # longer than it takes a client that has lost its connection to come back


def check_tokens(tokens: Mapping[str, str]) -> list[tuple[bytes, str]]:
    """Return the digests of tokens and their principals.

    Raises:
        InvalidArgument: there is none, or one is empty or its principal no name.
    """
    if not tokens:
        raise InvalidArgument("tokens is empty: nobody could connect; give {token: principal}")
    checked: list[tuple[bytes, str]] = []
    for token, principal in tokens.items():
        names: tuple[Any, ...] = token, principal
        if not all(isinstance(name, str) and name for name in names):
            raise InvalidArgument("tokens maps non-empty text to non-empty text")
        if len(principal.encode()) > _PRINCIPAL_BYTES_MAX or not principal.isprintable():
            message = f"a principal is printable text of at most {_PRINCIPAL_BYTES_MAX} bytes, not {principal!r:.200}"
            raise InvalidArgument(message)
        checked.append((hashlib.sha256(token.encode()).digest(), principal))
    return checked


class Hub:
    """The state of a gateway. Safe from any thread."""

    def __init__(
        self,
        runtime: Runtime,
        agents: AgentCatalogue,
        runner: JobRunner,
        *,
        tokens: Mapping[str, str] | None,
        anonymous: str | None,
        dialect: Dialect,
        limits: GatewayLimits,
        version: str,
    ) -> None:
        self.runtime = runtime
        self.agents = agents
        self.runner = runner
        self.limits = limits
        self.log = runtime.log.bind(actor="gateway")
        self.queue_limits: Limits = dataclasses.replace(
            runtime.limits,
            subscriber_events_max=min(limits.queue_events_max, runtime.limits.subscriber_events_max),
            subscriber_bytes_max=min(limits.queue_bytes_max, runtime.limits.subscriber_bytes_max),
        )
        self.profile = Profile(
            name="logmark",
            version=version,
            dialect=dialect,
            features=agents.features() | (frozenset(FEATURES[:4])),
            resume_window_s=limits.resume_window_s,
            heartbeat_interval_s=limits.heartbeat_interval_s,
            handshake_wait_s=limits.handshake_wait_s,
            frame_bytes_max=limits.frame_bytes_max,
            depth_max=limits.depth_max,
        )
        self._tokens = [] if tokens is None else check_tokens(tokens)
        self._anonymous = anonymous
        self._ulids = UlidSequence(secrets.randbits)
        self._ulid_mutex = threading.Lock()
        self.instance = Instance(runtime, self.new_id(), silence_s=limits.instance_silence_s)
        self._lock = threading.Lock()
        self._books: dict[str, Book] = {}
        self._books_mutex = threading.Lock()
        self._links: dict[int, Link] = {}
        self._numbers = itertools.count(1)
        self._attached: dict[str, Link] = {}
        self._errands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._live: dict[str, LiveJob] = {}
        self._quiet: dict[str, float] = {}
        self._desk = Desk(self)
        self.forwarder = Forwarder(self, threads_max=limits.forward_threads_max)
        self.draining = False
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="arcp-ticker", daemon=True)
        self._caretaker = threading.Thread(target=self._care, name="arcp-caretaker", daemon=True)

    def start(self) -> None:
        """Begin the upkeep."""
        self._ticker.start()
        self._caretaker.start()

    # -- small things -----------------------------------------------------------------------------------------------

    def new_id(self) -> str:
        """Return a new ULID."""
        now_ms = self.runtime.clock.time_ns() // 1_000_000
        with self._ulid_mutex:
            return self._ulids.next(now_ms)

    def now_ns(self) -> int:
        """Return the wall clock."""
        return self.runtime.clock.time_ns()

    def principal_of(self, token: str) -> str | None:
        """Return whose token it is. Every token is compared, in constant time, so that time tells nothing."""
        if self._anonymous is not None:
            return self._anonymous
        digest = hashlib.sha256(token.encode()).digest()
        found = None
        for known, principal in self._tokens:
            if hmac.compare_digest(known, digest):
                found = principal
        return found

    def budget_members(self, budget: Mapping[str, str] | Mapping[str, Decimal] | None) -> dict[str, Any] | None:
        """Return budget counters in the dialect of this gateway."""
        if budget is None:
            return None
        return budget_members({name: Decimal(left) for name, left in budget.items()}, self.profile.dialect)

    # -- connections ------------------------------------------------------------------------------------------------

    def connect(self, transport: Transport) -> Link:
        """Begin a connection."""
        link = Link(self, transport, number=next(self._numbers))
        with self._lock:
            self._links[link.number] = link
        link.start()
        return link

    def decide(self, link: Link, request: Request) -> Decision:
        """Decide a request; whatever goes wrong here is answered, and is no business of the peer."""
        try:
            return self._desk.decide(link, request)
        except RuntimeClosed:
            return Refusal("INTERNAL_ERROR", "the server is shutting down"), None
        except LogmarkError as error:
            self.log.warning("arcp_request_failed", session=link.session_id, error=type(error).__name__)
            return Refusal("INTERNAL_ERROR", "the request could not be stored or read; try again"), None
        except Exception as error:
            self.log.error("arcp_request_crashed", session=link.session_id, exc_info=error)
            return Refusal("INTERNAL_ERROR", "the request failed"), None

    def follow_up(self, link: Link, then: Callable[[], None]) -> None:
        """Do what belongs to a decision; a connection on which that fails ends, and may resume."""
        try:
            then()
        except Exception as error:
            known = isinstance(error, LogmarkError)
            self.log.error(
                "arcp_follow_up_failed",
                session=link.session_id,
                error=type(error).__name__,
                exc_info=None if known else error,
            )
            link.leave("failed", Refusal("INTERNAL_ERROR", "the session cannot go on here"))

    def admit(self, link: Link, principal: str) -> bool:
        """Count a connection for its principal; False when it has too many."""
        with self._lock:
            held = sum(other.principal == principal and not other.is_ended for other in self._links.values())
            if held >= self.limits.principal_connections_max:
                return False
            link.principal = principal
            return True

    def attach(self, link: Link, session_id: str, after_seq: int) -> None:
        """Let a connection stand for its session: it is sent the events, and what stood for it before is ended."""
        if link.session_id != session_id:
            return  # it was given up while this was decided, and has not been welcomed
        book = self.book(link.principal or "")
        if not book.read(lambda ledger: ledger.is_newest(session_id, link.token_hash)):
            link.supersede()  # a later resume was quicker
            return
        with self._lock:
            before = self._attached.get(session_id)
            self._attached[session_id] = link
            self._quiet.pop(session_id, None)
        if before is not None and before is not link:
            before.supersede()
        self.log.info("arcp_session_attached", session=session_id, principal=link.principal, after_seq=after_seq)
        subscriptions, busy = book.read(
            lambda ledger: (
                ledger.subscriptions(session_id),
                any(job.session_id == session_id for job in ledger.unended()),
            )
        )
        if busy or subscriptions or self.runtime.session(session_id).last_seq:
            link.follow()  # else there is nothing to follow before something is asked for: see Desk
        for record in subscriptions:
            self.forwarder.start(record, link.features)
        if link.is_ended:
            self.detach(link, "lost")

    def detach(self, link: Link, reason: str) -> None:
        """Forget a connection that has ended; its session, its jobs and its subscriptions stay."""
        session_id = link.session_id
        with self._lock:
            self._links.pop(link.number, None)
            stood = session_id is not None and self._attached.get(session_id) is link
            if stood and session_id is not None:
                del self._attached[session_id]
                self._quiet[session_id] = self.runtime.clock.monotonic()
        if not stood or session_id is None or link.principal is None:
            return
        self.forwarder.stop_session(session_id)
        self.log.info("arcp_session_detached", session=session_id, principal=link.principal, reason=reason)
        self._errands.put(functools.partial(self._note_detached, link.principal, session_id, link.token_hash, reason))

    def disconnect(self, session_id: str, reason: str) -> None:
        """End the connection of a session, which may resume."""
        with self._lock:
            link = self._attached.get(session_id)
        if link is not None:
            link.leave(reason, Refusal("INTERNAL_ERROR", reason))

    # -- ledgers ----------------------------------------------------------------------------------------------------

    def book(self, principal: str) -> Book:
        """Return a principal's book, read from the log when it is first asked for.

        Jobs whose process has died are ended before anyone looks at them.
        """
        with self._books_mutex:
            book = self._books.get(principal)
            if book is None:
                limits = self.limits
                book = Book(
                    self.runtime,
                    principal,
                    resume_window_s=limits.resume_window_s,
                    retention_s=limits.retention_s,
                    facts_max=limits.facts_max,
                )
                self._clear_up(book)
                self._books[principal] = book
        return book

    def _append_facts(self, principal: str, facts: Callable[[Ledger], list[Fact]]) -> None:
        self.book(principal).decide(lambda ledger: (None, facts(ledger)))

    def _clear_up(self, book: Book) -> None:
        """End what processes that have died were doing: their jobs, and their connections."""
        jobs, sessions = book.read(lambda ledger: (ledger.unended(), ledger.attached()))
        instances = {job.instance for job in jobs} | {session.instance for session in sessions}
        instances.discard(self.instance.id)
        gone = {instance for instance in instances if self.instance.is_gone(instance)}
        for session in sessions:
            if session.instance in gone:
                self._append_detached(book, session.session_id, session.token_hash, "its process has died")
        for job in jobs:
            if job.instance not in gone:
                continue
            self.note_quiet(job.session_id)
            try:
                status, seq = end_orphan(self.runtime, job)
                self._note_end(book, job.job_id, status, seq)
            except LogmarkError as error:  # its session is halted, say: looked at again later, the others go on
                self.log.warning("arcp_orphan_unended", session=job.session_id, job=job.job_id, error=str(error))
            else:
                self.log.warning("arcp_orphan_ended", session=job.session_id, job=job.job_id, status=status)

    def _note_detached(self, principal: str, session_id: str, token_hash: str, reason: str) -> None:
        try:
            self._append_detached(self.book(principal), session_id, token_hash, reason)
        except RuntimeClosed:
            raise
        except LogmarkError as error:  # then the window begins when a later process looks at the session
            self.log.warning("arcp_fact_unwritten", session=session_id, error=type(error).__name__)

    def _append_detached(self, book: Book, session_id: str, token_hash: str, reason: str) -> None:
        now_ns = self.now_ns()
        book.decide(
            lambda ledger: (
                None,
                ledger.detach_session(session_id, token_hash=token_hash, reason=reason, now_ns=now_ns),
            )
        )

    def _note_end(self, book: Book, job_id: str, status: Status, seq: int) -> None:
        now_ns = self.now_ns()
        book.decide(lambda ledger: (None, ledger.end_job(job_id, status=status, last_event_seq=seq, now_ns=now_ns)))

    def note_quiet(self, session_id: str) -> None:
        """Note that a session was let go of; if nobody else has it, its actors are freed soon."""
        with self._lock:
            if session_id not in self._attached:
                self._quiet.setdefault(session_id, self.runtime.clock.monotonic())

    def end_subscription(self, record: SubscriptionRecord, reason: str) -> None:
        """Note that a subscription is over."""
        self.forwarder.stop(record.session_id, record.job_id)
        with self._lock:
            link = self._attached.get(record.session_id)
        if link is not None and link.principal is not None:
            now_ns = self.now_ns()
            self._append_facts(
                link.principal,
                lambda ledger: (
                    ledger.unsubscribe(record.job_id, session_id=record.session_id, reason=reason, now_ns=now_ns)
                    if ledger.subscription(record.session_id, record.job_id) == record
                    else []
                ),
            )

    # -- jobs -------------------------------------------------------------------------------------------------------

    def add_job(self, principal: str, record: JobRecord) -> LiveJob:
        """Make the sink of a job that was accepted here."""

        def on_end(status: Status, seq: int) -> None:
            try:
                self._note_end(self.book(principal), record.job_id, status, seq)
            except LogmarkError as error:  # the terminal is in the log of events; the next look finds it there
                self.log.warning("arcp_fact_unwritten", session=record.session_id, error=type(error).__name__)
            with self._lock:
                self._live.pop(record.job_id, None)

        live = LiveJob(self.runtime, record, self.instance, self.limits, on_end=on_end)
        with self._lock:
            self._live[record.job_id] = live
        return live

    def beat(self) -> None:
        """Say that this instance lives, unless it has said so lately. Without, its jobs are appended to with care."""
        try:
            if not self.instance.is_trusted:
                self.instance.beat()
        except LogmarkError as error:
            self.log.warning("arcp_upkeep_failed", error=type(error).__name__, exc_info=None)

    def cancel(self, job_id: str, reason: str) -> None:
        """Tell a job that runs here; other processes find the request among the facts."""
        self.runner.cancel(job_id, reason)

    def live_job(self, job_id: str) -> LiveJob | None:
        """Return the sink of a job that runs here."""
        with self._lock:
            return self._live.get(job_id)

    def job_state(self, job: JobRecord) -> tuple[str, int]:
        """Return how a job stands, wherever it runs: its status and the number of its last event."""
        if job.ended:
            return job.status, job.last_event_seq
        live = self.live_job(job.job_id)
        try:
            if live is not None:
                return live.state
            mark = self.runtime.session(job.session_id).job(job.job_id).mark
        except (SessionHalted, LogCorrupt, SchemaMismatch) as error:
            # One session that cannot be read is no reason to hide all other jobs.
            self.log.warning("arcp_job_unreadable", session=job.session_id, job=job.job_id, error=type(error).__name__)
            return job.status, job.last_event_seq
        return mark.status, mark.last_seq

    def tell_lag(self, job_id: str, lag: int) -> None:
        """Say in a job's events that the consumer is behind; soon, and not in the caller's thread."""
        live = self.live_job(job_id)
        if live is not None:
            self._errands.put(functools.partial(live.submit_status, "back_pressure", f"consumer lag {lag} events"))

    # -- upkeep -----------------------------------------------------------------------------------------------------

    def links(self) -> list[Link]:
        """Return the connections."""
        with self._lock:
            return list(self._links.values())

    def _tick(self) -> None:
        """Deadlines and heartbeats. Touches no disk, so that a slow one ends no connection."""
        while not self._stop.wait(self.limits.tick_interval_s):
            for link in self.links():
                try:
                    link.tick()
                except Exception as error:
                    self.log.error("arcp_tick_failed", session=link.session_id, exc_info=error)

    def _care(self) -> None:
        """What other processes have decided, and the memory of what is long over."""
        beaten_at = forgotten_at = self.runtime.clock.monotonic()
        while not self._stop.wait(self.limits.tick_interval_s):
            now = self.runtime.clock.monotonic()
            try:
                if self._live and now - beaten_at >= self.limits.instance_beat_s:
                    beaten_at = now
                    self.instance.beat()
                self._run_errands()
                for book in list(self._books.values()):
                    self._look_at(book)
                self._let_go(now)
                if now - forgotten_at >= min(60.0, self.limits.retention_s):
                    forgotten_at = now
                    for book in list(self._books.values()):
                        book.forget(self.now_ns())
            except RuntimeClosed:
                return
            except Exception as error:
                self.log.warning("arcp_upkeep_failed", error=type(error).__name__, exc_info=error)

    def _run_errands(self) -> None:
        """Do what others have left to this thread, because it may wait for the disk: it runs in none of theirs."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._errands.get_nowait()()

    def _let_go(self, now: float) -> None:
        """Free the actors of sessions that nobody is connected to and in which nothing happens; they come back."""
        in_use = self.forwarder.sessions()
        with self._lock:
            in_use |= {live.record.session_id for live in self._live.values()} | set(self._attached)
            idle = [sid for sid, since in self._quiet.items() if now - since > _QUIET_S and sid not in in_use]
            forgotten = [self.runtime.forget_session(session_id) for session_id in idle]
            for session_id in idle:
                del self._quiet[session_id]
        for session in forgotten:
            if session is not None:
                session.stop()

    def _look_at(self, book: Book) -> None:
        with self._lock:
            held = {sid: link for sid, link in self._attached.items() if link.principal == book.principal}
            live = dict(self._live)

        def look(ledger: Ledger) -> tuple[list[Link], list[JobRecord], bool]:
            taken: list[Link] = []
            for session_id, link in held.items():
                record = ledger.session(session_id)
                if record is not None and record.instance != self.instance.id:
                    taken.append(link)
            unended = ledger.unended()
            cancelled = [job for job in unended if job.cancel_reason is not None and job.job_id in live]
            # Ended here a moment ago, or by a process that could not hear from this one.
            cancelled += [job for job in map(ledger.job, live) if job is not None and job.ended]
            instances = {job.instance for job in unended} | {record.instance for record in ledger.attached()}
            foreign = bool(instances - {self.instance.id})
            return taken, cancelled, foreign

        taken, cancelled, foreign = book.read(look)
        for link in taken:
            link.supersede()
        for job in cancelled:
            if job.ended:
                with self._lock:
                    self._live.pop(job.job_id, None)
                live[job.job_id].end_here(job.status)
            self.runner.cancel(job.job_id, job.cancel_reason or "")
        for sink in live.values():
            if sink.owes:
                sink.settle()
        if foreign:
            self._clear_up(book)

    # -- the end ----------------------------------------------------------------------------------------------------

    def close(self, timeout_s: float) -> None:
        """Give jobs their deadline, tell the sessions, stop. Listeners are closed before, by who opened them."""
        self.draining = True
        self.runner.drain(timeout_s)
        now = Moment(self.now_ns(), self.runtime.clock.monotonic())
        for link in self.links():
            bye = control_frame(
                "session.bye",
                {"reason": "server.shutdown"},
                id_=self.new_id(),
                now_ns=now.wall_ns,
                session_id=link.session_id,
            )
            link.depart("server.shutdown", Send("session.bye", bye))
        deadline = self.runtime.clock.monotonic() + max(2.0, timeout_s)
        for link in self.links():
            link.wait_ended(max(0.0, deadline - self.runtime.clock.monotonic()))
        for link in self.links():
            link.supersede()
        self._stop.set()
        self.forwarder.close()
        self.runner.close()
        for thread in (self._ticker, self._caretaker):
            if thread.is_alive():
                thread.join(timeout_s)
        with contextlib.suppress(RuntimeClosed):
            self._run_errands()
        self.instance.end()
