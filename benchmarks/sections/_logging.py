"""What being told of every batch costs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import structlog

import logmark.logs

from ..harness import Sample, Shape, drive, run_bout, verify
from ..participants import Logmark, Raw
from ..report import Row, rows_of
from ._base import Context

__all__ = ["logging_on"]

SHAPES = (Shape(callers=1), Shape(callers=16), Shape(callers=16, window=256))


def logging_on(context: Context) -> list[Row]:
    """Log events at info as JSON to a file, against none."""
    return [row for shape in SHAPES for row in _logging(context, shape)]


def _logging(context: Context, shape: Shape) -> list[Row]:
    context.progress.begin(f"logging: {shape.label}")
    raw, ours = Raw(), Logmark()
    done = {"off": 0, "on": 0}
    with contextlib.ExitStack() as stack:
        for participant in (raw, ours):
            participant.open(context.place(participant.name))
            stack.callback(participant.close)
        path = os.path.join(context.place("logs"), "events.log")
        stream = stack.enter_context(open(path, "w", encoding="utf-8"))
        waiting = Shape(callers=shape.callers, sessions=shape.sessions)

        def contender(session_id: str) -> Callable[[float], Sample]:
            def work(seconds: float) -> Sample:
                if session_id == "on":
                    logmark.logs.configure(json=True, level="info", stream=stream)
                try:
                    sample = drive(ours, shape, [session_id], seconds)
                finally:
                    structlog.reset_defaults()
                done[session_id] += sample.events
                return sample

            return work

        off, on = "logmark, no log events", "logmark, log events at info"
        bout = run_bout(
            {
                raw.label: lambda seconds: drive(raw, waiting, ["s"], seconds),
                off: contender("off"),
                on: contender("on"),
            },
            rounds=context.rounds,
            seconds=context.seconds,
            step=context.progress.step,
        )
        verify(ours, done)
        return rows_of(bout, "logging", shape.label, against={on: (off, "none")})
