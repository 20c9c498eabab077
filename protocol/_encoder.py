"""From what a caller gives to an encoded event, by the short way where nothing needs a second look.

Most events are a type, a payload and perhaps a job. Types and jobs repeat, so what was checked and encoded of them once
is kept; whatever has more to it goes through ``Envelope`` and ``encode_event``, with the same bytes as the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import orjson

from ._codec import JSON_OPTIONS, encode_json, encode_text
from ._envelope import Envelope
from ._errors import EventTooLarge, InvalidEvent, NotCountable
from ._limits import Limits
from ._named_tuples import new_tuple
from ._row import EncodedEvent, encode_event
from ._types import EventTypes

__all__ = ["EventEncoder"]

_NAMES_MAX = 4096  # jobs come and go
_PAIR = 2  # a type and a payload
_dumps = orjson.dumps


class EventEncoder:
    """Encodes the events of one runtime. Safe from any thread: the two tables only ever gain or lose whole entries.

    Args:
        types: says which types are countable.
        limits: bounds names, payloads and whole events.
    """

    def __init__(self, types: EventTypes, limits: Limits) -> None:
        self._is_countable = types.is_countable
        self._limits = limits
        self._bytes_max = limits.event_bytes_max
        self._depth_max = limits.depth_max
        self._shallow_bytes = 2 * limits.depth_max  # a container takes two
        self._types: dict[str, bytes] = {}
        self._jobs: dict[str, bytes] = {}

    def encode(self, type: str, payload: Any, job_id: str | None, event_id: str, timestamp: str) -> EncodedEvent:
        """Encode an event that was given nothing but these, under a new id.

        Raises:
            InvalidEvent: it cannot be stored as it is.
        """
        try:
            event = self._encode_known(type, payload, job_id, event_id, _head_until_id(timestamp))
        except (KeyError, TypeError):  # a name not seen before, or not hashable; or a payload without a JSON form
            return self._encode_first(type, payload, job_id, event_id, timestamp)
        return self._verified(event, payload) if _is_doubtful(event.payload_json) else event

    def _encode_known(
        self, type: str, payload: Any, job_id: str | None, event_id: str, head_until_id: bytes
    ) -> EncodedEvent:
        """Encode an event whose names were checked before; whether its payload is doubtful, the caller sees to."""
        head = head_until_id + event_id.encode() + self._types[type]
        if job_id is not None:
            head += self._jobs[job_id]
        payload_json = _dumps(payload, None, JSON_OPTIONS)
        size = len(payload_json)
        # What is short cannot be deep, nor what has few containers. replace() goes from one brace to the next, where
        # count() looks at every byte.
        if (
            size > self._shallow_bytes
            and size - len(payload_json.replace(b"{", b"").replace(b"[", b"")) > self._depth_max
        ):
            payload_json = self._encode_exactly(payload)
        if len(head) + size > self._bytes_max:
            raise EventTooLarge(size_bytes=len(head) + size, limit_bytes=self._bytes_max)
        return new_tuple(EncodedEvent, (event_id, type, job_id, head, payload_json, True))

    def _verified(self, event: EncodedEvent, payload: Any) -> EncodedEvent:
        return event._replace(payload_json=self._encode_exactly(payload))

    def _encode_exactly(self, payload: Any) -> bytes:
        return encode_json(payload, bytes_max=self._bytes_max, depth_max=self._depth_max)

    def _encode_first(self, type: str, payload: Any, job_id: str | None, event_id: str, timestamp: str) -> EncodedEvent:
        event = self.encode_envelope(Envelope(type=type, payload=payload, job_id=job_id), event_id, timestamp)
        for names in (self._types, self._jobs):
            if len(names) >= _NAMES_MAX:
                names.clear()
        self._types[type] = b'","type":' + encode_text(type)
        if job_id is not None:
            self._jobs[job_id] = b',"job":' + encode_text(job_id)
        return event

    def encode_envelope(self, envelope: Envelope, event_id: str, timestamp: str) -> EncodedEvent:
        """Encode an event given as an envelope, whose own id and timestamp count before those given here.

        Raises:
            NotCountable: it is of a control type.
            InvalidEvent: it cannot be stored as it is.
        """
        fields = envelope.fields
        if not self._is_countable(fields.type):
            raise NotCountable(type=fields.type)
        return self.encode_any(envelope, event_id, timestamp)

    def encode_any(self, envelope: Envelope, event_id: str, timestamp: str) -> EncodedEvent:
        """Encode an envelope of any type, a control envelope for instance; otherwise as ``encode_envelope``."""
        fields = envelope.fields
        is_fresh = fields.id is None
        if is_fresh or fields.timestamp is None:
            fields = fields._replace(id=fields.id or event_id, timestamp=fields.timestamp or timestamp)
        return encode_event(fields, envelope.payload, self._limits, id_is_fresh=is_fresh)

    def encode_many(self, events: Sequence[Any], ids: Sequence[str], timestamp: str) -> tuple[EncodedEvent, ...]:
        """Encode ``(type, payload)`` pairs and envelopes, each under the id at its place.

        Raises:
            NotCountable, InvalidEvent: one of them cannot be stored, or is neither.
        """
        encode, until_id = self._encode_known, _head_until_id(timestamp)
        encoded: list[EncodedEvent] = []
        for event, event_id in zip(events, ids, strict=True):
            if event.__class__ is tuple and len(event) == _PAIR:
                try:
                    encoded.append(encode(event[0], event[1], None, event_id, until_id))
                except (KeyError, TypeError):  # as in ``encode``
                    encoded.append(self._encode_first(event[0], event[1], None, event_id, timestamp))
            else:
                encoded.append(self.encode_envelope(_as_envelope(event), event_id, timestamp))
        if _is_doubtful(b"".join([event.payload_json for event in encoded])):  # few are: all at once is cheaper
            for place, event in enumerate(events):
                if event.__class__ is tuple and _is_doubtful(encoded[place].payload_json):
                    encoded[place] = self._verified(encoded[place], event[1])
        return tuple(encoded)


def _head_until_id(timestamp: str) -> bytes:
    """Return the first bytes of a head, which the events of one call share."""
    return b'"ts":"%b","id":"' % timestamp.encode()


def _is_doubtful(payload_json: bytes) -> bool:
    """Say whether payloads may not be what was given, so that a second look is due; find() is the cheapest search."""
    return payload_json.find(b"null") >= 0 or payload_json.find(b"\n") >= 0


def _as_envelope(event: object) -> Envelope:
    if isinstance(event, Envelope):
        return event
    if isinstance(event, tuple | list):
        pair = cast("tuple[Any, ...]", event)
        if len(pair) == _PAIR:
            return Envelope(type=pair[0], payload=pair[1])
    message = f"an event is a (type, payload) pair or an Envelope, not {event!r}"
    raise InvalidEvent(message)
