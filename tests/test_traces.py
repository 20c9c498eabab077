"""Traces: an append, its commit and each delivery stand in the trace of whoever appended, also across processes."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import SpanKind, StatusCode, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import logmark
import logmark.aio
from logmark.errors import WrongExpectedSeq
from logmark.otel import OpenTelemetryInstrumentation, context_of
from logmark.storage import BatchResult, MemoryEventStore, SessionBatch

SOON = 30.0
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Traces:
    """A tracer provider whose spans can be looked at, and logmark's instrumentation with it."""

    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")
        self.instrumentation = OpenTelemetryInstrumentation(tracer_provider=self.provider)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span


@pytest.fixture
def traces() -> Iterator[Traces]:
    made = Traces()
    yield made
    made.provider.shutdown()


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return trace.format_trace_id(span.context.trace_id)


def test_an_append_its_commit_and_its_delivery_are_one_trace(store_url: str, traces: Traces) -> None:
    with logmark.open(store_url, instrumentation=traces.instrumentation) as runtime:
        session = runtime.session("chat-42")
        with session.subscribe() as viewer:
            with traces.tracer.start_as_current_span("request"):
                session.append("message.created", {"text": "hi"})
            event = viewer.get(timeout=SOON)
            with traces.tracer.start_as_current_span("work", context_of(event)):
                pass

    request, work = traces.one("request"), traces.one("work")
    append, persist = traces.one("logmark append"), traces.one("logmark persist")
    assert append.context is not None
    deliver = traces.one("logmark deliver")
    assert {trace_of(span) for span in (request, append, persist, deliver, work)} == {event.trace_id}
    assert [parent_of(span) for span in (request, append, persist, deliver, work)] == [
        None,
        id_of(request),
        id_of(append),
        id_of(append),
        id_of(append),
    ]
    assert (append.kind, persist.kind, deliver.kind) == (SpanKind.PRODUCER, SpanKind.INTERNAL, SpanKind.CONSUMER)
    assert event.extensions == {
        "traceparent": f"00-{event.trace_id}-{trace.format_span_id(id_of(append))}-{append.context.trace_flags:02x}"
    }
    assert append.start_time <= persist.start_time <= persist.end_time  # type: ignore[operator]
    assert (append.attributes or {})["logmark.last_seq"] == 1
    assert (deliver.attributes or {})["logmark.event_seq"] == 1
    assert (persist.attributes or {})["messaging.destination.name"] == "chat-42"
    assert "hi" not in "".join(span.to_json() for span in (append, persist, deliver))


def test_a_shared_commit_links_to_each_append(traces: Traces) -> None:
    class Slow(MemoryEventStore):
        entered, go_on = threading.Event(), threading.Event()

        def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
            self.entered.set()
            assert self.go_on.wait(SOON)
            return super().append(batches)

    store = Slow()
    with logmark.Runtime(store, instrumentation=traces.instrumentation) as runtime:
        session = runtime.session("a")
        futures = [session.submit("x")]
        assert store.entered.wait(SOON)
        futures += [session.submit("x") for _ in range(3)]
        store.go_on.set()
        assert [future.result(SOON) for future in futures] == [1, 2, 3, 4]

    alone, shared = traces.named("logmark persist")
    appends = traces.named("logmark append")
    assert (alone.parent is not None, len(alone.links)) == (True, 0)
    assert shared.parent is None
    assert {link.context.span_id for link in shared.links} == {id_of(span) for span in appends} - {parent_of(alone)}
    assert trace_of(shared) not in {trace_of(span) for span in appends}


def test_the_trace_that_a_producer_names_is_the_one(traces: Traces) -> None:
    with logmark.open("memory:", instrumentation=traces.instrumentation) as runtime:
        session = runtime.session("a")
        with traces.tracer.start_as_current_span("request") as request:
            session.append("x", trace_id=TRACE)
            session.append("x", trace_id="not one of W3C")
        events = list(session.read())

    first, second = traces.named("logmark append")
    assert [event.trace_id for event in events] == [TRACE, "not one of W3C"]
    assert trace_of(first) == TRACE
    assert [link.context.span_id for link in first.links] == [request.get_span_context().span_id]
    assert events[0].extensions["traceparent"].split("-")[1] == TRACE
    assert (parent_of(second), events[1].extensions) == (request.get_span_context().span_id, {})


def test_the_name_of_the_callers_own_trace_changes_nothing(traces: Traces) -> None:
    with (
        logmark.open("memory:", instrumentation=traces.instrumentation) as runtime,
        traces.tracer.start_as_current_span("request") as request,
    ):
        current = request.get_span_context()
        runtime.session("a").append("x", trace_id=trace.format_trace_id(current.trace_id))

    append = traces.one("logmark append")
    assert (parent_of(append), len(append.links)) == (current.span_id, 0)


def test_a_delivery_follows_the_append_in_whether_it_is_sampled() -> None:
    traces = Traces(sampler=ALWAYS_ON)  # which by itself would take every span
    with logmark.open("memory:", instrumentation=traces.instrumentation) as runtime:
        session = runtime.session("a")
        with session.subscribe() as viewer:
            for flags in ("00", "01"):
                session.append("x", extensions={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-{flags}"})
            assert [viewer.get(timeout=SOON).event_seq for _ in range(2)] == [1, 2]
    traces.provider.shutdown()

    assert (traces.one("logmark deliver").attributes or {})["logmark.event_seq"] == 2


def test_all_appends_of_a_trace_known_by_its_id_stand_together(traces: Traces) -> None:
    with logmark.open("memory:", instrumentation=traces.instrumentation) as runtime:
        for name in ("a", "b"):
            runtime.session(name).append("job.event", {"kind": "log", "body": {}}, job_id="j", trace_id=TRACE)

    parents = {parent_of(span) for span in traces.named("logmark append")}
    assert parents == {int(TRACE[16:], 16)}


def test_an_append_of_several_events_is_one_span(traces: Traces) -> None:
    with logmark.open("memory:", instrumentation=traces.instrumentation) as runtime:
        session = runtime.session("a")
        with session.subscribe() as viewer:
            session.append_many([("x", 1), ("y", 2)])
            contexts = {viewer.get(timeout=SOON).extensions["traceparent"] for _ in range(2)}

    append = traces.one("logmark append")
    assert len(contexts) == 1
    assert (append.attributes or {})["logmark.event_types"] == ("x", "y")
    assert {parent_of(span) for span in traces.named("logmark deliver")} == {id_of(append)}


def test_a_failure_is_told_in_the_spans(traces: Traces) -> None:
    with logmark.open("memory:", instrumentation=traces.instrumentation) as runtime:
        session = runtime.session("a")
        with pytest.raises(WrongExpectedSeq):
            session.append("x", expected_seq=7)

    for span in (traces.one("logmark append"), traces.one("logmark persist")):
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == "WrongExpectedSeq"


def test_what_is_not_sampled_makes_no_span_and_leaves_nothing_behind() -> None:
    traces = Traces(sampler=ALWAYS_OFF)
    with logmark.open("memory:", instrumentation=traces.instrumentation) as runtime:
        session = runtime.session("a")
        with session.subscribe() as viewer:
            session.append("x")
            with traces.tracer.start_as_current_span("request") as request:
                session.append("x")
            plain, inside = viewer.get(timeout=SOON), viewer.get(timeout=SOON)
    traces.provider.shutdown()

    assert (plain.trace_id, plain.extensions) == (None, {})
    # The caller's own trace is handed on, with the word that it is not sampled.
    assert inside.trace_id == trace.format_trace_id(request.get_span_context().trace_id)
    assert int(inside.extensions["traceparent"][-2:], 16) & 1 == 0
    assert [traces.named(f"logmark {name}") for name in ("append", "persist", "deliver")] == [[], [], []]


def test_without_an_sdk_the_context_of_the_caller_is_handed_on() -> None:
    parent = TraceContextTextMapPropagator().extract({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
    api_only = OpenTelemetryInstrumentation(tracer_provider=trace.NoOpTracerProvider())
    with logmark.open("memory:", instrumentation=api_only) as runtime:
        session = runtime.session("a")
        session.append("x")
        token = context.attach(parent)
        try:
            session.append("x")
        finally:
            context.detach(token)
        plain, inside = session.read()

    assert (plain.trace_id, plain.extensions) == (None, {})
    assert (inside.trace_id, inside.extensions) == (TRACE, {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})


def test_the_state_of_a_trace_is_kept_too(traces: Traces) -> None:
    carrier = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "tracestate": "vendor=value"}
    parent = TraceContextTextMapPropagator().extract(carrier)
    with logmark.open("memory:", instrumentation=traces.instrumentation) as runtime:
        with traces.tracer.start_as_current_span("request", parent):
            runtime.session("a").append("x")
        (event,) = runtime.session("a").read()

    state: TraceState = trace.get_current_span(context_of(event)).get_span_context().trace_state
    assert (event.trace_id, event.extensions["tracestate"], state["vendor"]) == (TRACE, "vendor=value", "value")


def test_a_retry_keeps_the_first_context(traces: Traces) -> None:
    with logmark.open("memory:", instrumentation=traces.instrumentation) as runtime:
        session = runtime.session("a")
        assert [session.append("x", id="one"), session.append("x", id="one")] == [1, 1]
        (event,) = session.read()

    assert event.trace_id == trace_of(traces.named("logmark append")[0])


def test_history_that_is_read_is_no_delivery(traces: Traces) -> None:
    long_ago = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
    with logmark.open("memory:", instrumentation=traces.instrumentation) as runtime:
        session = runtime.session("a")
        session.append("x", timestamp=long_ago)
        session.append("x")
        with session.subscribe(from_seq=1) as viewer:
            assert [viewer.get(timeout=SOON).event_seq for _ in range(2)] == [1, 2]

    assert (traces.one("logmark deliver").attributes or {})["logmark.event_seq"] == 2


def test_another_process_goes_on_in_the_trace(traces: Traces, tmp_path: Path) -> None:
    program = (
        "import sys, logmark\n"
        "from opentelemetry import trace\n"
        "from logmark.otel import context_of\n"
        "with logmark.open(sys.argv[1]) as runtime:\n"
        "    (event,) = runtime.session('a').read()\n"
        "    context = trace.get_current_span(context_of(event)).get_span_context()\n"
        "print(trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id), context.is_remote)\n"
    )
    store = str(tmp_path / "store")
    with logmark.open(store, instrumentation=traces.instrumentation) as runtime:
        runtime.session("a").append("x")
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, store], capture_output=True, text=True, timeout=60, check=True
    )

    append = traces.one("logmark append")
    assert said.stdout.split() == [trace_of(append), trace.format_span_id(id_of(append)), "True"]


def test_a_reader_of_another_runtime_is_told_below_the_append(traces: Traces, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    with (
        logmark.open(store, instrumentation=traces.instrumentation) as writer,
        logmark.open(store, instrumentation=traces.instrumentation) as reader,
        reader.session("a").subscribe() as viewer,
    ):
        writer.session("a").append("x")
        assert viewer.get(timeout=SOON).event_seq == 1

    assert parent_of(traces.one("logmark deliver")) == id_of(traces.one("logmark append"))


def test_an_event_loop_appends_in_the_trace_of_its_task(traces: Traces) -> None:
    async def main() -> list[str | None]:
        runtime = await logmark.aio.open("memory:", instrumentation=traces.instrumentation)
        async with runtime:
            session = runtime.session("a")
            with traces.tracer.start_as_current_span("request"):
                await session.append("x")
                await session.append_many([("x", n) for n in range(100)])
            return [event.trace_id for event in runtime.runtime.session("a").read()]

    found = asyncio.run(main())

    assert set(found) == {trace_of(traces.one("request"))}
    assert len(found) == 101
    assert {parent_of(span) for span in traces.named("logmark persist")} == {
        id_of(span) for span in traces.named("logmark append")
    }
    assert {parent_of(span) for span in traces.named("logmark append")} == {id_of(traces.one("request"))}


def test_the_gateways_own_facts_begin_no_trace(traces: Traces) -> None:
    with logmark.open("memory:", instrumentation=traces.instrumentation) as runtime:
        session = runtime.session("arcp/instances/1")
        session.append("arcp.instance_alive", {})
        with traces.tracer.start_as_current_span("request"):
            session.append_many([("arcp.job_accepted", {}), ("arcp.job_ended", {})])
        plain, *others = session.read()

    assert (plain.trace_id, plain.extensions) == (None, {})
    assert {event.trace_id for event in others} == {trace_of(traces.one("logmark append"))}


HEX = "0123456789abcdef"
TRACEPARENTS = st.from_regex(r"\A0[01]-[0-9a-f]{32}-[0-9a-f]{16}-0[01]\Z")


@settings(max_examples=60)
@given(
    st.one_of(st.none(), st.text(min_size=1, max_size=60), st.text(HEX, min_size=32, max_size=32)),
    st.one_of(st.none(), st.text(max_size=80), st.integers(), TRACEPARENTS),
)
def test_whatever_an_event_says_it_has_a_context(trace_id: str | None, traceparent: Any) -> None:
    extensions = {} if traceparent is None else {"traceparent": traceparent}
    event = logmark.Envelope(type="x", trace_id=trace_id, extensions=extensions)
    found = trace.get_current_span(context_of(event)).get_span_context()

    named = trace_id is not None and len(trace_id) == 32 and set(trace_id) <= set(HEX) and set(trace_id) != {"0"}
    if found.is_valid:
        assert trace.format_trace_id(found.trace_id) in f"{trace_id} {traceparent}"
    else:
        assert not named
