"""What a log holds: which runtimes, which sessions, from when to when."""

from __future__ import annotations

import dataclasses

from ._facts import Fact, Place, moment_of, runtime_of, time_ns_of

__all__ = ["RuntimeSummary", "SessionSummary", "Summary"]


@dataclasses.dataclass(slots=True)
class RuntimeSummary:
    """One opening of a store by one process.

    Attributes:
        runtime: its id; one that begins with ``?`` stands for all events of an input that say none.
        store: the store, if the log has its opening.
        opened_ns, closed_ns: when it was opened and closed, if the log says so.
        drained: whether everything accepted was answered when it was closed.
        last_ns: when it was last heard of.
        last_place: where.
        events: how many log events are of it.
    """

    runtime: str
    store: str | None = None
    opened_ns: int | None = None
    closed_ns: int | None = None
    drained: bool | None = None
    last_ns: int | None = None
    last_place: Place | None = None
    events: int = 0

    @property
    def process(self) -> str:
        """The process, as a person would call it."""
        if self.runtime.startswith("?"):
            return "a process without a name"
        return f"process {self.runtime.partition('-')[0]}"


@dataclasses.dataclass(slots=True)
class SessionSummary:
    """What the log says of a session.

    Attributes:
        first_seq, last_seq: the lowest and the highest number that were told as persisted.
        events, batches, appends, retries: how many.
        commit_ms_max, sync_ms_max: of the slowest batch.
        shown: events that were shown to subscribers.
        halted: whether the last that was said of it is that it is halted.
        runtimes: who has written to it.
    """

    session: str
    first_seq: int = 0
    last_seq: int = 0
    events: int = 0
    batches: int = 0
    appends: int = 0
    retries: int = 0
    commit_ms_max: float = 0.0
    sync_ms_max: float = 0.0
    shown: int = 0
    halted: bool = False
    runtimes: set[str] = dataclasses.field(default_factory=set[str])


class Summary:
    """Takes the events of a log and keeps what is known of its runtimes and sessions."""

    def __init__(self) -> None:
        self.runtimes: dict[str, RuntimeSummary] = {}
        self.sessions: dict[str, SessionSummary] = {}
        self.first_ns: int | None = None
        self.last_ns: int | None = None
        self._last: dict[str, tuple[object, Place]] = {}

    def feed(self, fact: Fact, place: Place) -> None:
        """Take the next event."""
        if "runtime" in fact or "pid" not in fact:
            runtime_id = runtime_of(fact, place)
            runtime = self.runtimes.get(runtime_id)
            if runtime is None:
                runtime = self.runtimes[runtime_id] = RuntimeSummary(runtime_id)
            runtime.events += 1
            self._last[runtime_id] = (fact.get("timestamp"), place)
        if self.first_ns is None:
            self.first_ns = moment_of(fact)
        match fact["event"]:
            case "batch_persisted":
                self._on_persisted(fact, place)
            case "batch_broadcast":
                if fact["events"]:
                    self._session(fact).shown += fact["events"]
            case "runtime_opened":
                opened = self.runtimes[runtime_of(fact, place)]
                opened.store, opened.opened_ns = str(fact["store"]), moment_of(fact)
            case "runtime_closed":
                closed = self.runtimes[runtime_of(fact, place)]
                closed.closed_ns, closed.drained = moment_of(fact), bool(fact["drained"])
            case "session_halted":
                self._session(fact).halted = True
            case "halt_cleared" | "session_repaired":
                self._session(fact).halted = False
            case _:
                pass

    def _session(self, fact: Fact) -> SessionSummary:
        session_id = str(fact["session"])
        session = self.sessions.get(session_id)
        if session is None:
            session = self.sessions[session_id] = SessionSummary(session_id)
        return session

    def _on_persisted(self, fact: Fact, place: Place) -> None:
        session = self._session(fact)
        if not session.batches or fact["first_seq"] < session.first_seq:
            session.first_seq = fact["first_seq"]
        session.last_seq = max(session.last_seq, fact["last_seq"])
        session.events += fact["events"]
        session.batches += 1
        session.appends += fact["appends"]
        session.retries += fact["retries"]
        session.commit_ms_max = max(session.commit_ms_max, fact["commit_ms"])
        session.sync_ms_max = max(session.sync_ms_max, fact["sync_ms"])
        session.runtimes.add(runtime_of(fact, place))

    def finish(self) -> None:
        """Note when each runtime was last heard of."""
        for runtime_id, (timestamp, place) in self._last.items():
            runtime = self.runtimes[runtime_id]
            runtime.last_ns, runtime.last_place = time_ns_of(timestamp), place
            if runtime.last_ns is not None:
                self.last_ns = max(self.last_ns or 0, runtime.last_ns)
                self.first_ns = min(self.first_ns or runtime.last_ns, runtime.opened_ns or runtime.last_ns)
