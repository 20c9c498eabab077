"""Frames: bytes from clients to typed messages, and answers and events to bytes.

Two dialects (``compat``) differ in what published clients and the draft cannot agree on; everything else is a superset
that both read:

========================  ==================================  =================================
                            neutral                             draft
========================  ==================================  =================================
budget counters           ``{"USD": "USD:5.00"}``             ``{"USD": 5.0}`` (section 7.1)
end of a cancelled job    ``final_status: "error"``           ``"cancelled"`` (section 7.4)
end of a timed-out job    ``final_status: "error"``           ``"timed_out"`` (section 7.3)
========================  ==================================  =================================

In both, ``code`` is CANCELLED or TIMEOUT, and the log holds the draft's form.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal, cast

import orjson

from .._codec import decode_json
from .._envelope import ARCP_VERSION, RawEnvelope
from .._errors import DecodeError, RequestRefused
from ._requests import Frame

__all__ = ["Dialect", "budget_members", "control_frame", "decode_frame", "event_frame", "time_text"]

Dialect = Literal["neutral", "draft"]

_ID_MAX = 200
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_YEAR_9999_NS = 253_370_764_800 * 10**9


def time_text(now_ns: int) -> str:
    """Return nanoseconds since 1970 as RFC 3339 in UTC, to the microsecond."""
    moment = _EPOCH + dt.timedelta(microseconds=min(max(now_ns, 0), _YEAR_9999_NS) // 1000)
    return moment.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def _optional_text(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value or len(value) > _ID_MAX:
        raise RequestRefused(code="INVALID_REQUEST", reason=f"{name} must be text of 1 to {_ID_MAX} characters")
    return value


def decode_frame(data: bytes, *, bytes_max: int, depth_max: int) -> tuple[Frame | RequestRefused, str | None]:
    """Return the frame, or why it is none, and the id of its envelope as far as there is one.

    Unknown members are ignored (section 5). Nothing of what was received comes back in the reason.
    """
    try:
        value = decode_json(data, bytes_max=bytes_max, depth_max=depth_max + 2)
    except DecodeError:
        return RequestRefused(code="INVALID_REQUEST", reason="the frame is not one exact JSON object"), None
    if not isinstance(value, dict):
        return RequestRefused(code="INVALID_REQUEST", reason="the frame is not a JSON object"), None
    members = cast("dict[str, Any]", value)
    frame_id = members.get("id")
    known_id = frame_id if isinstance(frame_id, str) and 0 < len(frame_id) <= _ID_MAX else None
    try:
        if members.get("arcp", ARCP_VERSION) != ARCP_VERSION:
            raise RequestRefused(code="INVALID_REQUEST", reason=f"arcp must be {ARCP_VERSION!r}")
        type_ = _optional_text("type", members.get("type"))
        if type_ is None:
            raise RequestRefused(code="INVALID_REQUEST", reason="the frame has no type")
        payload: object = members.get("payload")
        if payload is not None and not isinstance(payload, dict):
            raise RequestRefused(code="INVALID_REQUEST", reason="payload must be an object")
        frame = Frame(
            type=type_,
            id=_optional_text("id", frame_id),
            session_id=_optional_text("session_id", members.get("session_id")),
            job_id=_optional_text("job_id", members.get("job_id")),
            trace_id=_optional_text("trace_id", members.get("trace_id")),
            payload=cast("dict[str, Any]", payload) if payload else {},
        )
    except RequestRefused as refused:
        return refused, known_id
    return frame, known_id


def control_frame(
    type_: str,
    payload: Mapping[str, Any],
    *,
    id_: str,
    now_ns: int,
    session_id: str | None,
    job_id: str | None = None,
    trace_id: str | None = None,
) -> bytes:
    """Return a control frame: it has no ``event_seq`` (sections 6.4, 6.5 and 8.3). Absent members are left out."""
    optional = {"session_id": session_id, "job_id": job_id, "trace_id": trace_id}
    members: dict[str, Any] = {"arcp": ARCP_VERSION, "id": id_, "type": type_}
    members |= {name: value for name, value in optional.items() if value is not None}
    members |= {"timestamp": time_text(now_ns), "payload": payload}
    return orjson.dumps(members)


def event_frame(event: RawEnvelope, dialect: Dialect) -> bytes:
    """Return the frame of a stored event: its own bytes, under its own id and number, however often it is sent."""
    if dialect == "neutral" and event.type == "job.error":
        payload: Any = orjson.loads(event.payload_json)
        if isinstance(payload, dict) and cast("dict[str, Any]", payload).get("final_status") != "error":
            payload = cast("dict[str, Any]", payload) | {"final_status": "error"}
            event = RawEnvelope.from_stored(
                event.session_id or "", event.event_seq, event.head_json or b"", orjson.dumps(payload)
            )
    return event.to_wire()


def budget_members(budget: Mapping[str, Decimal], dialect: Dialect) -> dict[str, Any]:
    """Return budget counters as the dialect has them (section 9.6)."""
    if dialect == "draft":
        return {currency: float(left) for currency, left in budget.items()}
    return {currency: f"{currency}:{left:f}" for currency, left in budget.items()}
