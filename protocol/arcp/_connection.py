"""One connection as a state machine: frames and answers in, effects out. No socket, thread, clock or chance.

Whoever drives it hands over what arrives (``receive``), the time now and then (``tick``), and the answer to each
request it was asked to decide (``answer``), and carries out the effects in their order. Identifiers come from the
``new_id`` it is given. Nothing here raises on account of a peer: what a client does wrong is answered with
``session.error`` that names the request, and the session goes on (section 12).

Rules: a request has one answer. Before ``session.welcome`` nothing but ``session.error`` is sent. No control frame has
a number. ``session.ack`` only rises, up to what was sent. After ``Leave`` nothing follows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from .._errors import RequestRefused
from ._codes import Refusal
from ._frames import Dialect, control_frame, decode_frame, time_text
from ._requests import (
    READERS,
    Ack,
    Cancel,
    Close,
    Hello,
    ListJobs,
    Ping,
    Pong,
    Request,
    Submit,
    Subscribe,
    Unsubscribe,
)

__all__ = [
    "FEATURES",
    "TRANSITIONS",
    "Accepted",
    "Answer",
    "Ask",
    "Cancelled",
    "Connection",
    "Done",
    "Effect",
    "Leave",
    "Listed",
    "Moment",
    "Profile",
    "Send",
    "Subscribed",
    "Welcomed",
]

State = Literal["opening", "deciding", "open", "closed"]

FEATURES = (
    "heartbeat",
    "ack",
    "list_jobs",
    "subscribe",
    "lease_expires_at",
    "cost.budget",
    "progress",
    "result_chunk",
    "agent_versions",
)
"""The features of section 6.2 that this implementation knows how to keep, in the draft's order."""

TRANSITIONS: Mapping[State, Mapping[str, str | None]] = {
    # In which state which message is understood, and the feature that it needs. Everything else is INVALID_REQUEST.
    "opening": {
        "session.hello": None,  # 6.2
        "session.resume": None,  # 6.3
    },
    "deciding": {},
    "open": {
        "session.ping": None,  # 6.4: answered, negotiated or not
        "session.pong": None,  # 6.4
        "session.ack": None,  # 6.5: advisory; without the feature it has no effect
        "session.list_jobs": "list_jobs",  # 6.6
        "session.close": None,  # 6.7
        "session.bye": None,  # 6.7
        "job.submit": None,  # 7.1
        "job.cancel": None,  # 7.4
        "job.subscribe": "subscribe",  # 7.6
        "job.unsubscribe": "subscribe",  # 7.6
    },
    "closed": {},
}


@dataclasses.dataclass(frozen=True, slots=True)
class Moment:
    """The time: wall clock in nanoseconds since 1970, and seconds that never step back."""

    wall_ns: int
    monotonic_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a runtime says of itself and how it speaks."""

    name: str
    version: str
    dialect: Dialect
    features: frozenset[str]
    resume_window_s: float
    heartbeat_interval_s: float
    handshake_wait_s: float
    frame_bytes_max: int
    depth_max: int


# -- effects ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Send:
    """Send this control frame; with ``pause``, let a moment pass before the next event (see ``Connection``)."""

    type: str
    data: bytes
    pause: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Ask:
    """Decide this request and hand the decision to ``answer``."""

    request: Request


@dataclasses.dataclass(frozen=True, slots=True)
class Leave:
    """Close the transport once everything was sent; the session stays, and so do its jobs (section 6.7)."""

    close_code: int
    reason: str


Effect = Send | Ask | Leave


# -- answers ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Welcomed:
    """A session was opened or resumed.

    Attributes:
        after_seq: the number after which events follow: 0, or the ``last_event_seq`` of a resume.
    """

    session_id: str
    resume_token: str = dataclasses.field(repr=False)
    agents: Sequence[Mapping[str, Any]]
    after_seq: int


@dataclasses.dataclass(frozen=True, slots=True)
class Accepted:
    """A job was accepted, now or by an earlier submission with the same key (section 7.2)."""

    job_id: str
    payload: Mapping[str, Any]
    trace_id: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Listed:
    """A page of jobs."""

    jobs: Sequence[Mapping[str, Any]]
    next_cursor: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Subscribed:
    """A subscription stands; events follow behind this answer."""

    job_id: str
    payload: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Cancelled:
    """A cancel was taken (section 7.4); the job's end follows as an event, unless it has ended before."""

    job_id: str
    payload: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """Nothing to tell."""


Answer = Welcomed | Accepted | Listed | Subscribed | Cancelled | Done | Refusal

_ANSWERS: Mapping[type[Request], type[Answer]] = {
    Hello: Welcomed,
    Submit: Accepted,
    ListJobs: Listed,
    Subscribe: Subscribed,
    Cancel: Cancelled,
    Unsubscribe: Done,
    Close: Done,
}

_POLICY_VIOLATION = 1008  # RFC 6455, section 7.4.1
_NORMAL = 1000
_INTERNAL = 1011


class Connection:
    """The server's end of one connection. Not thread-safe: the driver holds a lock.

    ``Send.pause`` is set on ``job.subscribed``: published clients register the subscription only after they have read
    that frame, and drop events that arrive in the same burst.
    """

    def __init__(self, profile: Profile, *, new_id: Callable[[], str], now: Moment) -> None:
        self._profile = profile
        self._new_id = new_id
        self._state: State = "opening"
        self._opened_at = now.monotonic_s
        self._heard_at = now.monotonic_s
        self._sent_at = now.monotonic_s
        self._pinged_at = now.monotonic_s
        self._pending: list[Request] = []
        self.session_id: str | None = None
        self.features: frozenset[str] = frozenset()
        self.emitted = 0
        self.acked = 0
        self.has_acked = False

    @property
    def state(self) -> State:
        """Where the connection is: ``opening``, ``deciding`` (on its hello), ``open`` or ``closed``."""
        return self._state

    @property
    def lag(self) -> int:
        """How many numbers the client's last acknowledgement is behind what was sent."""
        return self.emitted - self.acked

    # -- from the peer ----------------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: Moment) -> list[Effect]:
        """Take one frame of the peer."""
        if self._state == "closed":
            return []
        self._heard_at = now.monotonic_s
        frame, frame_id = decode_frame(data, bytes_max=self._profile.frame_bytes_max, depth_max=self._profile.depth_max)
        if isinstance(frame, RequestRefused):
            return self._declined(Refusal(frame.code, frame.reason), frame_id, now)
        known = TRANSITIONS[self._state]
        if frame.type not in known:
            if frame.type not in READERS:
                reason = "this is no message of a client"
            elif self._state == "open":
                reason = f"{frame.type} comes once, as the first message"
            else:
                reason = "the first message must be session.hello"
            return self._declined(Refusal("INVALID_REQUEST", reason), frame_id, now)
        feature = known[frame.type]
        if feature is not None and feature not in self.features:
            return self._declined(Refusal("INVALID_REQUEST", f"{feature} was not negotiated"), frame_id, now)
        if self._state == "open" and frame.session_id not in (None, self.session_id):
            return self._declined(Refusal("INVALID_REQUEST", "session_id is not this session's"), frame_id, now)
        try:
            request = READERS[frame.type](frame)
        except RequestRefused as refused:
            return self._declined(Refusal(refused.code, refused.reason), frame_id, now)
        return self._understood(request, now)

    def _understood(self, request: Request, now: Moment) -> list[Effect]:
        match request:
            case Ping():  # 6.4: promptly, and in no queue behind events
                payload = {"ping_nonce": request.nonce, "received_at": time_text(now.wall_ns)}
                return [self._send("session.pong", payload, now)]
            case Pong():
                return []
            case Ack():
                self._acknowledge(request.seq)
                return []
            case Close():
                self._state = "closed"
                effects: list[Effect] = []
                if request.answered:  # 6.7
                    effects.append(self._send("session.closed", {"reason": "closed by the client"}, now))
                return [*effects, Leave(_NORMAL, "closed by the client")]
            case Hello():
                self._state = "deciding"
                self.features = self._profile.features & request.features
            case _:
                pass
        self._pending.append(request)
        return [Ask(request)]

    def _acknowledge(self, seq: int) -> None:
        """Section 6.5: advisory. It only rises, and never beyond what was sent, so no client can free what it lacks."""
        if "ack" in self.features:
            self.has_acked = True
            self.acked = max(self.acked, min(seq, self.emitted))

    # -- from the driver --------------------------------------------------------------------------------------------

    def answer(self, request: Request, answer: Answer, now: Moment) -> list[Effect]:
        """Take the decision on a request; a second one, or one of another kind, has no effect."""
        waiting = next((index for index, each in enumerate(self._pending) if each is request), None)
        if waiting is None or not isinstance(answer, (_ANSWERS[type(request)], Refusal)):
            return []
        del self._pending[waiting]
        if self._state == "closed":
            return []
        if isinstance(answer, Refusal):
            return self._declined(answer, request.request_id, now)
        match answer:
            case Welcomed():
                return [self._welcome(answer, now)]
            case Accepted():
                payload = _with_request_id(answer.payload, request.request_id)
                return [self._send("job.accepted", payload, now, answer.job_id, answer.trace_id)]
            case Listed():
                listed = {"jobs": list(answer.jobs), "next_cursor": answer.next_cursor}
                return [self._send("session.jobs", _with_request_id(listed, request.request_id), now)]
            case Subscribed():
                payload = _with_request_id(answer.payload, request.request_id)
                return [self._send("job.subscribed", payload, now, answer.job_id, pause=True)]
            case Cancelled():
                payload = _with_request_id(answer.payload, request.request_id)
                return [self._send("job.cancelled", payload, now, answer.job_id)]
            case Done():
                return []

    def _welcome(self, answer: Welcomed, now: Moment) -> Send:
        self._state = "open"
        self.session_id = answer.session_id
        self.emitted = self.acked = answer.after_seq
        payload: dict[str, Any] = {
            "runtime": {"name": self._profile.name, "version": self._profile.version},
            "session_id": answer.session_id,
            "resume_token": answer.resume_token,
            "resume_window_sec": max(1, math.floor(self._profile.resume_window_s)),
            "accepted_at": time_text(now.wall_ns),
            "capabilities": {
                "encodings": ["json"],
                "features": [name for name in FEATURES if name in self.features],
                "agents": list(answer.agents),
            },
        }
        if "heartbeat" in self.features:  # published clients read a whole number of seconds
            payload["heartbeat_interval_sec"] = max(1, math.ceil(self._profile.heartbeat_interval_s))
        return self._send("session.welcome", payload, now)

    def sent(self, event_seq: int | None, now: Moment) -> None:
        """Learn that a frame went out, with its number if it has one."""
        self._sent_at = now.monotonic_s
        if event_seq is not None:
            self.emitted = max(self.emitted, event_seq)

    def tick(self, now: Moment) -> list[Effect]:
        """Let time pass: the handshake's deadline, pings to an idle peer, and the end of a silent one."""
        waited = now.monotonic_s - self._heard_at
        if self._state in ("opening", "deciding"):
            if now.monotonic_s - self._opened_at < self._profile.handshake_wait_s:
                return []
            return self._declined(Refusal("UNAUTHENTICATED", "no session.hello came in time"), None, now)
        if self._state == "closed" or "heartbeat" not in self.features:
            return []
        interval = self._profile.heartbeat_interval_s
        if waited >= 2 * interval:  # 6.4: two silent intervals
            lost = self._send("session.error", Refusal("HEARTBEAT_LOST", "nothing was heard").payload(None), now)
            self._state = "closed"
            return [lost, Leave(_POLICY_VIOLATION, "heartbeat lost")]
        # Half an interval is idle enough, so that each interval surely sees a frame, however the ticks fall. A peer
        # that only listens is asked too: while events stream to it, nothing else would make it speak.
        idle_since = min(self._sent_at, self._heard_at)
        if now.monotonic_s - max(idle_since, self._pinged_at) >= interval / 2:
            self._pinged_at = now.monotonic_s
            return [self._send("session.ping", {"nonce": self._new_id(), "sent_at": time_text(now.wall_ns)}, now)]
        return []

    def leave(self, reason: str, refusal: Refusal | None, now: Moment) -> list[Effect]:
        """End the connection from this side: told why, if there is something to tell."""
        if self._state == "closed":
            return []
        effects: list[Effect] = []
        if refusal is not None:
            effects.append(self._send("session.error", refusal.payload(None), now))
        self._state = "closed"
        return [*effects, Leave(_INTERNAL if refusal is not None else _NORMAL, reason)]

    # -- parts ------------------------------------------------------------------------------------------------------

    def _declined(self, refusal: Refusal, request_id: str | None, now: Moment) -> list[Effect]:
        """Answer with an error. It ends a connection that has no session yet, and never a session."""
        error = self._send("session.error", refusal.payload(request_id), now, refusal.job_id)
        if self._state == "open":
            return [error]
        self._state = "closed"
        return [error, Leave(_POLICY_VIOLATION, refusal.code)]

    def _send(
        self,
        type_: str,
        payload: Mapping[str, Any],
        now: Moment,
        job_id: str | None = None,
        trace_id: str | None = None,
        *,
        pause: bool = False,
    ) -> Send:
        data = control_frame(
            type_,
            payload,
            id_=self._new_id(),
            now_ns=now.wall_ns,
            session_id=self.session_id,
            job_id=job_id,
            trace_id=trace_id,
        )
        return Send(type_, data, pause)


def _with_request_id(payload: Mapping[str, Any], request_id: str | None) -> dict[str, Any]:
    return dict(payload) if request_id is None else {**payload, "request_id": request_id}
