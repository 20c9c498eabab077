"""What clients may send, typed: one frozen class and one reader for each type of the ARCP draft.

Readers accept what published clients really send: absent ``arcp`` and ``id``, unknown members at every level (section
5), the resume block in ``session.hello`` as well as the ``session.resume`` of section 6.3, the job id of a cancel on
the envelope or in the payload.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import orjson

from .._errors import RequestRefused

__all__ = [
    "READERS",
    "Ack",
    "Cancel",
    "Close",
    "Frame",
    "Hello",
    "ListJobs",
    "Ping",
    "Pong",
    "Request",
    "Resume",
    "Submit",
    "Subscribe",
    "Unsubscribe",
    "moment_ns",
]

_TRACE = re.compile(r"[0-9a-f]{32}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_NAME_MAX = 200
_KEY_MAX = 256
_REASON_MAX = 1000
_RUNTIME_MAX_S = 86_400
_SEQ_MAX = 2**63 - 1
_EXACT_FLOAT_MAX = 2**53
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """The envelope of an incoming message (section 5)."""

    type: str
    id: str | None
    session_id: str | None
    job_id: str | None
    trace_id: str | None
    payload: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A message of a client; ``request_id`` is the id of its envelope."""

    request_id: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Resume:
    """Where a client wants to go on (section 6.3)."""

    session_id: str
    resume_token: str = dataclasses.field(repr=False)
    last_event_seq: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Request):
    """``session.hello``, or ``session.resume`` as a first message (sections 6.1 to 6.3)."""

    client: str
    token: str = dataclasses.field(repr=False)
    features: frozenset[str]
    resume: Resume | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ping(Request):
    """``session.ping`` (section 6.4)."""

    nonce: Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pong(Request):
    """``session.pong`` (section 6.4)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ack(Request):
    """``session.ack`` (section 6.5)."""

    seq: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ListJobs(Request):
    """``session.list_jobs`` (section 6.6)."""

    statuses: frozenset[str] | None
    agent: str | None
    created_after_ns: int | None
    limit: int | None
    cursor: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Close(Request):
    """``session.close`` (section 6.7), or the ``session.bye`` of published clients, which awaits no answer."""

    answered: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Submit(Request):
    """``job.submit`` (section 7.1).

    Attributes:
        fingerprint: of every parameter, in canonical form: equal for equal submissions, however they are spelled.
    """

    agent: str
    input: Any
    lease_request: Any
    lease_constraints: Any
    idempotency_key: str | None
    max_runtime_s: float | None
    parent_job_id: str | None
    trace_id: str | None
    fingerprint: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cancel(Request):
    """``job.cancel`` (section 7.4)."""

    job_id: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Subscribe(Request):
    """``job.subscribe`` (section 7.6); ``from_event_seq`` counts in the submitting session's numbers."""

    job_id: str
    history: bool
    from_event_seq: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unsubscribe(Request):
    """``job.unsubscribe`` (section 7.6)."""

    job_id: str


def _refuse(reason: str) -> RequestRefused:
    return RequestRefused(code="INVALID_REQUEST", reason=reason)


def _mapping(name: str, value: object) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _refuse(f"{name} must be an object")
    return cast("dict[str, Any]", value)


def _text(name: str, value: object, most: int = _NAME_MAX) -> str:
    if not isinstance(value, str) or not value or len(value) > most:
        raise _refuse(f"{name} must be text of 1 to {most} characters")
    return value


def _optional_text(name: str, value: object, most: int = _NAME_MAX) -> str | None:
    return None if value is None else _text(name, value, most)


def _integer(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _SEQ_MAX:
        raise _refuse(f"{name} must be an integer of {least} or more")
    return value


def moment_ns(name: str, value: object) -> int:
    """Return RFC 3339 text as nanoseconds since 1970.

    Raises:
        RequestRefused: INVALID_REQUEST: it is not, or has no zone.
    """
    if not isinstance(value, str) or _RFC3339.fullmatch(value) is None:
        raise _refuse(f"{name} must be a time such as 2026-01-31T23:59:59Z")
    try:
        moment = dt.datetime.fromisoformat(value.upper()).astimezone(dt.UTC)
    except (ValueError, OverflowError):
        raise _refuse(f"{name} is not a valid time") from None
    return (moment - _EPOCH) // dt.timedelta(microseconds=1) * 1000


def _canonical(value: Any) -> Any:
    """Return a JSON value in which equal numbers are spelled alike; keys are sorted by the encoder."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_canonical(item) for item in cast("list[object]", value)]
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT_FLOAT_MAX:
        return int(value)
    return value


def _fingerprint(payload: Mapping[str, Any]) -> str:
    """Return a digest of all parameters of a submission; absent, null and empty lease members are the same."""
    members = {name: _canonical(value) for name, value in payload.items() if name != "idempotency_key"}
    members = {name: value for name, value in members.items() if value is not None}
    for name in ("lease_request", "lease_constraints"):
        if not members.get(name, True):
            del members[name]
    return hashlib.sha256(orjson.dumps(members, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _hello(frame: Frame) -> Hello:
    payload = frame.payload
    auth = _mapping("auth", payload.get("auth"))
    token = auth.get("token")
    if auth.get("scheme", "bearer") != "bearer" or not isinstance(token, str) or not token:
        raise RequestRefused(code="UNAUTHENTICATED", reason="a bearer token is needed")
    capabilities = _mapping("capabilities", payload.get("capabilities"))
    features = capabilities.get("features", [])
    if not isinstance(features, list):
        raise _refuse("capabilities.features must be a list")
    encodings = capabilities.get("encodings")
    if isinstance(encodings, list) and encodings and "json" not in encodings:
        raise _refuse("the only encoding is json")
    client = _mapping("client", payload.get("client"))
    name = client.get("name")
    block = payload if frame.type == "session.resume" else payload.get("resume")
    return Hello(
        request_id=frame.id,
        client=name[:_NAME_MAX] if isinstance(name, str) else "",
        token=token,
        features=frozenset(each for each in cast("list[object]", features) if isinstance(each, str)),
        resume=None if block is None else _resume(frame, _mapping("resume", block)),
    )


def _resume(frame: Frame, block: Mapping[str, Any]) -> Resume:
    return Resume(
        session_id=_text("resume.session_id", block.get("session_id", frame.session_id)),
        resume_token=_text("resume.resume_token", block.get("resume_token")),
        last_event_seq=_integer("resume.last_event_seq", block.get("last_event_seq"), 0),
    )


def _ping(frame: Frame) -> Ping:
    nonce = frame.payload.get("nonce")
    if nonce is not None:
        _text("nonce", nonce)
    return Ping(request_id=frame.id, nonce=nonce)


def _pong(frame: Frame) -> Pong:
    return Pong(request_id=frame.id)


def _ack(frame: Frame) -> Ack:
    return Ack(request_id=frame.id, seq=_integer("last_processed_seq", frame.payload.get("last_processed_seq"), 0))


def _list_jobs(frame: Frame) -> ListJobs:
    payload = frame.payload
    wanted = _mapping("filter", payload.get("filter"))
    statuses = wanted.get("status")
    if isinstance(statuses, str):
        statuses = [statuses]
    if statuses is not None and not (
        isinstance(statuses, list) and all(isinstance(each, str) for each in cast("list[object]", statuses))
    ):
        raise _refuse("filter.status must be a list of text")
    after = wanted.get("created_after")
    limit = payload.get("limit")
    return ListJobs(
        request_id=frame.id,
        statuses=None if statuses is None else frozenset(cast("list[str]", statuses)),
        agent=_optional_text("filter.agent", wanted.get("agent")),
        created_after_ns=None if after is None else moment_ns("filter.created_after", after),
        limit=None if limit is None else _integer("limit", limit, 1),
        cursor=_optional_text("cursor", payload.get("cursor")),
    )


def _close(frame: Frame) -> Close:
    return Close(request_id=frame.id, answered=frame.type == "session.close")


def _trace_id(frame: Frame) -> str | None:
    """Return the W3C trace id; a whole ``traceparent`` (section 11) is taken apart."""
    value = frame.trace_id
    if value is None:
        return None
    match = _TRACEPARENT.fullmatch(value)
    trace_id = match[1] if match else value
    if _TRACE.fullmatch(trace_id) is None or not trace_id.strip("0"):
        raise _refuse("trace_id must be 32 lower-case hexadecimal digits, not all zero, or a traceparent")
    return trace_id


def _submit(frame: Frame) -> Submit:
    payload = frame.payload
    runtime = payload.get("max_runtime_sec")
    if runtime is not None and (
        isinstance(runtime, bool) or not isinstance(runtime, int | float) or not 0 < runtime <= _RUNTIME_MAX_S
    ):
        raise _refuse(f"max_runtime_sec must be a number of seconds up to {_RUNTIME_MAX_S}")
    return Submit(
        request_id=frame.id,
        agent=_text("agent", payload.get("agent")),
        input=payload.get("input"),
        lease_request=payload.get("lease_request"),
        lease_constraints=payload.get("lease_constraints"),
        idempotency_key=_optional_text("idempotency_key", payload.get("idempotency_key"), _KEY_MAX),
        max_runtime_s=runtime,
        parent_job_id=_optional_text("parent_job_id", payload.get("parent_job_id")),
        trace_id=_trace_id(frame),
        fingerprint=_fingerprint(payload),
    )


def _job_of(frame: Frame) -> str:
    return _text("job_id", frame.payload.get("job_id", frame.job_id))


def _cancel(frame: Frame) -> Cancel:
    reason = frame.payload.get("reason")
    return Cancel(
        request_id=frame.id,
        job_id=_job_of(frame),
        reason=reason[:_REASON_MAX] if isinstance(reason, str) else "",
    )


def _subscribe(frame: Frame) -> Subscribe:
    history = frame.payload.get("history", False)
    if not isinstance(history, bool):
        raise _refuse("history must be true or false")
    after = frame.payload.get("from_event_seq")
    if isinstance(after, str) and after == "live":  # the default, as section 7.6 spells it
        after = None
    return Subscribe(
        request_id=frame.id,
        job_id=_job_of(frame),
        history=history,
        from_event_seq=0 if after is None else _integer("from_event_seq", after, 0),
    )


def _unsubscribe(frame: Frame) -> Unsubscribe:
    return Unsubscribe(request_id=frame.id, job_id=_job_of(frame))


READERS: Mapping[str, Callable[[Frame], Request]] = {
    "session.hello": _hello,  # 6.2
    "session.resume": _hello,  # 6.3
    "session.ping": _ping,  # 6.4
    "session.pong": _pong,  # 6.4
    "session.ack": _ack,  # 6.5
    "session.list_jobs": _list_jobs,  # 6.6
    "session.close": _close,  # 6.7
    "session.bye": _close,  # 6.7, as published clients say it
    "job.submit": _submit,  # 7.1
    "job.cancel": _cancel,  # 7.4
    "job.subscribe": _subscribe,  # 7.6
    "job.unsubscribe": _unsubscribe,  # 7.6
}
