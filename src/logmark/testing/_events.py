"""Events as the actors and the stores get them, made with one call."""

from __future__ import annotations

import itertools
import secrets
from typing import Any

from ..protocol import EncodedEvent, EnvelopeFields, Limits, encode_event
from ..storage import AppendRequest

__all__ = ["encoded_event", "request_of"]

_numbers = itertools.count(1)
_PREFIX = secrets.token_hex(4)  # the ids of two processes that write to one store must differ too
_LIMITS = Limits()


def encoded_event(
    type: str = "message.created",
    payload: Any = None,
    *,
    id: str | None = None,
    job_id: str | None = None,
    source: Any = None,
    stream_seq: int | None = None,
    timestamp: str = "2026-01-01T00:00:00.000000Z",
) -> EncodedEvent:
    """Return an event as ``Session.append`` encodes it; without ``id`` it gets one that no other call returns.

    Raises:
        InvalidEvent: a field or the payload cannot be stored as it is.
    """
    fields = EnvelopeFields(
        type,
        f"event-{_PREFIX}-{next(_numbers)}" if id is None else id,
        job_id=job_id,
        timestamp=timestamp,
        source=source,
        stream_seq=stream_seq,
    )
    return encode_event(fields, payload, _LIMITS, id_is_fresh=id is None)


def request_of(*events: EncodedEvent, expected_seq: int | None = None) -> AppendRequest:
    """Return the request of one append: these events together, or one default event when there are none."""
    return AppendRequest(events or (encoded_event(),), expected_seq)
