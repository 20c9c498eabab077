"""Durable events a second, by the way they are handed over."""

from __future__ import annotations

from ..harness import Shape
from ..report import Row
from ._base import Context

__all__ = ["append", "batches", "pipelined"]

APPENDS = (
    Shape(callers=1),
    Shape(callers=16),
    Shape(callers=64),
    Shape(callers=16, sessions=16),
)
BATCHES = (
    Shape(callers=1, batch=100),
    Shape(callers=16, batch=100),
    Shape(callers=16, sessions=16, batch=100),
)
PIPELINED = (Shape(callers=16, window=256), Shape(callers=16, sessions=16, window=256))


def append(context: Context) -> list[Row]:
    """Blocking callers: each waits for its event to be on the disk before it appends the next."""
    with context.field() as field:
        return [row for shape in APPENDS for row in field.bout("append", shape)]


def batches(context: Context) -> list[Row]:
    """Blocking callers with a hundred events in each call."""
    with context.field(lambda peer: peer.has_batches) as field:
        return [row for shape in BATCHES for row in field.bout("batches", shape)]


def pipelined(context: Context) -> list[Row]:
    """Callers that go on while up to 256 of their events are unanswered; the limit waits for each, as it must."""
    with context.field(lambda peer: peer.has_submit) as field:
        return [
            row
            for shape in PIPELINED
            for row in field.bout("pipelined", shape, limit=Shape(callers=shape.callers, sessions=shape.sessions))
        ]
