"""The network side: ARCP over WebSocket and stdio, and the agents that do the work of jobs."""

from __future__ import annotations

from ._agents import AgentFunction, Agents
from ._context import AgentContext
from ._contract import AgentCatalogue, AgentEntry, JobRunner, JobSink, JobSpec, TerminalStatus
from ._gateway import Gateway, serve
from ._limits import GatewayLimits
from ._runner import Runner
from ._stdio import serve_stdio
from ._stream import ResultStream
from ._tokens import parse_tokens, read_token_file

__all__ = [
    "AgentCatalogue",
    "AgentContext",
    "AgentEntry",
    "AgentFunction",
    "Agents",
    "Gateway",
    "GatewayLimits",
    "JobRunner",
    "JobSink",
    "JobSpec",
    "ResultStream",
    "Runner",
    "TerminalStatus",
    "parse_tokens",
    "read_token_file",
    "serve",
    "serve_stdio",
]
