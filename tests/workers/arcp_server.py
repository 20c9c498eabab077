"""Serve a store on a free port, print the URL, and go on until the input ends (or until killed).

Usage: arcp_server.py STORE TICK_S
"""

from __future__ import annotations

import sys
from typing import Any

import logmark
from logmark.gateway import AgentContext, GatewayLimits


def main() -> None:
    with logmark.open(sys.argv[1]) as runtime:

        @runtime.agent("begin", version="1.0.0")
        def begin(ctx: AgentContext, given: Any) -> Any:
            for index in range(given["n"]):
                ctx.log("info", str(index))
            ctx.cancelled.wait()

        @runtime.agent("count", version="1.0.0")
        def count(ctx: AgentContext, given: Any) -> Any:
            for index in range(given["n"]):
                ctx.log("info", str(index))
            return given["n"]

        with logmark.serve(
            runtime, tokens={"token": "alice"}, limits=GatewayLimits(tick_interval_s=float(sys.argv[2]))
        ) as gateway:
            sys.stdout.write(f"{gateway.url}\n")
            sys.stdout.flush()
            sys.stdin.read()


if __name__ == "__main__":
    main()
