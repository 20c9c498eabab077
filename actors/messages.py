"""What the actors say to each other. Every message is frozen; what it carries is never changed after it is sent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pykka import ActorRef

from ..protocol import AppendError, JobMark, LogmarkError, RawEnvelope
from ..storage import Appended, AppendRequest, BatchResult, SessionBatch

__all__ = [
    "Append",
    "AppendReply",
    "Changed",
    "CheckWriter",
    "Committed",
    "GetMarks",
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

    def settle(self, answer: Appended | AppendError) -> None:
        """Give the caller its numbers, or why there are none."""
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


@dataclasses.dataclass(frozen=True, slots=True)
class Append:
    """To the SessionActor: number and store these events together.

    Attributes:
        submitted_ns: wall clock of the submission, for the log.
        size_bytes: bytes of the events, as the gate counts them.
    """

    request: AppendRequest
    reply: AppendReply
    submitted_ns: int
    size_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Send:
    """To the SessionActor: pass a control envelope on, after what was submitted before it."""

    envelope: RawEnvelope


@dataclasses.dataclass(frozen=True, slots=True)
class Observed:
    """To the SessionActor and from it to those behind it: the log now ends at this number, whoever wrote it."""

    last_seq: int


@dataclasses.dataclass(frozen=True, slots=True)
class Resume:
    """To any actor, from its timer: the pause after a failure is over."""


@dataclasses.dataclass(frozen=True, slots=True)
class CheckWriter:
    """To the SessionActor, from its timer: see whether the writer of the batch in flight still lives."""


@dataclasses.dataclass(frozen=True, slots=True)
class Persist:
    """To the PersistActor: write this batch. The answer is ``Persisted``, to ``reply_to``, whatever happens."""

    batch_id: int
    batch: SessionBatch
    reply_to: ActorRef[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Persisted:
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


@dataclasses.dataclass(frozen=True, slots=True)
class Committed:
    """From the SessionActor to the BroadcastActor and the JobActor: what is durable now, in order.

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
class Loaded:
    """To the JobActor, from the thread that read the log for it: the next events from ``from_seq``, or an error.

    Attributes:
        kept: the marks that an earlier run has saved, and the number they go to; the events come after it.
    """

    from_seq: int
    events: tuple[RawEnvelope, ...]
    last_seq: int
    error: LogmarkError | None = None
    kept: tuple[int, list[JobMark]] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Saved:
    """To the JobActor, from the thread that did it or failed to: its marks are saved."""


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
    """To the WatchActor, from the thread that asked the store: last numbers, and the sessions that gave an error."""

    found: Mapping[str, int]
    failed: Mapping[str, str]
