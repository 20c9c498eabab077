"""Traces and metrics for OpenTelemetry: ``pip install 'logmark[otel]'``.

>>> import logmark, logmark.otel
>>> with logmark.open("memory:", instrumentation=logmark.otel.OpenTelemetryInstrumentation()) as rt:
...     rt.session("chat-42").append("message.created", {"text": "hi"})
1

An append becomes a span in the trace of its caller, its event keeps that span's W3C context, and whoever is handed the
event, in whatever process, goes on in the same trace: ``context_of``. ``docs/metrics.md`` says what is stored.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ._metrics import METRICS, Metric, Recorder
from .actors import AppendSpan, PersistedBatch
from .protocol import Envelope, InvalidArgument, MissingExtra, RawEnvelope

try:
    from opentelemetry import metrics, trace
    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation
    from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise MissingExtra(engine="opentelemetry", extra="otel") from error

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["OpenTelemetryInstrumentation", "context_of"]

_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")
_PROPAGATOR = TraceContextTextMapPropagator()
_GAUGES_FRESH_S = 0.5
_OWN_TYPES = "arcp."


def context_of(event: Envelope | RawEnvelope) -> Context:
    """Return the trace context that an event was appended in, for the span of whoever works on it.

    That of the append's span (``extensions["traceparent"]``) where it was stored; else one of the event's ``trace_id``,
    if that is one of W3C; else an empty one, which begins a trace of its own.
    """
    carrier = {name: value for name, value in event.fields.extensions.items() if isinstance(value, str)}
    context = _PROPAGATOR.extract(carrier, Context())
    if trace.get_current_span(context).get_span_context().is_valid:
        return context
    return _context_of_trace(event.trace_id)


def _context_of_trace(trace_id: str | None) -> Context:
    """Return a context in a trace of which nothing is known but its id, as the ARCP draft passes it on.

    A parent needs a span id as well: the same one for the same trace, so that all its spans stand together.
    """
    if trace_id is None or _TRACE_ID.fullmatch(trace_id) is None:
        return Context()
    number = int(trace_id, 16)
    span_id = number & (2**64 - 1) or 1
    parent = SpanContext(number, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return trace.set_span_in_context(NonRecordingSpan(parent), Context())


class _AppendSpan:
    """The span of one append; see ``AppendSpan``."""

    def __init__(self, span: Span, *, stored: bool) -> None:
        self._span = span
        self.context = span.get_span_context()
        self.trace_id: str | None = trace.format_trace_id(self.context.trace_id) if stored else None
        carrier: dict[str, Any] = {}
        if stored:
            _PROPAGATOR.inject(carrier, trace.set_span_in_context(span, Context()))
        self.extensions: Mapping[str, Any] = carrier

    def end(self, answer: tuple[int, int] | BaseException) -> None:
        """See ``AppendSpan.end``."""
        span = self._span
        if isinstance(answer, BaseException):
            span.set_attribute("error.type", type(answer).__name__)
            span.set_status(Status(StatusCode.ERROR, str(answer)))
        else:
            span.set_attributes({"logmark.first_seq": answer[0], "logmark.last_seq": answer[1]})
        span.end()


class OpenTelemetryInstrumentation(Recorder):
    """Makes spans of appends, commits and deliveries, and metrics, through OpenTelemetry's API. Safe from any thread.

    * ``logmark append`` (producer): from the call to its answer, below the caller's span, or in the trace that the
      event's ``trace_id`` names. Its context is stored with the event.
    * ``logmark persist``: a commit. Below the append, if it was the only one; else on its own, with links to all.
    * ``logmark deliver`` (consumer): a subscriber was handed the event. Below the append, wherever that was.

    A tracer provider's sampler decides about appends; the rest follow. Events that were appended without a trace are
    delivered without one. It may be given to several runtimes.

    Args:
        tracer_provider: the global one by default.
        meter_provider: the global one by default.
        tracing: make spans; False makes metrics only, and stores nothing.
        delivery_age_s_max: events older than this when they are handed out are history being read, not deliveries, and
            make no span.

    Raises:
        MissingExtra: at the import: the package ``opentelemetry-api`` is not installed.
        InvalidArgument: ``delivery_age_s_max`` is not a number of seconds.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        tracing: bool = True,
        delivery_age_s_max: float = 60.0,
    ) -> None:
        super().__init__(histograms=False)
        if not delivery_age_s_max >= 0:
            message = f"delivery_age_s_max is a number of seconds, not {delivery_age_s_max!r}"
            raise InvalidArgument(message)
        self.traces = tracing
        self._age_s_max = delivery_age_s_max
        ours = version("logmark")
        self._tracer = trace.get_tracer("logmark", ours, tracer_provider)
        meter = metrics.get_meter("logmark", ours, meter_provider)
        self._recorded: dict[str, Histogram] = {}
        self._gauges: dict[str, float] = {}
        self._gauges_at = float("-inf")
        self._gauges_mutex = threading.Lock()
        for metric in METRICS:
            name, unit, text = metric.name, metric.unit, metric.help
            if metric.kind == "histogram":
                self._recorded[name] = meter.create_histogram(
                    name, unit, text, explicit_bucket_boundaries_advisory=list(metric.buckets)
                )
            elif metric.kind == "counter":
                meter.create_observable_counter(name, [self._counter_callback(metric)], unit, text)
            else:
                meter.create_observable_gauge(name, [self._gauge_callback(metric)], unit, text)

    # -- metrics ------------------------------------------------------------------------------------------------

    def _counter_callback(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            for label, count in self.counters()[metric.name].items():
                yield Observation(count, {metric.label: label} if metric.label else None)

        return observe

    def _gauge_callback(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            yield Observation(self._gauges_now()[metric.name])

        return observe

    def _gauges_now(self) -> dict[str, float]:
        """Ask the runtimes once for all the gauges of a collection."""
        with self._gauges_mutex:
            if time.monotonic() - self._gauges_at > _GAUGES_FRESH_S:
                self._gauges = self.gauges()
                self._gauges_at = time.monotonic()
            return self._gauges

    def batch_persisted(self, batch: PersistedBatch) -> None:
        """See ``Instrumentation.batch_persisted``."""
        super().batch_persisted(batch)
        record = self._recorded["logmark.append.duration"].record
        for seconds in batch.appends_s:
            record(seconds)
        if batch.events:
            self._recorded["logmark.commit.duration"].record(batch.commit_s)
            if batch.sync_s:
                self._recorded["logmark.sync.duration"].record(batch.sync_s)
            self._recorded["logmark.batch.events"].record(batch.events)
            self._recorded["logmark.batch.size"].record(batch.size_bytes)
        if batch.spans:
            self._trace_commit(batch)

    # -- traces -------------------------------------------------------------------------------------------------

    def append_begun(self, session_id: str, types: Sequence[str], trace_id: str | None) -> AppendSpan | None:
        """See ``Instrumentation.append_begun``."""
        current = trace.get_current_span().get_span_context()
        context: Context | None = None
        links: list[Link] = []
        if trace_id is not None and _TRACE_ID.fullmatch(trace_id) and trace_id != _id_of(current):
            context = _context_of_trace(trace_id)
            if current.is_valid:
                links.append(Link(current))
        elif not current.is_valid and all(type_.startswith(_OWN_TYPES) for type_ in types):
            return None  # the gateway's own facts and signs of life, which nobody asked for
        span = self._tracer.start_span(
            "logmark append",
            context,
            SpanKind.PRODUCER,
            {
                **_attributes("append", "send", session_id),
                "messaging.batch.message_count": len(types),
                "logmark.event_types": sorted(set(types))[:8],
            },
            links,
        )
        made = span.get_span_context()
        if not made.is_valid:  # there is no SDK, and nobody's trace to hand on
            return None
        # A trace that begins here and is not sampled is nobody's: nothing is stored for it.
        return _AppendSpan(span, stored=made.trace_flags.sampled or current.is_valid or context is not None)

    def _trace_commit(self, batch: PersistedBatch) -> None:
        appends = [span.context for span in batch.spans if isinstance(span, _AppendSpan)]
        sampled = [context for context in appends if context.trace_flags.sampled]
        if not sampled:
            return
        context, links = Context(), [Link(each) for each in sampled]
        if len(batch.spans) == 1:
            context, links = trace.set_span_in_context(NonRecordingSpan(sampled[0]), context), []
        span = self._tracer.start_span(
            "logmark persist",
            context,
            SpanKind.INTERNAL,
            {
                **_attributes("persist", "settle", batch.session_id),
                "messaging.batch.message_count": batch.events,
                "logmark.first_seq": batch.first_seq,
                "logmark.last_seq": batch.last_seq,
                "logmark.bytes": batch.size_bytes,
                "logmark.sync_s": batch.sync_s,
            },
            links,
            start_time=batch.ended_ns - int(batch.commit_s * 1e9),
        )
        if batch.errors:
            span.set_attribute("error.type", min(batch.errors))
            span.set_status(Status(StatusCode.ERROR, ", ".join(sorted(batch.errors))))
        span.end(batch.ended_ns)

    def event_delivered(self, event: RawEnvelope, waited_s: float | None) -> None:
        """See ``Instrumentation.event_delivered``."""
        if waited_s is not None and waited_s > self._age_s_max:
            return
        context = context_of(event)
        parent = trace.get_current_span(context).get_span_context()
        if not parent.is_valid or not parent.trace_flags.sampled:
            return
        current = trace.get_current_span().get_span_context()
        span = self._tracer.start_span(
            "logmark deliver",
            context,
            SpanKind.CONSUMER,
            {
                **_attributes("deliver", "receive", event.session_id or ""),
                "messaging.message.id": event.id or "",
                "logmark.event_seq": event.event_seq or 0,
                "logmark.waited_s": max(0.0, waited_s or 0.0),
            },
            [Link(current)] if current.is_valid and current.span_id != parent.span_id else [],
        )
        span.end()


def _attributes(name: str, kind: str, session_id: str) -> dict[str, Any]:
    return {
        "messaging.system": "logmark",
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
        "messaging.destination.name": session_id,
    }


def _id_of(context: SpanContext) -> str | None:
    return trace.format_trace_id(context.trace_id) if context.is_valid else None
