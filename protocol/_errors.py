"""Every error that logmark raises, in one tree.

::

    LogmarkError
    ├── InvalidArgument            (ValueError)    a call's own argument is wrong
    ├── AppendError
    │   ├── AppendRejected                         certainly nothing was written; the session goes on
    │   │   ├── InvalidEvent       (ValueError)    the event cannot be stored as it is
    │   │   │   ├── NotEncodable                   no JSON form: NaN, 65-bit integer, surrogate, object
    │   │   │   ├── EventTooLarge                  more bytes than Limits.event_bytes_max
    │   │   │   ├── EventTooDeep                   more nesting than Limits.depth_max
    │   │   │   └── NotCountable                   a control type was appended
    │   │   ├── WrongExpectedSeq                   expected_seq did not equal last_seq
    │   │   ├── EventIdConflict                    an id is taken, and the unit cannot be a retry
    │   │   ├── SequenceExhausted  (OverflowError) no number is left
    │   │   ├── Overloaded         (TimeoutError)  the inbox stayed full until the deadline
    │   │   ├── LockTimeout        (TimeoutError)  another process kept the lock
    │   │   ├── StorageRejected    (OSError)       the write failed and was rolled back
    │   │   ├── ActorRestarted                     the actor failed before it handed the event on
    │   │   ├── SessionHalted                      the session refuses until it is repaired
    │   │   ├── LogCorrupt                         acknowledged data is damaged or missing
    │   │   ├── SchemaMismatch                     a row of another schema version
    │   │   ├── SessionSealed                      the session was closed for good
    │   │   ├── SessionDeleted                     the session was deleted
    │   │   └── RuntimeClosed                      the runtime was closed
    │   └── AppendUncertain                        unknown whether it was written
    ├── StorageUnavailable         (OSError)       the store cannot be opened or read
    ├── DecodeError                (ValueError)    input that is not a valid envelope
    ├── NotControl                 (ValueError)    a countable type was sent as control
    ├── CursorAhead                (ValueError)    a position beyond the log
    ├── ForeignCursor              (ValueError)    a position of another session
    ├── StaleCursor                (ValueError)    a cursor of another log, as before a copy was restored
    ├── UpcastFailed                               an upcaster of the program raised
    ├── SeqPruned                                  a position before the first event that is kept
    ├── InvalidPosition            (ValueError)    no position of a feed
    ├── ProjectionHalted                           a projection stands at an event that it could not apply
    ├── ProjectionBusy                             somebody else is at the same view
    ├── RecordChanged                              a record has another version than was to be replaced
    ├── WaitTimeout                (TimeoutError)  what was waited for did not come
    ├── SubscriptionClosed                         the subscription has ended
    ├── ForkedRuntime                              a runtime used in a forked child
    ├── WouldDeadlock              (RuntimeError)  a blocking call in a future's callback
    ├── JobEnded                                   an agent's emit after the end of its job
    ├── JobFailed                                  raised by an agent: its job ends with this code and message
    ├── LeaseRefused                               what an agent wants to do is not covered by its job's lease
    ├── RequestRefused                             a client's request that the gateway declines, with ARCP's code
    └── MissingExtra               (ImportError)   an engine whose packages are not installed

The two halves of ``AppendError`` follow the distinction of Pekko Persistence between a rejected and a failed write
(Pekko docs, *Persistence*, "Journal failures" and "Journal rejections"): after a rejection the session is as it was,
after a failure nobody knows, and nothing may be appended until somebody does.

Every error pickles, keeps its facts as attributes, and says what happened, to which session, and what to do.
"""

from __future__ import annotations

from typing import Any, TypeVar

__all__ = [
    "ActorRestarted",
    "AppendError",
    "AppendRejected",
    "AppendUncertain",
    "CursorAhead",
    "DecodeError",
    "EventIdConflict",
    "EventTooDeep",
    "EventTooLarge",
    "ForeignCursor",
    "ForkedRuntime",
    "InvalidArgument",
    "InvalidEvent",
    "JobEnded",
    "JobFailed",
    "LeaseRefused",
    "LockTimeout",
    "LogCorrupt",
    "LogmarkError",
    "MissingExtra",
    "NotControl",
    "NotCountable",
    "NotEncodable",
    "Overloaded",
    "RequestRefused",
    "RuntimeClosed",
    "SchemaMismatch",
    "SequenceExhausted",
    "SessionHalted",
    "StorageRejected",
    "StorageUnavailable",
    "SubscriptionClosed",
    "WaitTimeout",
    "WouldDeadlock",
    "WrongExpectedSeq",
]

E = TypeVar("E", bound="LogmarkError")


def _restore(cls: type[E], args: tuple[Any, ...], state: dict[str, Any]) -> E:
    """Rebuild a pickled error without calling its constructor, whose arguments the message already holds."""
    error = cls.__new__(cls, *args)
    error.args = args
    for name, value in state.items():
        setattr(error, name, value)
    return error


class LogmarkError(Exception):
    """Base of every error that logmark raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by message and attributes, so that no subclass needs a constructor of one fixed shape."""
        state = dict(self.__dict__)
        if isinstance(self, OSError):
            state["errno"] = self.errno  # lives in a C field, not in __dict__
        return _restore, (type(self), self.args, state)


class InvalidArgument(LogmarkError, ValueError):
    """A call's own argument is wrong; nothing was done."""


class AppendError(LogmarkError):
    """An append failed."""


class AppendRejected(AppendError):
    """Certainly nothing was written; the session goes on and the call may be repeated."""


class AppendUncertain(AppendError):
    """It is unknown whether the events were written.

    Where only the log itself could tell, the session halts until it is verified. Where a server decides the truth
    and could not be asked in time, the session goes on.

    Attributes:
        session_id: the session.
        first_event_id: id of the first event in doubt. A retry with the same id settles the question, once the
            session is cleared if it is halted: it answers with the number of the first write if there was one.
        halted: whether the session is halted.
    """

    def __init__(self, *, session_id: str, reason: str, first_event_id: str | None = None, halted: bool = True) -> None:
        self.session_id = session_id
        self.reason = reason
        self.first_event_id = first_event_id
        self.halted = halted
        advice = (
            "the session is halted: run 'logmark verify', then 'logmark repair', then retry with the same event id"
            if halted
            else "the session goes on: retry with the same event id, which never writes twice"
        )
        super().__init__(f"session {session_id!r}: it is unknown whether the append was written ({reason}); {advice}")


class InvalidEvent(AppendRejected, ValueError):
    """The event cannot be stored as it is; nothing was written."""


class NotEncodable(InvalidEvent):
    """The value has no exact JSON form."""


class EventTooLarge(InvalidEvent):
    """The event has more bytes than allowed."""

    def __init__(self, *, size_bytes: int, limit_bytes: int, what: str = "event") -> None:
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        super().__init__(
            f"the {what} has {size_bytes} bytes of JSON, the limit is {limit_bytes}; split it, or store the bulk"
            " elsewhere and append a reference"
        )


class EventTooDeep(InvalidEvent):
    """The event is nested deeper than allowed."""

    def __init__(self, *, limit: int) -> None:
        self.limit = limit
        super().__init__(f"the value is nested more than {limit} levels deep; flatten it or raise Limits.depth_max")


class NotCountable(InvalidEvent):
    """A control type was appended; control envelopes carry no number."""

    def __init__(self, *, type: str) -> None:
        self.type = type
        super().__init__(f"{type!r} is a control type: it gets no number and is not stored; use session.send()")


class WrongExpectedSeq(AppendRejected):
    """``expected_seq`` did not equal the session's ``last_seq`` when the append was numbered."""

    def __init__(self, *, session_id: str, expected_seq: int, last_seq: int) -> None:
        self.session_id = session_id
        self.expected_seq = expected_seq
        self.last_seq = last_seq
        super().__init__(
            f"session {session_id!r}: expected last_seq {expected_seq}, it is {last_seq}; read what was appended in"
            " between and decide again"
        )


class EventIdConflict(AppendRejected):
    """An event id is taken, and the append cannot be a retry of the write that took it."""

    def __init__(self, *, session_id: str, event_id: str, event_seq: int | None) -> None:
        self.session_id = session_id
        self.event_id = event_id
        self.event_seq = event_seq
        where = "twice in this append" if event_seq is None else f"already the id of event {event_seq}"
        super().__init__(
            f"session {session_id!r}: id {event_id!r} is {where}; an append of several events is a retry only"
            " when all its ids were written together"
        )


class SequenceExhausted(AppendRejected, OverflowError):
    """No number is left for the append."""

    def __init__(self, *, session_id: str, last_seq: int) -> None:
        self.session_id = session_id
        self.last_seq = last_seq
        super().__init__(f"session {session_id!r}: no event_seq is left after {last_seq}; start a new session")


class Overloaded(AppendRejected, TimeoutError):
    """The session's inbox stayed full until the caller's deadline."""

    def __init__(self, *, session_id: str, waited_s: float, waiting_events: int) -> None:
        self.session_id = session_id
        self.waited_s = waited_s
        self.waiting_events = waiting_events
        super().__init__(
            f"session {session_id!r}: {waiting_events} events are waiting for the disk and none of their places"
            f" came free in {waited_s:g} s; slow the producer or raise Limits.inbox_events_max"
        )


class LockTimeout(AppendRejected, TimeoutError):
    """Another process kept the session's lock until the deadline."""

    def __init__(self, *, session_id: str, waited_s: float, holder_pid: int | None) -> None:
        self.session_id = session_id
        self.waited_s = waited_s
        self.holder_pid = holder_pid
        holder = "an unknown process" if holder_pid is None else f"process {holder_pid}"
        super().__init__(
            f"session {session_id!r}: the lock is held by {holder} and did not come free in {waited_s:g} s;"
            " see whether that process is stopped or stuck"
        )


class StorageRejected(AppendRejected, OSError):
    """The write failed and was rolled back: no byte of it remains."""

    def __init__(self, *, session_id: str, reason: str, errno: int | None = None) -> None:
        self.session_id = session_id
        self.reason = reason
        super().__init__(
            f"session {session_id!r}: the write failed and was rolled back ({reason}); free space or mend the"
            " store, then append again"
        )
        self.errno = errno


class ActorRestarted(AppendRejected):
    """The session's actor failed before it had handed the event on; it has been restarted."""

    def __init__(self, *, session_id: str, reason: str) -> None:
        self.session_id = session_id
        self.reason = reason
        super().__init__(f"session {session_id!r}: its actor failed ({reason}) and was restarted; append again")


class SessionHalted(AppendRejected):
    """The session refuses appends and replays until it is verified and cleared."""

    def __init__(self, *, session_id: str, reason: str, halted_at: str | None = None) -> None:
        self.session_id = session_id
        self.reason = reason
        self.halted_at = halted_at
        since = "" if halted_at is None else f" since {halted_at}"
        super().__init__(
            f"session {session_id!r} is halted{since}: {reason}; run 'logmark verify', then 'logmark repair'"
        )


class LogCorrupt(AppendRejected):
    """Acknowledged data is damaged or missing. Nothing was changed; the good prefix stays readable.

    Attributes:
        event_seq: the first number that is affected, or None when it cannot be told.
        segment: name of the file, relative to the session's directory, or the engine's own word for the place.
        offset: byte offset in that file.
    """

    def __init__(
        self, *, session_id: str, reason: str, event_seq: int | None, segment: str | None, offset: int | None
    ) -> None:
        self.session_id = session_id
        self.reason = reason
        self.event_seq = event_seq
        self.segment = segment
        self.offset = offset
        place = "" if segment is None else f", {segment} at byte {offset}"
        seq = "unknown seq" if event_seq is None else f"seq {event_seq}"
        super().__init__(
            f"session {session_id!r}: the log is damaged at {seq}{place}: {reason}; nothing was removed: run"
            " 'logmark verify', restore the file from a copy or run 'logmark repair'"
        )


class SchemaMismatch(AppendRejected):
    """A row was written by another schema version, or by something else; it is neither read nor appended to."""

    def __init__(
        self, *, session_id: str, expected: int, found: object, segment: str | None = None, offset: int | None = None
    ) -> None:
        self.session_id = session_id
        self.expected = expected
        self.found = found
        self.segment = segment
        self.offset = offset
        place = "" if segment is None else f" ({segment} at byte {offset})"
        super().__init__(
            f"session {session_id!r}: expected schema version {expected}, found {found!r}{place}; open the store"
            " with the version of logmark that wrote it"
        )


class RuntimeClosed(AppendRejected):
    """The runtime was closed; nothing new is accepted."""

    def __init__(self, message: str = "the runtime is closed; open a new one with logmark.open()") -> None:
        super().__init__(message)


class StorageUnavailable(LogmarkError, OSError):
    """The store cannot be opened, read or listed."""

    def __init__(self, *, store: str, reason: str, errno: int | None = None) -> None:
        self.store = store
        self.reason = reason
        super().__init__(f"store {store!r}: {reason}")
        self.errno = errno


class DecodeError(LogmarkError, ValueError):
    """Bytes that are not a valid envelope."""


class NotControl(LogmarkError, ValueError):
    """A countable type was sent as a control envelope."""

    def __init__(self, *, type: str) -> None:
        self.type = type
        super().__init__(f"{type!r} is countable: append it, or register it with logmark.open(..., control_types=...)")


class CursorAhead(LogmarkError, ValueError):
    """A position lies beyond the log: it was made by another store, or by a log that has since lost its end."""

    def __init__(self, *, session_id: str, cursor: int, last_seq: int) -> None:
        self.session_id = session_id
        self.cursor = cursor
        self.last_seq = last_seq
        super().__init__(
            f"session {session_id!r}: position {cursor} is beyond the log, whose last_seq is {last_seq}; the"
            " position is not of this log: start again from a position that is"
        )


class ForeignCursor(LogmarkError, ValueError):
    """A position of another session was given."""

    def __init__(self, *, session_id: str, cursor_session_id: str | None) -> None:
        self.session_id = session_id
        self.cursor_session_id = cursor_session_id
        super().__init__(f"session {session_id!r}: the position is of session {cursor_session_id!r}")


class WaitTimeout(LogmarkError, TimeoutError):
    """What was waited for did not come before the deadline."""

    def __init__(self, *, session_id: str, what: str, timeout_s: float) -> None:
        self.session_id = session_id
        self.what = what
        self.timeout_s = timeout_s
        super().__init__(f"session {session_id!r}: {what} did not come within {timeout_s:g} s")


class SubscriptionClosed(LogmarkError):
    """The subscription has ended: it was closed, or its runtime was."""

    def __init__(self, *, session_id: str) -> None:
        self.session_id = session_id
        super().__init__(f"session {session_id!r}: the subscription is closed; subscribe again from the next seq")


class ForkedRuntime(LogmarkError):
    """A runtime was used in a process forked from the one that opened it."""

    def __init__(self, *, owner_pid: int, pid: int) -> None:
        self.owner_pid = owner_pid
        self.pid = pid
        super().__init__(
            f"this runtime belongs to process {owner_pid}, this is its fork {pid}: its threads do not exist here;"
            " call logmark.open() in the child"
        )


class WouldDeadlock(LogmarkError, RuntimeError):
    """A blocking call in a thread that runs actors, such as in a callback of a future: it would wait for itself."""

    def __init__(self, *, call: str) -> None:
        self.call = call
        super().__init__(
            f"{call} was called in one of the runtime's own threads (a callback of a future runs there) and would wait"
            " for itself; use submit(), or do it in a thread of the program"
        )


class JobEnded(LogmarkError):
    """A job has its terminal event; nothing can be added to it."""

    def __init__(self, *, job_id: str, status: str) -> None:
        self.job_id = job_id
        self.status = status
        message = f"job {job_id!r} has ended ({status}): nothing is appended behind its end; return from the agent"
        super().__init__(message)


class JobFailed(LogmarkError):
    """Raised by an agent to end its job with an error of its own choice; the client gets the code and the message.

    Any other exception of an agent ends the job with INTERNAL_ERROR and without its text, which is for the log.

    Attributes:
        code: one of ARCP draft, section 12, such as INVALID_REQUEST for an input that the agent cannot use.
        retryable: whether the client may try again as it is. The draft fixes it for some codes, whatever is given here.
    """

    def __init__(self, reason: str, *, code: str = "INTERNAL_ERROR", retryable: bool = False) -> None:
        self.reason = reason
        self.code = code
        self.retryable = retryable
        super().__init__(reason)


class LeaseRefused(LogmarkError):
    """What an agent wants to do is not covered by its job's lease; an agent that does not catch it ends its job.

    Attributes:
        code: PERMISSION_DENIED, LEASE_EXPIRED or BUDGET_EXHAUSTED (ARCP draft, sections 9.3, 9.5, 9.6).
    """

    def __init__(self, *, job_id: str, code: str, reason: str) -> None:
        self.job_id = job_id
        self.code = code
        self.reason = reason
        super().__init__(f"the lease of job {job_id!r}: {reason}; the client may submit again with another lease")


class RequestRefused(LogmarkError):
    """A request of a network client is declined; the client is told.

    Attributes:
        code: the code of the ARCP draft, section 12.
        reason: what is wrong, as the client is told it.
        retryable: the same request may succeed later.
    """

    def __init__(self, *, code: str, reason: str, retryable: bool = False) -> None:
        self.code = code
        self.reason = reason
        self.retryable = retryable
        super().__init__(f"{code}: {reason}")


class MissingExtra(LogmarkError, ImportError):
    """An engine was asked for whose packages are not installed."""

    def __init__(self, *, engine: str, extra: str | None) -> None:
        self.engine = engine
        self.extra = extra
        hint = "this version has no such engine" if extra is None else f"pip install 'logmark[{extra}]'"
        super().__init__(f"the {engine} engine is not available: {hint}")
