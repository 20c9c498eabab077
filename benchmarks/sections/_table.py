"""The sections by name, in the order of the report."""

from __future__ import annotations

from ._append import append, batches, pipelined
from ._base import Section
from ._engines import engines
from ._fan_out import fan_out
from ._growth import growth
from ._instrumentation import instrumentation
from ._logging import logging_on
from ._replay import replay
from ._sessions import sessions
from ._subscribers import subscribers

__all__ = ["SECTIONS"]

SECTIONS: dict[str, Section] = {
    "append": append,
    "batches": batches,
    "pipelined": pipelined,
    "subscribers": subscribers,
    "fan-out": fan_out,
    "replay": replay,
    "growth": growth,
    "sessions": sessions,
    "logging": logging_on,
    "instrumentation": instrumentation,
    "engines": engines,
}
