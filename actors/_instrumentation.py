"""What a runtime tells to those who measure it, and how it keeps their faults to themselves."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ..protocol import RawEnvelope
from ..storage import Logger

__all__ = ["AppendSpan", "Instrumentation", "Instruments", "Notice", "PersistedBatch"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A warning or an error of the log, whether or not the program's log lets it through.

    Attributes:
        event: its name, one of those in ``docs/log-events.md``, such as ``session_halted``.
        level: ``warning`` or ``error``.
        keys: its keys there.
        at_ns: wall clock, in nanoseconds.
    """

    event: str
    level: str
    keys: Mapping[str, Any]
    at_ns: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PersistedBatch:
    """One commit of one session, and what its appends were answered.

    Attributes:
        session_id: the session. A label of a metric must not be made of it: there is no bound to how many there are.
        first_seq, last_seq: of the events written; 0 when there are none.
        events: how many were written.
        size_bytes: what they added to the log.
        commit_s: how long the store took for all of it, waiting for the session's lock included.
        sync_s: how long making it durable took; 0 when nothing was written.
        ended_ns: wall clock at the answer, in nanoseconds.
        appends_s: for each append that was written or was a retry, the seconds from its submission to the answer.
        retries: appends whose events were there already.
        errors: by the name of its class, how many appends were answered with an error.
        spans: the spans of its appends, as far as they have one.
    """

    session_id: str
    first_seq: int
    last_seq: int
    events: int
    size_bytes: int
    commit_s: float
    sync_s: float
    ended_ns: int
    appends_s: Sequence[float]
    retries: int
    errors: Mapping[str, int]
    spans: Sequence[AppendSpan]


class AppendSpan(Protocol):
    """The trace of one append, from its submission to its answer."""

    trace_id: str | None
    """What to store as the event's ``trace_id``."""
    extensions: Mapping[str, Any]
    """What to store among the event's ``extensions``, unless its producer has set the same."""

    def end(self, answer: tuple[int, int] | BaseException) -> None:
        """Learn the append's first and last number, or its error; called once, possibly in an actor's turn."""
        ...


class Instrumentation:
    """Is told what a runtime does; every method does nothing here. Passed as ``logmark.open(instrumentation=...)``.

    Methods are called from any thread, most of them in an actor's turn: they must be quick and must not block, append
    or read. What they raise is logged once for each method (``instrumentation_failed``) and goes no further. Everything
    is told by batch, but ``append_begun`` and ``event_delivered``, which are called only for one that ``traces``.

    One object may be given to several runtimes.
    """

    traces: bool = False
    """Whether ``append_begun`` and ``event_delivered`` are called."""

    def opened(self, health: Callable[[], Any]) -> None:
        """Learn that a runtime is open, and what to call for its ``logmark.Health``, from any thread but an actor's."""

    def closed(self, health: Callable[[], Any]) -> None:
        """Learn that the runtime with this ``health`` is closed."""

    def batch_persisted(self, batch: PersistedBatch) -> None:
        """Learn of a commit, after the store has answered and before the callers are."""

    def append_refused(self, error: str) -> None:
        """Learn that an append found no place in its session's inbox, and the name of the error's class."""

    def noticed(self, notice: Notice) -> None:
        """Learn of a warning or an error: a halt, a restart, a torn tail, a subscriber that lags."""

    def append_begun(self, session_id: str, types: Sequence[str], trace_id: str | None) -> AppendSpan | None:
        """Begin the trace of an append, in the thread of its caller; None when it is not to be traced.

        Args:
            session_id: the session.
            types: the type of each of its events.
            trace_id: the trace that its events belong to, if their producer has said so.
        """
        return None

    def event_delivered(self, event: RawEnvelope, waited_s: float | None) -> None:
        """Learn that a subscriber is being handed an event, in its reader's thread, before that gets it.

        Args:
            event: the event.
            waited_s: the age of the event by its timestamp, None when it has none.
        """


class Instruments:
    """The instrumentations of one runtime, called so that their faults stay theirs.

    Args:
        each: whom to tell.
        log: gets ``instrumentation_failed``.
    """

    __slots__ = ("_each", "_failed", "_log", "_mutex", "tracer")

    def __init__(self, each: Sequence[Instrumentation], log: Logger) -> None:
        self._each = tuple(each)
        self._log = log
        self._failed: set[tuple[int, str]] = set()
        self._mutex = threading.Lock()
        self.tracer = next((one for one in self._each if one.traces), None)

    def opened(self, health: Callable[[], Any]) -> None:
        """See ``Instrumentation.opened``."""
        for one in self._each:
            self._call(one, "opened", one.opened, health)

    def closed(self, health: Callable[[], Any]) -> None:
        """See ``Instrumentation.closed``."""
        for one in self._each:
            self._call(one, "closed", one.closed, health)

    def batch_persisted(self, batch: PersistedBatch) -> None:
        """See ``Instrumentation.batch_persisted``."""
        for one in self._each:
            self._call(one, "batch_persisted", one.batch_persisted, batch)

    def append_refused(self, error: BaseException) -> None:
        """See ``Instrumentation.append_refused``."""
        for one in self._each:
            self._call(one, "append_refused", one.append_refused, type(error).__name__)

    def noticed(self, notice: Notice) -> None:
        """See ``Instrumentation.noticed``."""
        for one in self._each:
            self._call(one, "noticed", one.noticed, notice)

    def append_begun(self, session_id: str, types: Sequence[str], trace_id: str | None) -> AppendSpan | None:
        """See ``Instrumentation.append_begun``."""
        tracer = self.tracer
        if tracer is None:
            return None
        span: AppendSpan | None = self._call(tracer, "append_begun", tracer.append_begun, session_id, types, trace_id)
        return span

    def append_ended(self, span: AppendSpan, answer: tuple[int, int] | BaseException) -> None:
        """See ``AppendSpan.end``."""
        self._call(span, "append_ended", span.end, answer)

    def event_delivered(self, event: RawEnvelope, waited_s: float | None) -> None:
        """See ``Instrumentation.event_delivered``."""
        tracer = self.tracer
        if tracer is not None:
            self._call(tracer, "event_delivered", tracer.event_delivered, event, waited_s)

    def _call(self, one: object, name: str, hook: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return hook(*arguments)
        except Exception as error:
            key = (id(one) if isinstance(one, Instrumentation) else 0, name)
            with self._mutex:
                first = key not in self._failed
                self._failed.add(key)
            if first:  # noted before it is logged: the log tells of warnings, and that may be what fails
                self._log.warning(
                    "instrumentation_failed", hook=name, by=type(one).__name__, error=repr(error), exc_info=error
                )
            return None
