"""Agents of a module that prints when it is imported, and again when it registers them."""

from __future__ import annotations

import arcp_agents

import logmark

print("loading agents")  # noqa: T201


def register(runtime: logmark.Runtime) -> None:
    """Register them, with a word."""
    print("registering agents")  # noqa: T201
    arcp_agents.register(runtime)
