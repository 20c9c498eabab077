"""What an agent reports: bodies as the draft and the strictest client want them, durable when the call returns."""

from __future__ import annotations

import threading
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logmark.errors import InvalidArgument, InvalidEvent, JobEnded, NotEncodable, StorageRejected
from logmark.gateway import AgentContext, ResultStream
from logmark.gateway._stream import pieces_of
from logmark.testing import RecordingSink, run_agent

SOON = 20.0
Use = Callable[[AgentContext], Any]


def used(use: Use, **job: Any) -> RecordingSink:
    """Run an agent that uses its context once, and returns what that returned."""
    return run_agent(lambda ctx, _input: use(ctx), **job)


# -- the shapes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use", "kind", "body"),
    [
        (lambda ctx: ctx.log("info", "hi"), "log", {"level": "info", "message": "hi"}),
        (
            lambda ctx: ctx.log("warning", "hi", path="/x", n=1),
            "log",
            {"level": "warn", "message": "hi", "attributes": {"path": "/x", "n": 1}},
        ),
        (lambda ctx: ctx.log("CRITICAL", "hi"), "log", {"level": "critical", "message": "hi"}),
        (lambda ctx: ctx.thought(""), "thought", {"text": ""}),
        (lambda ctx: ctx.status("linking"), "status", {"phase": "linking"}),
        (lambda ctx: ctx.status("linking", "2 of 3"), "status", {"phase": "linking", "message": "2 of 3"}),
        (lambda ctx: ctx.progress(0), "progress", {"current": 0}),
        (
            lambda ctx: ctx.progress(1.5, total=4, units="steps", message="on it"),
            "progress",
            {"current": 1.5, "total": 4, "units": "steps", "message": "on it"},
        ),
        (lambda ctx: ctx.metric("rows", 3), "metric", {"name": "rows", "value": 3}),
        (lambda ctx: ctx.metric("rows", Decimal("0.1")), "metric", {"name": "rows", "value": 0.1}),
        (
            lambda ctx: ctx.metric("rows", -3.5, unit="k", dimensions={"table": "t"}),
            "metric",
            {"name": "rows", "value": -3.5, "unit": "k", "dimensions": {"table": "t"}},
        ),
        (
            lambda ctx: ctx.artifact("file:a.tar", "application/x-tar", byte_size=0, sha256="ab"),
            "artifact_ref",
            {"uri": "file:a.tar", "content_type": "application/x-tar", "byte_size": 0, "sha256": "ab"},
        ),
        (lambda ctx: ctx.tool_result("c1", {"ok": True}), "tool_result", {"call_id": "c1", "result": {"ok": True}}),
        (lambda ctx: ctx.tool_result("c1"), "tool_result", {"call_id": "c1", "result": None}),
        (
            lambda ctx: ctx.tool_result("c1", error="no network"),
            "tool_result",
            {"call_id": "c1", "error": {"code": "INTERNAL_ERROR", "message": "no network", "retryable": True}},
        ),
        (lambda ctx: ctx.emit("x-vendor.acme.note", {"any": [1]}), "x-vendor.acme.note", {"any": [1]}),
        (lambda ctx: ctx.emit("status", {"phase": "x", "more": 1}), "status", {"phase": "x", "more": 1}),
    ],
)
def test_each_report_has_the_drafts_shape_and_answers_with_its_number(
    use: Use, kind: str, body: dict[str, Any]
) -> None:
    job = used(use)

    assert job.events == [(kind, body)]
    assert job.result_fields == {"result": 1}


def test_a_tool_call_answers_with_the_id_that_its_result_is_to_have() -> None:
    job = used(lambda ctx: [ctx.tool_call("search", {"q": "x"}), ctx.tool_call("noop", call_id="c2")])
    (_, first), (_, second) = job.events

    assert job.kinds == ["tool_call", "tool_call"]
    assert first == {"tool": "search", "args": {"q": "x"}, "call_id": first["call_id"]}
    assert second == {"tool": "noop", "args": {}, "call_id": "c2"}
    assert job.result_fields == {"result": [first["call_id"], "c2"]}
    assert first["call_id"].startswith("call_")


@pytest.mark.parametrize(
    ("use", "match"),
    [
        (lambda ctx: ctx.log("loud", "hi"), "'level'.*trace"),
        (lambda ctx: ctx.log(3, "hi"), "'level'"),
        (lambda ctx: ctx.log("info", ""), "'message'.*non-empty"),
        (lambda ctx: ctx.thought(None), "'text'"),
        (lambda ctx: ctx.status(""), "'phase'"),
        (lambda ctx: ctx.progress(-1), "'current'"),
        (lambda ctx: ctx.progress(True), "'current'"),
        (lambda ctx: ctx.progress(float("nan")), "'current'"),
        (lambda ctx: ctx.progress(5, total=4), "5 of 4"),
        (lambda ctx: ctx.progress(1, units=""), "'units'"),
        (lambda ctx: ctx.metric("", 1), "'name'"),
        (lambda ctx: ctx.metric("x", "1"), "'value'"),
        (lambda ctx: ctx.metric("x", float("inf")), "'value'"),
        (lambda ctx: ctx.metric("cost.x", -0.01, "USD"), "not negative"),
        (lambda ctx: ctx.metric("cost.budget.remaining", 1, "USD"), "the runtime reports"),
        (lambda ctx: ctx.artifact("", "text/plain"), "'uri'"),
        (lambda ctx: ctx.artifact("a", "text/plain", byte_size=-1), "'byte_size'"),
        (lambda ctx: ctx.tool_call("", {}), "'tool'"),
        (lambda ctx: ctx.tool_call("search", [1]), "'args'"),
        (lambda ctx: ctx.tool_result("c1", 1, error="both"), "either a result or an error"),
        (lambda ctx: ctx.tool_result("c1", error={"code": "NO_SUCH_CODE", "message": "m", "retryable": True}), "codes"),
        (lambda ctx: ctx.tool_result("c1", error={"code": "TIMEOUT", "message": "m"}), "codes"),
        (
            lambda ctx: ctx.tool_result("c1", error={"code": "LEASE_EXPIRED", "message": "m", "retryable": True}),
            "codes",
        ),
        (lambda ctx: ctx.emit("tool_result", {"call_id": "c1"}), "either a result or an error"),
        (lambda ctx: ctx.emit("log", {"level": "info"}), "needs 'message'"),
        (lambda ctx: ctx.emit("log", ["info"]), "an object"),
        (lambda ctx: ctx.emit("log", {1: 2}), "an object"),
        (lambda ctx: ctx.emit("result_chunk", {}), "result_stream"),
        (lambda ctx: ctx.emit("delegate", {}), "not offered"),
        (lambda ctx: ctx.emit("gossip", {}), "x-vendor"),
        (lambda ctx: ctx.emit("x-vendor.", {}), "x-vendor"),
        (lambda ctx: ctx.emit_many([("log", {"level": "info", "message": "a"}), ("log", {})]), "needs"),
    ],
)
def test_what_a_client_would_drop_is_the_agents_error_and_not_written(use: Use, match: str) -> None:
    def agent(ctx: AgentContext, _input: Any) -> None:
        with pytest.raises(InvalidEvent, match=match):
            use(ctx)

    job = run_agent(agent)
    assert (job.events, job.result_fields) == ([], {})


def test_several_events_are_one_commit() -> None:
    def agent(ctx: AgentContext, _input: Any) -> Any:
        with pytest.raises(InvalidArgument):
            ctx.emit_many([])
        return ctx.emit_many([("thought", {"text": str(number)}) for number in range(5)])

    job = run_agent(agent)
    assert job.commits == [5]
    assert job.result_fields == {"result": (1, 5)}


def test_an_emit_returns_when_the_event_is_durable_and_not_before() -> None:
    sink = RecordingSink()
    release = sink.hold()
    reached, returned = threading.Event(), threading.Event()

    def agent(ctx: AgentContext, _input: Any) -> None:
        reached.set()
        ctx.thought("slow disk")
        returned.set()

    runner = threading.Thread(target=run_agent, args=(agent,), kwargs={"sink": sink})
    runner.start()
    assert reached.wait(SOON)
    assert not returned.wait(0.05)
    release()
    runner.join(SOON)

    assert returned.is_set()
    assert sink.kinds == ["thought"]


def test_a_failed_append_is_the_agents_error_and_it_may_go_on() -> None:
    sink = RecordingSink()
    sink.refusals.append(StorageRejected(session_id="session", reason="no space", errno=28))

    def agent(ctx: AgentContext, _input: Any) -> str:
        with pytest.raises(StorageRejected):
            ctx.thought("lost")
        ctx.thought("kept")
        return "done"

    run_agent(agent, sink=sink)
    assert sink.events == [("thought", {"text": "kept"})]
    assert sink.result_fields == {"result": "done"}


def test_an_agent_that_gives_up_over_a_failed_append_ends_its_job_with_an_error() -> None:
    sink = RecordingSink()
    sink.refusals.append(StorageRejected(session_id="session", reason="no space on /secret", errno=28))
    used(lambda ctx: ctx.thought("lost"), sink=sink)

    assert sink.error_fields == {
        "code": "INTERNAL_ERROR",
        "message": "agent agent@1 failed with StorageRejected",
        "retryable": True,
        "status": "error",
    }


def test_what_a_session_has_not_negotiated_is_said_in_words_that_it_knows() -> None:
    def agent(ctx: AgentContext, _input: Any) -> None:
        ctx.progress(1)
        ctx.progress(2, total=4, units="files", message="a.py")
        with ctx.result_stream(summary="two parts") as stream:
            stream.write("héllo ")
            stream.write("world")

    job = run_agent(agent, features=frozenset({"agent_versions"}))
    assert job.events == [
        ("status", {"phase": "progress", "message": "1"}),
        ("status", {"phase": "progress", "message": "2/4 files a.py"}),
    ]
    assert job.result_fields == {"result": "héllo world", "summary": "two parts"}


def test_bytes_without_chunks_are_base64() -> None:
    def agent(ctx: AgentContext, _input: Any) -> None:
        with ctx.result_stream() as stream:
            stream.write(b"\xff")
            stream.write("a")

    job = run_agent(agent, features=frozenset())
    assert job.result_fields == {"result": {"encoding": "base64", "data": "/2E="}}


# -- a streamed result -----------------------------------------------------------------------------------------------


def chunks_of(job: RecordingSink) -> list[dict[str, Any]]:
    return [body for kind, body in job.events if kind == "result_chunk"]


def assembled(job: RecordingSink) -> bytes:
    import base64

    return b"".join(
        base64.b64decode(body["data"], validate=True) if body["encoding"] == "base64" else body["data"].encode()
        for body in chunks_of(job)
    )


def test_a_streamed_result_is_cut_to_fit_and_counted_from_0_with_one_id() -> None:
    text, data = 'ü"\n\x00' * 9_000, bytes(range(256)) * 300

    def agent(ctx: AgentContext, _input: Any) -> None:
        with ctx.result_stream() as stream:
            for part in ("short", "", text, data, bytearray(b"more"), memoryview(b"!")):
                stream.write(part)
            ctx.log("info", "in between")

    job = run_agent(agent)
    chunks = chunks_of(job)

    assert assembled(job) == b"short" + text.encode() + data + b"more!"
    assert [chunk["chunk_seq"] for chunk in chunks] == list(range(len(chunks)))
    assert [chunk["more"] for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert {chunk["result_id"] for chunk in chunks} == {(job.result_fields or {})["result_id"]}
    assert max(len(orjson.dumps(chunk["data"])) - 2 for chunk in chunks) <= 48 * 1024
    assert job.result_fields == {
        "result_id": chunks[0]["result_id"],
        "result_size": len(assembled(job)),
        "summary": f"{len(assembled(job))} bytes in {len(chunks)} chunks",
    }
    assert job.kinds[-2:] == ["log", "result_chunk"]


def test_a_stream_of_nothing_is_an_empty_result() -> None:
    def agent(ctx: AgentContext, _input: Any) -> None:
        with ctx.result_stream() as stream:
            stream.summary = "nothing found"

    job = run_agent(agent)
    assert [(chunk["data"], chunk["more"]) for chunk in chunks_of(job)] == [("", False)]
    assert (job.result_fields or {})["summary"] == "nothing found"
    assert (job.result_fields or {})["result_size"] == 0


def test_an_agent_that_raises_in_its_stream_fails_once_and_closes_nothing() -> None:
    def agent(ctx: AgentContext, _input: Any) -> None:
        with ctx.result_stream() as stream:
            stream.write("half")
            raise OSError("/secret/path")

    job = run_agent(agent)
    assert [chunk["more"] for chunk in chunks_of(job)] == [True]
    assert job.result_fields is None
    assert job.error_fields == {
        "code": "INTERNAL_ERROR",
        "message": "agent agent@1 failed with OSError",
        "retryable": True,
        "status": "error",
    }


def swallow_and_return(ctx: AgentContext, _input: Any) -> str:
    try:
        with ctx.result_stream() as stream:
            stream.write("half")
            raise OSError
    except OSError:
        return "never mind"


def leave_open(ctx: AgentContext, _input: Any) -> None:
    ctx.result_stream().__enter__().write("half")


def give_both(ctx: AgentContext, _input: Any) -> str:
    with ctx.result_stream() as stream:
        stream.write("whole")
    return "and more"


@pytest.mark.parametrize(
    ("agent", "match"), [(swallow_and_return, "complete"), (leave_open, "complete"), (give_both, "beside")]
)
def test_chunks_and_another_result_are_never_mixed(agent: Callable[..., Any], match: str) -> None:
    job = run_agent(agent)
    assert job.result_fields is None
    assert match in (job.error_fields or {})["message"]


def test_a_stream_that_nobody_saw_does_not_stand_in_the_way() -> None:
    def agent(ctx: AgentContext, _input: Any) -> str:
        ctx.result_stream()
        with pytest.raises(InvalidEvent, match="one result"):
            ctx.result_stream()
        return "inline"

    job = run_agent(agent)
    assert (job.events, job.result_fields) == ([], {"result": "inline"})


def test_a_stream_is_used_within_its_with_statement_and_once() -> None:
    def agent(ctx: AgentContext, _input: Any) -> None:
        stream = ctx.result_stream()
        with pytest.raises(InvalidEvent, match="with statement"):
            stream.write("early")
        with stream:
            stream.write("x")
            with pytest.raises(InvalidEvent, match="once"), stream:
                pass
            for wrong in (None, 7, {"a": 1}):
                with pytest.raises(InvalidEvent, match="text or bytes"):
                    stream.write(wrong)  # type: ignore[arg-type]
            with pytest.raises(NotEncodable):
                stream.write("\ud800")
        with pytest.raises(InvalidEvent, match="left already"):
            stream.write("late")

    job = run_agent(agent)
    assert assembled(job) == b"x"
    assert job.error_fields is None


def test_a_chunk_that_was_refused_is_written_again_with_its_number() -> None:
    sink = RecordingSink()

    def agent(ctx: AgentContext, _input: Any) -> None:
        with ctx.result_stream() as stream:
            stream.write("a")
            sink.refusals.append(StorageRejected(session_id="session", reason="no space", errno=28))
            with pytest.raises(StorageRejected):
                stream.write("b")
            stream.write("b")

    run_agent(agent, sink=sink)
    assert [chunk["chunk_seq"] for chunk in chunks_of(sink)] == [0, 1, 2]
    assert assembled(sink) == b"ab"


def test_a_result_has_a_limit() -> None:
    target = RecordingTarget()
    stream = ResultStream(target, result_id="res_1", summary=None, chunk_bytes_max=100, bytes_max=1000)
    with stream:
        stream.write(b"x" * 900)
        with pytest.raises(Exception, match="more than 1000 bytes"):
            stream.write(b"x" * 101)
        stream.write(b"x" * 100)
    assert stream.size_bytes == 1000


def test_a_result_that_is_not_chunked_is_bounded_by_what_one_event_may_hold() -> None:
    def agent(ctx: AgentContext, _input: Any) -> None:
        with ctx.result_stream() as stream:
            for _ in range(100):
                stream.write("x" * 100_000)

    job = run_agent(agent, features=frozenset())
    assert job.result_fields is None
    assert "900000 bytes" in (job.error_fields or {})["message"]


class RecordingTarget:
    """Keeps chunks."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    def emit_chunks(self, bodies: list[dict[str, Any]]) -> None:
        self.bodies += bodies


def test_threads_may_write_one_result() -> None:
    target = RecordingTarget()
    stream = ResultStream(target, result_id="res_1", summary=None, chunk_bytes_max=8, bytes_max=10_000)

    def write(letter: str) -> None:
        for _ in range(20):
            stream.write(letter * 20)

    with stream:
        threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
    text = "".join(body["data"] for body in target.bodies)
    pieces = [text[start : start + 20] for start in range(0, len(text), 20)]

    assert [body["chunk_seq"] for body in target.bodies] == list(range(len(target.bodies)))
    assert sorted(pieces) == sorted(letter * 20 for letter in "abcd" for _ in range(20))


@given(
    st.one_of(st.binary(max_size=400), st.text(st.characters(exclude_categories=["Cs"]), max_size=200)),
    st.integers(min_value=8, max_value=60),
)
def test_pieces_fit_and_are_the_whole(data: str | bytes, bytes_max: int) -> None:
    pieces = list(pieces_of(data, bytes_max=bytes_max))
    again = RecordingSink()
    again.events = [("result_chunk", {"data": piece, "encoding": encoding}) for piece, encoding in pieces]

    assert all(len(orjson.dumps(piece)) - 2 <= bytes_max for piece, _ in pieces)
    assert assembled(again) == (data if isinstance(data, bytes) else data.encode())


def test_what_comes_after_the_end_is_refused() -> None:
    kept: list[AgentContext] = []
    job = used(kept.append)
    (ctx,) = kept
    for use in (
        lambda: ctx.thought("late"),
        lambda: ctx.emit_many([("thought", {"text": "late"})]),
        lambda: ctx.authorize("fs.read", "/x"),
        ctx.result_stream,
    ):
        with pytest.raises(JobEnded):
            use()
    assert job.events == []
    assert ctx.cancelled.is_set()
