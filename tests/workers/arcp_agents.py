"""Agents for servers in tests, in one process with them or in ``logmark serve --agents arcp_agents:register``."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import logmark
from logmark.gateway import AgentContext


def quick(ctx: AgentContext, input: Any) -> Any:
    """Answer with the input."""
    return input


def steps(ctx: AgentContext, input: Any) -> dict[str, int]:
    """Log some steps, and pause where told."""
    count, pause_at = input["count"], input.get("pause_at")
    for number in range(1, count + 1):
        ctx.progress(number, total=count, units="steps")
        if number == pause_at:
            ctx.cancelled.wait(input.get("pause_s", 30))
        elif "every_s" in input:
            ctx.cancelled.wait(input["every_s"])
    return {"steps": count}


def gated(ctx: AgentContext, input: Any) -> str:
    """Log, wait for a file to appear, log again."""
    ctx.log("info", "waiting")
    deadline = time.monotonic() + 60
    while not Path(input["gate"]).exists() and not ctx.cancelled.wait(0.02) and time.monotonic() < deadline:
        pass
    for number in range(input.get("then", 1)):
        ctx.log("info", f"after {number}")
    return "through"


def every_kind(ctx: AgentContext, input: Any) -> str:
    """Emit every kind of event."""
    ctx.log("warning", "careful", path="/x")
    ctx.thought("hm")
    ctx.status("working", "on it")
    call_id = ctx.tool_call("search", {"q": "x"})
    ctx.tool_result(call_id, {"hits": 3})
    ctx.tool_result(ctx.tool_call("fetch"), error="no network")
    ctx.metric("rows", 3, unit="k")
    ctx.metric("cost.search", 0.25, unit="USD")
    ctx.artifact("file:out.tar", "application/x-tar", byte_size=10)
    ctx.progress(1, total=2)
    ctx.emit("x-vendor.test.note", {"any": ["thing"]})
    return "done"


def stream(ctx: AgentContext, input: Any) -> None:
    """Stream a result of some size; fail in the middle if told to."""
    with ctx.result_stream(summary="streamed") as result:
        for part in input["parts"]:
            result.write(part * input.get("times", 1))
        if input.get("bytes"):
            result.write(bytes(range(256)) * input["bytes"])
        if input.get("fail"):
            raise RuntimeError("in the middle")


def bulk(ctx: AgentContext, input: Any) -> Any:
    """Emit many events, many in one commit."""
    count, size = input["count"], input.get("size", 20)
    for start in range(0, count, 500):
        numbers = range(start, min(start + 500, count))
        ctx.emit_many([("log", {"level": "info", "message": str(number).ljust(size, ".")}) for number in numbers])
    return count


def obey(ctx: AgentContext, input: Any) -> None:
    """Wait to be cancelled, and say so."""
    ctx.log("info", "ready")
    ctx.cancelled.wait(60)
    ctx.status("cleaning up")


def hang(ctx: AgentContext, input: Any) -> str:
    """Hear nothing."""
    ctx.log("info", "ready")
    threading.Event().wait(input.get("seconds", 3) if isinstance(input, dict) else 3)
    return "much later"


def fail(ctx: AgentContext, input: Any) -> None:
    """Raise."""
    ctx.log("info", "ready")
    raise ValueError("/secret/path")


def count_runs(ctx: AgentContext, input: Any) -> int:
    """Leave a trace for every run in a file."""
    with open(input["file"], "a", encoding="utf-8") as trace:
        trace.write(f"{ctx.job_id}\n")
    return os.getpid()


def chatty(ctx: AgentContext, input: Any) -> None:
    """Print, which must not disturb the client at standard output."""
    print("hello from the agent")  # noqa: T201
    os.write(1, b"hello from its child\n")
    ctx.log("info", "printed")


def spend(ctx: AgentContext, input: Any) -> str | None:
    """Report costs, and say what trace this is."""
    for cost in input:
        ctx.metric("cost.search", cost, unit="USD")
    return ctx.trace_id


def environment(ctx: AgentContext, input: Any) -> list[str]:
    """Tell what the programs that an agent starts would find in their environment."""
    return sorted(os.environ)


def family(ctx: AgentContext, input: Any) -> str | None:
    """Tell the parent."""
    return ctx.parent_job_id


AGENTS = (
    quick,
    steps,
    gated,
    every_kind,
    stream,
    bulk,
    obey,
    hang,
    fail,
    count_runs,
    chatty,
    spend,
    environment,
    family,
)


def register(runtime: logmark.Runtime) -> None:
    """Register all of them."""
    for agent in AGENTS:
        runtime.agent(agent.__name__, version="1.0.0")(agent)
    runtime.agent("quick", version="2.0.0")(lambda ctx, input: {"version": ctx.version, "input": input})


def register_nothing(runtime: logmark.Runtime) -> None:
    """Register none of them."""


def register_badly(runtime: logmark.Runtime) -> None:
    """Fail."""
    raise RuntimeError("no agents today")
