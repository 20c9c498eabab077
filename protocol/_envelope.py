"""Envelopes: what travels, typed (``Envelope``) or with its payload left as bytes (``RawEnvelope``).

The fields are those of the ARCP draft, section 5 (``arcp, id, type, session_id, trace_id, job_id, event_seq,
payload``), and those of an event log: ``timestamp``, ``source`` (who produced it) and ``stream_seq`` (the producer's
own number). Top-level fields that neither names are kept in ``extensions`` and written back where they came from.

Both classes are frozen, and cheap to make from stored bytes: of a verified row they keep the line and nothing else, and
what is asked for is looked up, or decoded, when it is first asked for.
"""

from __future__ import annotations

import copy
import datetime as dt
import json
import re
from collections.abc import Generator, Iterable, Mapping
from itertools import count, repeat
from typing import Any, NamedTuple, Self, cast

import orjson

from ._codec import decode_json, encode_json
from ._errors import DecodeError, InvalidEvent
from ._limits import SEQ_MAX, Limits
from ._line import cut_line, head_in, payload_in, payloads_in, type_in

__all__ = ["ARCP_VERSION", "Envelope", "EnvelopeFields", "RawEnvelope", "timestamp_text"]

ARCP_VERSION = "1.1"

_WIRE_FIELDS = frozenset(
    {
        "arcp",
        "id",
        "type",
        "session_id",
        "job_id",
        "trace_id",
        "event_seq",
        "payload",
        "timestamp",
        "source",
        "stream_seq",
    }
)
_DEFAULT_LIMITS = Limits()
_NO_FIELDS: Mapping[str, Any] = {}
_AHEAD_ROWS = 64
# Python's own parser also takes other ISO 8601 forms, and any character between date and time.
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?", re.ASCII)


def timestamp_text(value: dt.datetime | str) -> str:
    """Return an RFC 3339 timestamp; text is checked and kept as it is, up to nanoseconds.

    Raises:
        InvalidEvent: not RFC 3339, without a zone, or without a UTC time in the years 1 to 9999.
    """
    try:
        if isinstance(value, str) and _RFC3339.fullmatch(value) is None:
            raise ValueError("it is written like 2026-01-31T23:59:59.123Z")
        moment = dt.datetime.fromisoformat(value) if isinstance(value, str) else value
        if moment.utcoffset() is None:
            raise ValueError("it has no zone; use UTC, such as datetime.now(datetime.UTC)")
        text = moment.astimezone(dt.UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
    except (ValueError, OverflowError) as error:
        message = f"timestamp {value!r} is not RFC 3339: {error}"
        raise InvalidEvent(message) from error
    return value if isinstance(value, str) else text


class EnvelopeFields(NamedTuple):
    """The fields of an envelope other than its session, its number and its payload, as they are stored."""

    type: str
    id: str | None = None
    job_id: str | None = None
    trace_id: str | None = None
    timestamp: str | None = None
    source: Any = None
    stream_seq: int | None = None
    arcp: str = ARCP_VERSION
    extensions: Mapping[str, Any] = _NO_FIELDS


def _decoded_ahead(lines: list[bytes]) -> list[Any]:
    """Return the payloads of all lines but the last, which stays undecoded to show whether anybody looks."""
    try:
        payloads: list[Any] = orjson.loads(payloads_in(lines[:-1]))
    except orjson.JSONDecodeError:  # whoever looks at the one that cannot be decoded is to get the error
        payloads = [_NotDecoded] * (len(lines) - 1)
    payloads.append(_NotDecoded)
    return payloads


def _fields_of_head(head: bytes) -> EnvelopeFields:
    """Decode the stored members of an event, everything up to its payload, with its numbers or without."""
    members = orjson.loads(b"{%b}" % head)
    get = members.get
    return EnvelopeFields(
        members["type"],
        get("id"),
        get("job"),
        get("trace"),
        get("ts"),
        get("source"),
        get("stream_seq"),
        get("arcp", ARCP_VERSION),
        get("ext", _NO_FIELDS),
    )


class _NotDecoded:
    """Stands for a payload that nobody has asked for yet: the class itself, which copies and pickles leave as it is."""


class _Base:
    """What both envelopes share: the fields beside the payload.

    ``_stored`` is what the envelope was made from: the line of a verified row, or the members between its numbers and
    its payload (None for an envelope that was never stored) and the payload's text; None for one made of values.
    ``_fields`` are the decoded members; text, while only the type was asked for; None while nothing was.
    """

    __slots__ = ("_event_seq", "_fields", "_payload", "_session_id", "_stored")

    _session_id: str | None
    _event_seq: int | None
    _stored: bytes | tuple[bytes | None, bytes] | None
    _fields: EnvelopeFields | str | None
    _payload: Any

    @classmethod
    def from_stored(cls, session_id: str, event_seq: int | None, head: bytes, payload_json: bytes) -> Self:
        """Make an envelope of stored bytes without looking into them; for engines and actors."""
        self = cls.__new__(cls)
        self._session_id = session_id
        self._event_seq = event_seq
        self._stored = (head, payload_json)
        self._fields = None
        self._payload = _NotDecoded
        return self

    @classmethod
    def from_events(
        cls, session_id: str, first_seq: int, events: Iterable[tuple[str, str, str | None, bytes, bytes, bool]]
    ) -> list[Self]:
        """Make the envelopes of ``EncodedEvent``s with consecutive numbers; as ``from_stored`` for each of them."""
        new = cls.__new__
        made: list[Self] = []
        for event_seq, (_, _, _, head, payload_json, _) in enumerate(events, first_seq):
            self = new(cls)
            self._session_id = session_id
            self._event_seq = event_seq
            self._stored = (head, payload_json)
            self._fields = None
            self._payload = _NotDecoded
            made.append(self)
        return made

    @classmethod
    def from_runs(cls, session_id: str, runs: Iterable[tuple[int, list[bytes]]]) -> Generator[Self, None, None]:
        """Make the envelopes of verified rows; for engines.

        Fields are decoded when they are looked at. So are payloads, until a reader turns out to look at them: from then
        on those of some rows are decoded together, as long as the reader looks at the last of each such lot.

        Args:
            session_id: the session.
            runs: lines of events with consecutive numbers, newlines removed, each run with the number of its first.
        """
        new = cls.__new__
        wanted = False
        for first_seq, lines in runs:
            for start in range(0, len(lines), _AHEAD_ROWS):
                few = lines[start : start + _AHEAD_ROWS]
                payloads = _decoded_ahead(few) if wanted else repeat(_NotDecoded)
                # Written out: a call for each row would cost a third of all that reading it costs.
                for event_seq, line, payload in zip(count(first_seq + start), few, payloads):
                    self = new(cls)
                    self._session_id = session_id
                    self._event_seq = event_seq
                    self._stored = line
                    self._fields = None
                    self._payload = payload
                    yield self
                wanted = self._payload is not _NotDecoded  # pyright: ignore[reportPossiblyUnboundVariable] - few has some

    def _cut(self) -> tuple[bytes | None, bytes]:
        """Return the stored members and the payload's text."""
        stored = self._stored
        if isinstance(stored, bytes):
            stored = self._stored = cut_line(stored)
        return cast("tuple[bytes | None, bytes]", stored)

    @property
    def fields(self) -> EnvelopeFields:
        """The fields beside session, number and payload."""
        fields = self._fields
        if fields is None or isinstance(fields, str):
            stored = self._stored
            head = head_in(stored) if isinstance(stored, bytes) else cast("bytes", self._cut()[0])
            fields = self._fields = _fields_of_head(head)
        return fields

    @property
    def session_id(self) -> str | None:
        """The session, or None when the envelope has not been given to one."""
        return self._session_id

    @property
    def event_seq(self) -> int | None:
        """The number in the session, 1 or more; None when none is assigned (control envelopes never have one)."""
        return self._event_seq

    @property
    def stored_bytes(self) -> int:
        """Bytes of the stored event that the envelope keeps; 0 for one made of values."""
        stored = self._stored
        if stored is None or isinstance(stored, bytes):
            return len(stored or b"")
        return len(stored[0] or b"") + len(stored[1])

    @property
    def type(self) -> str:
        """The event type, such as ``job.event`` or ``message.created``."""
        fields = self._fields
        if fields is None:
            stored = self._stored
            fields = self._fields = type_in(stored if isinstance(stored, bytes) else cast("bytes", self._cut()[0]))
        return fields if isinstance(fields, str) else self.fields.type

    @property
    def id(self) -> str | None:
        """The event id; a retry with the same id is the same event."""
        return self.fields.id

    @property
    def job_id(self) -> str | None:
        """The job that the event belongs to."""
        return self.fields.job_id

    @property
    def trace_id(self) -> str | None:
        """The trace that the event belongs to."""
        return self.fields.trace_id

    @property
    def source(self) -> Any:
        """Who produced the event: any JSON value."""
        return self.fields.source

    @property
    def stream_seq(self) -> int | None:
        """The producer's own number."""
        return self.fields.stream_seq

    @property
    def arcp(self) -> str:
        """The protocol version of the envelope."""
        return self.fields.arcp

    @property
    def extensions(self) -> Mapping[str, Any]:
        """Top-level fields that no one here knows, kept for those who do; a copy."""
        return dict(self.fields.extensions)

    @property
    def timestamp(self) -> dt.datetime | None:
        """When the event happened, in UTC, to the microsecond; informational: order is by ``event_seq`` alone."""
        text = self.fields.timestamp
        return None if text is None else dt.datetime.fromisoformat(text).astimezone(dt.UTC)

    @property
    def timestamp_text(self) -> str | None:
        """The timestamp as it was written, which may be finer than a microsecond."""
        return self.fields.timestamp

    def _wire_members(self) -> dict[str, Any]:
        fields = self.fields
        members: dict[str, Any] = {
            "arcp": fields.arcp,
            "id": fields.id,
            "type": fields.type,
            "session_id": self._session_id,
            "job_id": fields.job_id,
            "trace_id": fields.trace_id,
            "event_seq": self._event_seq,
            "timestamp": fields.timestamp,
            "source": fields.source,
            "stream_seq": fields.stream_seq,
        }
        members = {name: value for name, value in members.items() if value is not None}
        members.update(fields.extensions)
        return members

    def _identity(self) -> tuple[Any, ...]:
        return self._session_id, self._event_seq, self.fields

    def __hash__(self) -> int:
        return hash((self._session_id, self._event_seq, self.fields.id, self.fields.type))


def _optional_text(name: str, value: object) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return value
    message = f"{name} must be non-empty text or None, not {value!r}"
    raise InvalidEvent(message)


def _checked_fields(
    type: object,
    id: object = None,
    job_id: object = None,
    trace_id: object = None,
    timestamp: object = None,
    source: object = None,
    stream_seq: object = None,
    arcp: object = ARCP_VERSION,
    extensions: object = None,
) -> EnvelopeFields:
    if not isinstance(type, str) or not type:
        message = f"type must be non-empty text, not {type!r}"
        raise InvalidEvent(message)
    if not isinstance(arcp, str) or not arcp:
        message = f"arcp must be non-empty text, not {arcp!r}"
        raise InvalidEvent(message)
    if timestamp is not None and not isinstance(timestamp, str | dt.datetime):
        message = f"timestamp must be a datetime with a zone or RFC 3339 text, not {timestamp!r}"
        raise InvalidEvent(message)
    if stream_seq is not None and (
        isinstance(stream_seq, bool) or not isinstance(stream_seq, int) or not 0 <= stream_seq <= SEQ_MAX
    ):
        message = f"stream_seq must be an integer of 0 to {SEQ_MAX} or None, not {stream_seq!r}"
        raise InvalidEvent(message)
    if extensions is None:
        extensions = _NO_FIELDS
    if not isinstance(extensions, Mapping) or not _WIRE_FIELDS.isdisjoint(cast("Mapping[str, Any]", extensions)):
        message = f"extensions must be a mapping without an envelope's own fields, not {extensions!r}"
        raise InvalidEvent(message)
    return EnvelopeFields(
        type,
        _optional_text("id", id),
        _optional_text("job_id", job_id),
        _optional_text("trace_id", trace_id),
        None if timestamp is None else timestamp_text(timestamp),
        source,
        stream_seq,
        arcp,
        dict(cast("Mapping[str, Any]", extensions)) if extensions else _NO_FIELDS,
    )


def _checked_seq(event_seq: object) -> int | None:
    if event_seq is None:
        return None
    if isinstance(event_seq, bool) or not isinstance(event_seq, int) or not 1 <= event_seq <= SEQ_MAX:
        message = f"event_seq must be an integer of 1 to {SEQ_MAX} or None, not {event_seq!r}"
        raise InvalidEvent(message)
    return event_seq


class Envelope(_Base):
    """A typed envelope: what is given to an append, and what a reader gets.

    Every argument is by keyword. ``event_seq`` and ``session_id`` of an envelope that is appended are ignored: the
    store assigns the one and the session names the other. Reading ``payload`` of a stored event decodes it once; the
    value belongs to the envelope, and subscribers get an envelope each.

    Raises:
        InvalidEvent: a field has the wrong type or range.
    """

    __slots__ = ()

    def __init__(
        self,
        *,
        type: str,
        payload: Any = None,
        id: str | None = None,
        session_id: str | None = None,
        job_id: str | None = None,
        trace_id: str | None = None,
        event_seq: int | None = None,
        timestamp: dt.datetime | str | None = None,
        source: Any = None,
        stream_seq: int | None = None,
        arcp: str = ARCP_VERSION,
        extensions: Mapping[str, Any] | None = None,
    ) -> None:
        self._fields = _checked_fields(type, id, job_id, trace_id, timestamp, source, stream_seq, arcp, extensions)
        self._session_id = _optional_text("session_id", session_id)
        self._event_seq = _checked_seq(event_seq)
        self._payload = payload
        self._stored = None

    @property
    def payload(self) -> Any:
        """The payload: any JSON value."""
        payload = self._payload
        if payload is _NotDecoded:
            stored = self._stored
            text = payload_in(stored) if isinstance(stored, bytes) else self._cut()[1]
            payload = self._payload = orjson.loads(text)
        return payload

    @classmethod
    def like(cls, other: Envelope) -> Self:
        """Return an envelope of this very class with all that another holds; for classes that add something."""
        self = cls.__new__(cls)
        self._session_id, self._event_seq = other._session_id, other._event_seq
        self._stored, self._fields, self._payload = other._stored, other._fields, other._payload
        return self

    @classmethod
    def from_wire(cls, data: bytes, *, limits: Limits = _DEFAULT_LIMITS) -> Self:
        """Decode one JSON frame.

        Raises:
            DecodeError: not exact JSON, not an object, or a field of the wrong type.
        """
        session_id, event_seq, fields, payload = _split_frame(data, limits)
        self = cls.__new__(cls)
        self._session_id, self._event_seq, self._fields, self._payload = session_id, event_seq, fields, payload
        self._stored = None
        return self

    def to_wire(self, *, limits: Limits = _DEFAULT_LIMITS) -> bytes:
        """Encode as one JSON frame; fields that are None are absent.

        Raises:
            InvalidEvent: the payload, source or an extension has no exact JSON form within the limits.
        """
        members = self._wire_members()
        members["payload"] = self.payload
        return encode_json(members, bytes_max=limits.event_bytes_max, depth_max=limits.depth_max + 1)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Envelope):
            return NotImplemented
        return self._identity() == other._identity() and self.payload == other.payload

    __hash__ = _Base.__hash__

    def __repr__(self) -> str:
        return (
            f"Envelope(session_id={self.session_id!r}, event_seq={self.event_seq!r}, type={self.type!r},"
            f" id={self.id!r}, job_id={self.job_id!r}, payload={self.payload!r})"
        )


class RawEnvelope(_Base):
    """An envelope whose payload stays as it was written: for forwarding, and for replay at full speed."""

    __slots__ = ()

    @staticmethod
    def measure(envelopes: Iterable[RawEnvelope]) -> tuple[list[int | None], int]:
        """Return the numbers of envelopes, and the bytes of their payloads; for actors."""
        numbers: list[int | None] = []
        size = 0
        for envelope in envelopes:
            numbers.append(envelope._event_seq)  # noqa: SLF001 - one class
            stored = envelope._stored  # noqa: SLF001
            size += len(stored[1] if isinstance(stored, tuple) else envelope.payload_json)
        return numbers, size

    @property
    def payload_json(self) -> bytes:
        """The payload's JSON text, byte for byte as it was stored or received."""
        stored = self._stored
        return stored[1] if isinstance(stored, tuple) else self._cut()[1]

    @property
    def head_json(self) -> bytes | None:
        """The stored members beside numbers and payload, or None for an envelope that was never stored."""
        return self._cut()[0]

    def decode(self) -> Envelope:
        """Return the typed envelope; each call returns one of its own, so no two readers share a payload."""
        envelope = Envelope.__new__(Envelope)
        envelope._session_id = self._session_id  # noqa: SLF001 - one family of classes, one module
        envelope._event_seq = self._event_seq  # noqa: SLF001
        stored = envelope._stored = self._stored  # noqa: SLF001
        fields = self._fields
        if isinstance(fields, EnvelopeFields) and (fields.extensions or isinstance(fields.source, dict | list)):
            # Stored ones are decoded again when they are looked at.
            fields = copy.deepcopy(fields) if isinstance(stored, tuple) and stored[0] is None else None
        envelope._fields = fields
        envelope._payload = _NotDecoded  # noqa: SLF001
        return envelope

    @classmethod
    def from_wire(cls, data: bytes, *, limits: Limits = _DEFAULT_LIMITS) -> Self:
        """Read one JSON frame, keeping the payload's bytes.

        Raises:
            DecodeError: not exact JSON, not an object, or a field of the wrong type.
        """
        session_id, event_seq, fields, _ = _split_frame(data, limits)
        self = cls.__new__(cls)
        self._session_id, self._event_seq, self._fields = session_id, event_seq, fields
        self._stored, self._payload = (None, _payload_span(data)), _NotDecoded
        return self

    def to_wire(self) -> bytes:
        """Encode as one JSON frame around the untouched payload."""
        head = orjson.dumps(self._wire_members())
        return head[:-1] + b',"payload":' + self.payload_json + b"}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RawEnvelope):
            return NotImplemented
        return self._identity() == other._identity() and self.payload_json == other.payload_json

    __hash__ = _Base.__hash__

    def __repr__(self) -> str:
        return (
            f"RawEnvelope(session_id={self.session_id!r}, event_seq={self.event_seq!r}, type={self.type!r},"
            f" id={self.id!r}, job_id={self.job_id!r}, payload_json={len(self.payload_json)} bytes)"
        )


def _split_frame(data: bytes, limits: Limits) -> tuple[str | None, int | None, EnvelopeFields, Any]:
    frame = decode_json(data, bytes_max=limits.event_bytes_max, depth_max=limits.depth_max + 1)
    if not isinstance(frame, dict):
        message = f"an envelope is a JSON object, not {type(frame).__name__}"
        raise DecodeError(message)
    members = cast("dict[str, Any]", frame)
    extensions = {name: value for name, value in members.items() if name not in _WIRE_FIELDS}
    arcp = members.get("arcp")
    try:
        fields = _checked_fields(
            members.get("type"),
            members.get("id"),
            members.get("job_id"),
            members.get("trace_id"),
            members.get("timestamp"),
            members.get("source"),
            members.get("stream_seq"),
            ARCP_VERSION if arcp is None else arcp,
            extensions,
        )
        session_id = _optional_text("session_id", members.get("session_id"))
        event_seq = _checked_seq(members.get("event_seq"))
    except InvalidEvent as error:
        message = f"not a valid envelope: {error}"
        raise DecodeError(message) from error
    return session_id, event_seq, fields, members.get("payload")


_SCANNER = json.JSONDecoder()


def _payload_span(data: bytes) -> bytes:
    """Return the bytes of the top-level ``payload`` of a frame that is known to be a valid object."""
    text = data.decode()
    at = text.index("{") + 1
    while True:
        at = _skip(text, at, " \t\r\n,")
        if text[at] == "}":
            return b"null"
        key, at = _SCANNER.raw_decode(text, at)
        at = _skip(text, at, " \t\r\n:")
        start = at
        _, at = _SCANNER.raw_decode(text, at)
        if key == "payload":
            return text[start:at].encode()


def _skip(text: str, at: int, characters: str) -> int:
    while text[at] in characters:
        at += 1
    return at
