"""The row: one event as one line of JSON. ``docs/format.md`` describes it for readers in other languages.

    {"v":1,"seq":12,"batch":[11,13],"size":13,"ts":"…","id":"…","type":"…",…,"payload":{"text":"hi"},"crc":"0f3c…"}

``seq`` stands near the front, so that a reader can bisect a file by byte offset. ``batch`` names the first and the
last number of the commit that wrote it: a commit counts only when all of it is there. ``size`` is the length of the
payload's text, so that it can be cut out without being decoded. ``crc`` is the CRC-32 of the line before ``,"crc"``,
started from the CRC-32 of the session id, so that no row passes for another session's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import orjson

from ._checksum import crc32
from ._codec import encode_json
from ._envelope import ARCP_VERSION, EnvelopeFields, RawEnvelope
from ._errors import EventTooLarge, InvalidEvent, NotEncodable
from ._limits import Limits
from ._line import ROW_PREFIX, ROW_TAIL_BYTES, SCHEMA_VERSION, cut_line, row_seq

__all__ = [
    "ROW_PREFIX",
    "ROW_TAIL_BYTES",
    "SCHEMA_VERSION",
    "EncodedEvent",
    "decode_row",
    "encode_event",
    "encode_row",
    "encode_rows",
    "row_seed",
    "row_seq",
    "split_row",
]


class EncodedEvent(NamedTuple):
    """An event as bytes, made in the caller's thread: a snapshot that only lacks its number.

    Attributes:
        id: the event id, never empty.
        type: the event type.
        job_id: the job, or None.
        head: the stored members between the numbers and the payload, without braces.
        payload_json: the payload's JSON text.
        id_is_fresh: the id was made for this event, so that no earlier event can have it and no store need look.
    """

    id: str
    type: str
    job_id: str | None
    head: bytes
    payload_json: bytes
    id_is_fresh: bool = False

    @property
    def size_bytes(self) -> int:
        """Bytes of the event, the row's own numbers and checksum not counted."""
        return len(self.head) + len(self.payload_json)

    def stamped(self, session_id: str, event_seq: int | None) -> RawEnvelope:
        """Return the envelope that subscribers get: the stored bytes under their number."""
        return RawEnvelope.from_stored(session_id, event_seq, self.head, self.payload_json)


def _text_fits(name: str, value: str, limits: Limits) -> None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        message = f"{name} {value!r} is not valid Unicode: {error.reason}"
        raise NotEncodable(message) from error
    if size > limits.name_bytes_max:
        message = f"{name} has {size} bytes, the limit is {limits.name_bytes_max}"
        raise InvalidEvent(message)


def encode_event(fields: EnvelopeFields, payload: Any, limits: Limits, *, id_is_fresh: bool = False) -> EncodedEvent:
    """Encode an event, or raise before anything has happened; ``fields.id`` and ``fields.timestamp`` must be set.

    Raises:
        InvalidEvent: a field or the payload cannot be stored as it is.
    """
    event_id = fields.id
    if event_id is None or fields.timestamp is None:
        message = "an event needs an id and a timestamp before it is encoded"
        raise InvalidEvent(message)
    _text_fits("type", fields.type, limits)
    _text_fits("id", event_id, limits)
    _text_fits("arcp", fields.arcp, limits)
    members: dict[str, Any] = {"ts": fields.timestamp, "id": event_id, "type": fields.type}
    if fields.job_id is not None:
        _text_fits("job_id", fields.job_id, limits)
        members["job"] = fields.job_id
    if fields.trace_id is not None:
        _text_fits("trace_id", fields.trace_id, limits)
        members["trace"] = fields.trace_id
    if fields.stream_seq is not None:
        members["stream_seq"] = fields.stream_seq
    if fields.arcp != ARCP_VERSION:
        members["arcp"] = fields.arcp
    if fields.source is not None:
        members["source"] = fields.source
    if fields.extensions:
        members["ext"] = fields.extensions
    bytes_max = limits.event_bytes_max
    payload_json = encode_json(payload, bytes_max=bytes_max, depth_max=limits.depth_max)
    if fields.source is None and not fields.extensions:
        head = orjson.dumps(members)[1:-1]  # text and integers only: nothing that could be lossy
    else:
        head = encode_json(members, bytes_max=bytes_max, depth_max=limits.depth_max)[1:-1]
    if len(head) + len(payload_json) > bytes_max:
        raise EventTooLarge(size_bytes=len(head) + len(payload_json), limit_bytes=bytes_max)
    return EncodedEvent(event_id, fields.type, fields.job_id, head, payload_json, id_is_fresh)


def row_seed(session_id: str) -> int:
    """Return what the checksum of every row of a session starts from."""
    return crc32(session_id.encode())


def encode_row(event: EncodedEvent, event_seq: int, batch: bytes, seed: int) -> bytes:
    """Return the line of an event, its newline included; ``batch`` is the commit's ``[first,last]`` as text."""
    payload = event.payload_json
    text = b'%b%d,"batch":%b,"size":%d,%b,"payload":%b' % (
        ROW_PREFIX,
        event_seq,
        batch,
        len(payload),
        event.head,
        payload,
    )
    return b'%b,"crc":"%08x"}\n' % (text, crc32(text, seed))


def encode_rows(events: Iterable[EncodedEvent], first_seq: int, last_seq: int, seed: int) -> bytes:
    """Return the lines of one commit: events numbered from first to last."""
    # The same as encode_row for each, with what they share filled in once.
    row = b'%b%%d,"batch":[%d,%d],"size":%%d,%%b,"payload":%%b' % (ROW_PREFIX, first_seq, last_seq)
    lines: list[bytes] = []
    for seq, (_, _, _, head, payload, _) in enumerate(events, first_seq):
        text = row % (seq, len(payload), head, payload)
        lines += (text, b',"crc":"%08x"}\n' % crc32(text, seed))
    return b"".join(lines)


def split_row(line: bytes, session_id: str, event_seq: int) -> RawEnvelope:
    """Return the envelope of a verified line, newline removed, without decoding anything."""
    head, payload_json = cut_line(line)
    return RawEnvelope.from_stored(session_id, event_seq, head, payload_json)


def decode_row(line: bytes) -> dict[str, Any] | None:
    """Return the members of a line, or None when it is not a JSON object; for diagnosis, not for speed."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return cast("dict[str, Any]", row) if isinstance(row, dict) else None
