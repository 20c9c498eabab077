"""ARCP wire logs: one envelope per line, bare or in a ``{conn, dir, frame}`` record of who sent it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from ..protocol import ARCP_VERSION, Envelope, InvalidEvent, timestamp_text
from ._ingest_events import ORIGIN_SEQ, ForeignEvent, MalformedLine, NotStored

__all__ = ["read_frame", "read_record"]

_ORIGIN_ARCP = "origin_arcp"
_ENVELOPE_FIELDS = frozenset(
    {
        "arcp",
        "event_seq",
        "id",
        "job_id",
        "payload",
        "session_id",
        "source",
        "stream_seq",
        "timestamp",
        "trace_id",
        "type",
    }
)
_PAYLOAD_TIMES = ("ts", "completed_at")


def read_record(record: Mapping[str, Any], is_countable: Callable[[str], bool]) -> ForeignEvent | NotStored:
    """Read a ``{conn, dir, frame}`` record; ``dir`` is ``c2s`` or ``s2c``, the latter when it is missing.

    Raises:
        MalformedLine: no such record, or its frame is no valid envelope.
    """
    frame = record["frame"]
    if not isinstance(frame, dict):
        message = f"the frame is {_kind(frame)}, not a JSON object"
        raise MalformedLine(message)
    direction = record.get("dir", "s2c")
    if direction == "c2s":
        return NotStored.CLIENT
    if direction != "s2c":
        message = f"dir is 'c2s' or 's2c', not {direction!r}"
        raise MalformedLine(message)
    return read_frame(cast("dict[str, Any]", frame), is_countable)


def read_frame(frame: Mapping[str, Any], is_countable: Callable[[str], bool]) -> ForeignEvent | NotStored:
    """Read one envelope that a server sent.

    The number that it carries is kept in the extension field ``origin_seq``, unless an earlier ingest has put one
    there, and a protocol version other than ours in ``origin_arcp``. ARCP puts the time of an event into its payload
    (``ts``, ``completed_at``); it becomes the event's timestamp when the envelope has none.

    Raises:
        MalformedLine: a field has the wrong type, or the envelope is countable and has no session or no id.
    """
    try:
        envelope = _envelope(frame)
    except InvalidEvent as error:
        raise MalformedLine(str(error)) from error
    if not is_countable(envelope.type):
        return NotStored.CONTROL
    if envelope.session_id is None:
        message = f"{envelope.type!r} is countable, but the envelope has no session_id"
        raise MalformedLine(message)
    if envelope.id is None:
        message = f"{envelope.type!r} is countable, but the envelope has no id and no event_seq to make one of"
        raise MalformedLine(message)
    return ForeignEvent(envelope.session_id, envelope, envelope.event_seq)


def _envelope(frame: Mapping[str, Any]) -> Envelope:
    event_seq, arcp = frame.get("event_seq"), frame.get("arcp")
    event_id, timestamp = frame.get("id"), frame.get("timestamp")
    extensions = {name: value for name, value in frame.items() if name not in _ENVELOPE_FIELDS}
    if event_seq is not None:
        extensions.setdefault(ORIGIN_SEQ, event_seq)
        if event_id is None:
            event_id = f"event_seq-{event_seq}"
    if arcp not in (None, ARCP_VERSION):
        extensions.setdefault(_ORIGIN_ARCP, arcp)
    return Envelope(
        type=cast("str", frame.get("type")),
        payload=frame.get("payload"),
        id=event_id,
        session_id=frame.get("session_id"),
        job_id=frame.get("job_id"),
        trace_id=frame.get("trace_id"),
        event_seq=event_seq,
        timestamp=_payload_time(frame.get("payload")) if timestamp is None else timestamp,
        source=frame.get("source"),
        stream_seq=frame.get("stream_seq"),
        arcp=ARCP_VERSION if arcp is None else arcp,
        extensions=extensions,
    )


def _payload_time(payload: object) -> str | None:
    if not isinstance(payload, dict):
        return None
    members = cast("dict[str, object]", payload)
    for name in _PAYLOAD_TIMES:
        text = members.get(name)
        if isinstance(text, str):
            try:
                return timestamp_text(text)
            except InvalidEvent:
                continue  # a payload is the program's own; what it calls ts need not be a time
    return None


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
