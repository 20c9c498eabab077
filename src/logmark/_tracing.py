"""Appends and deliveries that are traced: the same work, with a span around it and its context in the event."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, Self, cast

from .actors import AppendSpan, Instruments
from .protocol import Envelope, RawEnvelope
from .storage import Appended

__all__ = ["Tracing", "tell_delivered"]

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_PAIR = 2


class Tracing:
    """One traced append: entered around it, and left with its answer, or with what it raised.

    Args:
        instruments: whom to tell.
        session_id: the session.
        types: the type of each event.
        trace_id: the trace of the events, if all have the same.
    """

    __slots__ = ("_instruments", "_numbers", "_reply", "span")

    def __init__(self, instruments: Instruments, session_id: str, types: Sequence[str], trace_id: str | None) -> None:
        self._instruments = instruments
        self._numbers: tuple[int, int] | None = None
        self._reply: Future[Any] | None = None
        self.span: AppendSpan | None = instruments.append_begun(session_id, types, trace_id)

    @classmethod
    def of_many(cls, instruments: Instruments, session_id: str, events: Sequence[Any]) -> Tracing:
        """Begin the trace of an append of several events, which are still as their caller gave them."""
        types = [str(event.type if isinstance(event, Envelope) else _first(event)) for event in events]
        traces = {event.trace_id if isinstance(event, Envelope) else None for event in events}
        return cls(instruments, session_id, types, traces.pop() if len(traces) == 1 else None)

    def trace_id(self, given: str | None) -> str | None:
        """Return the ``trace_id`` to store: the event's own, else that of the span."""
        return given if given is not None or self.span is None else self.span.trace_id

    def extensions(self, given: Any, trace_id: str | None) -> Mapping[str, Any] | None:
        """Return the extensions to store: those of the event, which count, and those of the span.

        An event that its producer has put into another trace gets none: two that contradict each other are worse.
        """
        span = self.span
        own = cast("Mapping[str, Any] | None", given)
        if span is None or not span.extensions or (trace_id is not None and trace_id != span.trace_id):
            return own
        if own is None:
            return span.extensions
        if not isinstance(given, Mapping):
            return own  # refused where the event is encoded
        return {**span.extensions, **own}

    def envelope(self, event: Any) -> Any:
        """Return an event of ``append_many`` with the context of the span; what is none is refused later."""
        if self.span is None:
            return event
        if isinstance(event, tuple | list):
            pair = cast("Sequence[Any]", event)
            if len(pair) != _PAIR:
                return pair
            event = Envelope(type=pair[0], payload=pair[1])
        if not isinstance(event, Envelope):
            return event
        fields = event.fields
        return Envelope(
            type=fields.type,
            payload=event.payload,
            id=fields.id,
            job_id=fields.job_id,
            trace_id=self.trace_id(fields.trace_id),
            timestamp=fields.timestamp,
            source=fields.source,
            stream_seq=fields.stream_seq,
            arcp=fields.arcp,
            extensions=self.extensions(fields.extensions, fields.trace_id),
        )

    def answered(self, answer: Appended) -> Appended:
        """Note the numbers."""
        self._numbers = (answer.first_seq, answer.last_seq)
        return answer

    def answered_by(self, future: Future[Any]) -> None:
        """End with a future instead, unless its append is refused at once."""
        if self.span is not None:
            self._reply = future

    def _end_with(self, future: Future[Any]) -> None:
        if future.cancelled():
            self._end(CancelledError())
            return
        error = future.exception()
        if error is None:
            numbers = future.result()
            self._end((numbers, numbers) if isinstance(numbers, int) else cast("tuple[int, int]", numbers))
        else:
            self._end(error)

    def _end(self, answer: tuple[int, int] | BaseException) -> None:
        if self.span is not None:
            self._instruments.append_ended(self.span, answer)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the span, at once or with the future."""
        if error is not None:
            self._end(error)
        elif self._reply is not None:
            self._reply.add_done_callback(self._end_with)
        elif self._numbers is not None:
            self._end(self._numbers)


def _first(event: Any) -> Any:
    """Return the type in a pair; what is no pair is refused where it is encoded."""
    return cast("Sequence[Any]", event)[0] if isinstance(event, tuple | list) and event else ""


def tell_delivered(instruments: Instruments, event: RawEnvelope, now_ns: int) -> None:
    """Tell of an event that a reader is about to get, if it has a trace context."""
    if "traceparent" not in event.fields.extensions:
        return
    at = event.timestamp
    instruments.event_delivered(event, None if at is None else now_ns / 1e9 - (at - _EPOCH).total_seconds())
