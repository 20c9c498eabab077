"""The events that everybody stores: 296 bytes of JSON each."""

from __future__ import annotations

import functools

import orjson

from .participants import Payload

__all__ = ["EVENT_BYTES", "RING", "payload", "ring"]

EVENT_BYTES = 296
RING = 64
_TEXT = "The build of the third target has finished; two warnings remain in the parser and none in the tests. " * 2


def payload(number: int) -> Payload:
    """Return one event: nested, with text, numbers and a flag, exactly ``EVENT_BYTES`` bytes long when encoded."""
    event: Payload = {
        "kind": "tool_result",
        "step": 10_000 + number,
        "ok": True,
        "cost_usd": 0.0125,
        "tool": {"name": "build", "attempt": 1},
        "text": "",
    }
    event["text"] = _TEXT[: EVENT_BYTES - len(orjson.dumps(event))]
    return event


@functools.cache
def ring() -> tuple[Payload, ...]:
    """Return ``RING`` different events, made once and used in turn, so that making them costs nobody's time."""
    return tuple(payload(number) for number in range(RING))
