"""What being measured costs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from logmark import Instrumentation

from ..harness import Sample, Shape, drive, run_bout, verify
from ..participants import Logmark, Raw
from ..report import Row, rows_of
from ._base import Context

__all__ = ["instrumentation"]

SHAPES = (Shape(callers=1), Shape(callers=16), Shape(callers=16, window=256))
_OFF = "logmark, no instrumentation"


def instrumentation(context: Context) -> list[Row]:
    """Metrics and traces, against none."""
    return [row for shape in SHAPES for row in _instrumented(context, shape)]


def _prometheus() -> Instrumentation:
    from prometheus_client import CollectorRegistry

    from logmark.prometheus import PrometheusInstrumentation

    return PrometheusInstrumentation(CollectorRegistry())


def _opentelemetry(*, tracing: bool) -> Instrumentation:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider

    from logmark.otel import OpenTelemetryInstrumentation

    # Spans are made and ended; what an exporter costs is its own affair.
    return OpenTelemetryInstrumentation(
        tracer_provider=TracerProvider(shutdown_on_exit=False),
        meter_provider=MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False),
        tracing=tracing,
    )


_MAKERS: dict[str, Callable[[], Instrumentation]] = {
    "logmark, Prometheus": _prometheus,
    "logmark, OpenTelemetry metrics": lambda: _opentelemetry(tracing=False),
    "logmark, OpenTelemetry with traces": lambda: _opentelemetry(tracing=True),
}


def _instrumented(context: Context, shape: Shape) -> list[Row]:
    context.progress.begin(f"instrumentation: {shape.label}")
    raw = Raw()
    waiting = Shape(callers=shape.callers, sessions=shape.sessions)
    missing: list[Row] = []
    ours: dict[str, Logmark] = {_OFF: Logmark()}
    for label, make in _MAKERS.items():
        try:
            ours[label] = Logmark(instrumentation=make())
        except ImportError as error:
            missing.append(
                Row(section="instrumentation", work=shape.label, participant=label, value=None, note=str(error))
            )
    done = dict.fromkeys(ours, 0)
    with contextlib.ExitStack() as stack:
        for participant in (raw, *ours.values()):
            participant.open(context.place(participant.name))
            stack.callback(participant.close)

        def contender(label: str) -> Callable[[float], Sample]:
            def work(seconds: float) -> Sample:
                sample = drive(ours[label], shape, ["s"], seconds)
                done[label] += sample.events
                return sample

            return work

        def limit(seconds: float) -> Sample:
            return drive(raw, waiting, ["s"], seconds)

        bout = run_bout(
            {raw.label: limit} | {label: contender(label) for label in ours},
            rounds=context.rounds,
            seconds=context.seconds,
            step=context.progress.step,
        )
        for label, participant in ours.items():
            verify(participant, {"s": done[label]})
        against = {label: (_OFF, "none") for label in ours if label != _OFF}
        return rows_of(bout, "instrumentation", shape.label, against=against) + missing
