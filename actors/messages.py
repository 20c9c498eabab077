"""What the actors say to each other. Every message is frozen; what it carries is never changed after it is sent.

Those that each append makes are named tuples: a frozen dataclass takes three times as long to be made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from pykka import ActorRef

from ..protocol import AppendError, JobMark, LogmarkError, RawEnvelope, SessionDeleted
from ..storage import Appended, AppendRequest, BatchResult, SessionBatch
from ._instrumentation import AppendSpan
from ._relay import Sleeper

__all__ = [
    "Append",
    "AppendReply",
    "Changed",
    "CheckWriter",
    "Committed",
    "GetMarks",
    "GetMarksBase",
    "GetRows",
    "GetRowsBase",
    "HaltSession",
    "Loaded",
    "Looked",
    "Observed",
    "Persist",
    "Persisted",
    "Resume",
    "Saved",
    "Send",
    "Subscribe",
    "Subscriber",
    "Unsubscribe",
    "Unwatch",
    "Watch",
    "WatchTick",
]


class AppendReply(Protocol):
    """Where the answer to an append goes. Called by the SessionActor, once; must not block or raise."""

    def begin(self) -> bool:
        """Say whether the append is still wanted; from here on it can no longer be cancelled."""
        ...

    def settle(self, answer: Appended | AppendError) -> Sleeper | None:
        """Give the caller its numbers, or why there are none; return who sleeps for them and is to be woken now."""
        ...


class Subscriber(Protocol):
    """Where broadcasts go. Called by the BroadcastActor only; must not block. One that raises is detached."""

    def offer(self, envelopes: tuple[RawEnvelope, ...], last_seq: int) -> None:
        """Take a batch in order, control envelopes among the events, and learn the session's last number.

        A subscriber that has no room keeps only ``last_seq`` and reads the events from the log.
        """
        ...

    def end(self) -> None:
        """Learn that nothing will come any more."""
        ...


class Append(NamedTuple):
    """To the SessionActor: number and store these events together.

    Attributes:
        submitted_ns: wall clock of the submission, for the log.
        size_bytes: bytes of the events, as the gate counts them.
        span: its trace, if it is traced.
    """

    request: AppendRequest
    reply: AppendReply
    submitted_ns: int
    size_bytes: int
    span: AppendSpan | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Send:
    """To the SessionActor: pass a control envelope on, after what was submitted before it."""

    envelope: RawEnvelope


class Observed(NamedTuple):
    """To the SessionActor and from it to those behind it: the log now ends at this number, whoever wrote it."""

    last_seq: int


@dataclasses.dataclass(frozen=True, slots=True)
class Resume:
    """To any actor, from its timer: the pause after a failure is over."""


@dataclasses.dataclass(frozen=True, slots=True)
class CheckWriter:
    """To the SessionActor, from its timer: see whether the writer of the batch in flight still lives."""


class Persist(NamedTuple):
    """To the PersistActor: write this batch. The answer is ``Persisted``, to ``reply_to``, whatever happens."""

    batch_id: int
    batch: SessionBatch
    reply_to: ActorRef[Any]


class Persisted(NamedTuple):
    """From the PersistActor: the batch is durable, or failed; each request has its own answer.

    Attributes:
        commit_s: seconds from taking the batch up to the answer, the sync included.
    """

    batch_id: int
    result: BatchResult
    commit_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class HaltSession:
    """To the PersistActor: the outcome of a write is unknown; record the halt."""

    session_id: str
    reason: str
    first_event_id: str | None


class Committed(NamedTuple):
    """From the SessionActor to those behind it: what is durable now, in order.

    Attributes:
        envelopes: events with their numbers, control envelopes between them.
        last_seq_before: number of the last event before these; the receiver may have missed what another process wrote.
        last_seq: number of the last event.
    """

    envelopes: tuple[RawEnvelope, ...]
    last_seq_before: int
    last_seq: int


@dataclasses.dataclass(frozen=True, slots=True)
class Subscribe:
    """To the SessionActor, and on to the BroadcastActor: from here on, offer everything to this subscriber."""

    subscriber: Subscriber


@dataclasses.dataclass(frozen=True, slots=True)
class Unsubscribe:
    """To the SessionActor, and on to the BroadcastActor: offer nothing more to this subscriber."""

    subscriber: Subscriber


@dataclasses.dataclass(frozen=True, slots=True)
class GetMarks:
    """To the SessionActor, and on to the JobActor: tell the marks once they include this number.

    Attributes:
        job_id: one job, or None for all.
        answer: called once, with the marks or with why there are none; must not block.
    """

    min_seq: int
    job_id: str | None
    answer: Callable[[list[JobMark] | LogmarkError], None]


@dataclasses.dataclass(frozen=True, slots=True)
class GetMarksBase(GetMarks):
    """To the SessionActor, and on to the JobActor: tell what the marks are made of, once they include this number.

    Attributes:
        answer: called once, with ``(seq, entries, encode)``: how far they go, how many they are and what encodes them,
            in any thread; or with why there are none. Must not block.
    """

    answer: Callable[[Any], None]


@dataclasses.dataclass(frozen=True, slots=True)
class GetRows:
    """To the SessionActor, and on to the RowActor: tell where the rows stand, once that includes this number.

    Attributes:
        answer: called once, with the ``RowIndex`` or with why there is none; must not block.
    """

    min_seq: int
    answer: Callable[[Any], None]


@dataclasses.dataclass(frozen=True, slots=True)
class GetRowsBase(GetRows):
    """To the SessionActor, and on to the RowActor: tell what the rows are made of, as ``GetMarksBase`` does of marks.

    Nobody has asked for the rows themselves by that: a session without any goes on without its RowActor.

    Attributes:
        first_available: the first event that is there now.
        first_kept: the first that is to be there then.
    """

    first_available: int
    first_kept: int


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """To a FoldActor, from the thread that read the log for it: the next events from ``from_seq``, or an error.

    Attributes:
        kept: what an earlier run has saved, and the number it goes to; the events come after it.
    """

    from_seq: int
    events: tuple[RawEnvelope, ...]
    last_seq: int
    error: LogmarkError | None = None
    kept: tuple[int, Any] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Saved:
    """To a FoldActor, from the thread that did it or failed to: what was derived is saved."""


@dataclasses.dataclass(frozen=True, slots=True)
class Watch:
    """To the WatchActor: tell how far this session goes; as many ``Unwatch`` end it."""

    session_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class Unwatch:
    """To the WatchActor: one fewer wants to know."""

    session_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class WatchTick:
    """To the WatchActor, from its timer: look now."""


@dataclasses.dataclass(frozen=True, slots=True)
class Changed:
    """To the WatchActor, from the store: somebody may have appended to this session; None: to any."""

    session_id: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Looked:
    """To the WatchActor, from the thread that asked the store: last numbers or ends, and the sessions that failed."""

    found: Mapping[str, int | SessionDeleted]
    failed: Mapping[str, str]
