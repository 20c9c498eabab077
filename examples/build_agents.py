# ruff: noqa: INP001 - a module of a program
"""Two agents for ``logmark serve``: a build that reports its steps, and a report that is streamed.

    logmark serve --agents build_agents:register --token-file tokens

Run it in this directory; ``build_client.py`` is a client for it.
"""

from __future__ import annotations

from typing import Any

import logmark
from logmark.errors import JobFailed
from logmark.gateway import AgentContext


def build(ctx: AgentContext, input: dict[str, Any]) -> dict[str, Any]:
    """Compile some targets, one after the other, and say so."""
    targets = input.get("targets")
    if not isinstance(targets, list) or not targets:
        raise JobFailed("the input needs a list of targets", code="INVALID_REQUEST")
    ctx.status("building", f"{len(targets)} targets")
    for number, target in enumerate(targets, 1):
        call = ctx.tool_call("compile", {"target": target})
        if ctx.cancelled.wait(input.get("seconds_each", 0.05)):  # instead of sleep(): a cancel ends it at once
            ctx.log("warn", "stopped on request", done=number - 1)
            return {}
        ctx.tool_result(call, {"warnings": 0})
        ctx.metric("cost.compile", 0.01, unit="USD")
        ctx.progress(number, total=len(targets), units="targets", message=str(target))
    ctx.artifact("file:build/out.tar", "application/x-tar")
    return {"built": targets}


def report(ctx: AgentContext, input: dict[str, Any]) -> None:
    """Write a long text, piece by piece."""
    lines = int(input.get("lines", 1000))
    with ctx.result_stream(summary=f"a report of {lines} lines") as stream:
        for start in range(0, lines, 500):
            numbers = range(start, min(start + 500, lines))
            stream.write("".join(f"line {number}: all is well\n" for number in numbers))


def register(runtime: logmark.Runtime) -> None:
    """Register the agents; ``logmark serve`` calls this."""
    runtime.agent("build", version="1.0.0")(build)
    runtime.agent("report", version="1.0.0")(report)
