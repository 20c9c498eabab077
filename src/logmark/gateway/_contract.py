"""The seam between the two halves of the gateway: who runs agents, and who talks to clients.

The agent side implements ``AgentCatalogue`` and ``JobRunner`` and is handed a ``JobSink`` for every job. The wire side
implements ``JobSink``: what it takes is durable, numbered and delivered when it returns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal, Protocol

__all__ = ["AgentCatalogue", "AgentEntry", "JobRunner", "JobSink", "JobSpec", "TerminalStatus"]

TerminalStatus = Literal["error", "cancelled", "timed_out"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """An accepted job, as its runner gets it.

    Attributes:
        agent, version: resolved; the job never moves to another version (ARCP draft, section 7.5).
        lease: the effective lease, namespace to patterns; empty when none was asked for.
        expires_at_ns: when the lease ends, in nanoseconds since 1970, or None.
        max_runtime_s: seconds the agent may run, or None.
        features: what the submitting session has negotiated; an event kind outside it must not be emitted
            (``progress``, ``result_chunk``; ARCP draft, section 6.2).
    """

    session_id: str
    job_id: str
    principal: str
    agent: str
    version: str
    input: Any
    lease: Mapping[str, Sequence[str]]
    expires_at_ns: int | None
    max_runtime_s: float | None
    trace_id: str | None
    parent_job_id: str | None
    features: frozenset[str]


class JobSink(Protocol):
    """Where a job's events go. Safe from any thread; implemented by the wire side.

    Emits and the terminal of one job are serialised: no event lands behind the terminal, and exactly one terminal is
    written, whoever comes first (the agent's return, a cancel, a deadline, the end of the process).
    """

    @property
    def event_bytes_max(self) -> int:
        """Largest JSON text of one body, so that the frame passes every transport of this gateway."""
        ...

    @property
    def chunk_bytes_max(self) -> int:
        """Largest ``data`` text of one ``result_chunk``, already encoded (base64 or UTF-8)."""
        ...

    def emit(self, kind: str, body: Mapping[str, Any]) -> int:
        """Append one ``job.event`` and return its number once it is durable.

        Raises:
            JobEnded: the job has its terminal.
            AppendError: the event was not stored; nobody sees it.
        """
        ...

    def emit_many(self, events: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[int, int]:
        """Append several ``job.event``s, all of them or none, and return the first and the last number."""
        ...

    def started(self) -> None:
        """Note that the agent has begun: the job is no longer ``pending`` but ``running``. Not an event."""
        ...

    def result(
        self,
        result: Any = None,
        *,
        result_id: str | None = None,
        result_size: int | None = None,
        summary: str | None = None,
    ) -> bool:
        """End the job with ``job.result``; False when it had its terminal already.

        Raises:
            InvalidEvent: the result cannot be stored as it is; the job has not ended.
            AppendError: it was not stored; the job has not ended, as far as the log goes.
        """
        ...

    def error(
        self,
        code: str,
        message: str,
        *,
        retryable: bool,
        status: TerminalStatus = "error",
        details: Mapping[str, Any] | None = None,
    ) -> bool:
        """End the job with ``job.error``; False when it had its terminal already. Raises as ``result`` does."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class AgentEntry:
    """An agent in one version."""

    name: str
    version: str


class AgentCatalogue(Protocol):
    """Which agents there are. Safe from any thread; implemented by the agent side."""

    def resolve(self, agent: str) -> AgentEntry:
        """Return the agent of ``name`` (its default version) or ``name@version``.

        Raises:
            RequestRefused: AGENT_NOT_AVAILABLE, AGENT_VERSION_NOT_AVAILABLE, or INVALID_REQUEST for a malformed name.
        """
        ...

    def describe(self) -> list[dict[str, Any]]:
        """Return ``{"name", "versions", "default"}`` of every agent, for ``session.welcome``."""
        ...

    def features(self) -> frozenset[str]:
        """Return the features of the draft that the agent side enforces: leases, progress, chunks, versions."""
        ...

    def check_lease(
        self, lease_request: Any, lease_constraints: Any, *, now_ns: int, features: frozenset[str]
    ) -> tuple[dict[str, list[str]], dict[str, Any] | None]:
        """Return the effective lease and constraints.

        Raises:
            RequestRefused: INVALID_REQUEST: malformed, in the past, or a feature that was not negotiated.
        """
        ...

    def budget(self, lease: Mapping[str, Sequence[str]]) -> dict[str, Decimal] | None:
        """Return the counters that a lease starts with, None without ``cost.budget``."""
        ...


class JobRunner(Protocol):
    """Runs agents. Safe from any thread; never blocks its caller; implemented by the agent side."""

    def start(self, job: JobSpec, sink: JobSink) -> None:
        """Queue a job. Its terminal comes through the sink, whatever happens.

        Raises:
            Overloaded, or another LogmarkError: it cannot be queued; the caller ends the job.
        """
        ...

    def cancel(self, job_id: str, reason: str) -> bool:
        """Ask a job to end with CANCELLED; False when it is not queued or running here."""
        ...

    def budget(self, job_id: str) -> dict[str, Decimal] | None:
        """Return the current counters of a job that is queued or running here, else None."""
        ...

    def drain(self, timeout_s: float) -> None:
        """Take no new job, wait for those there are, then end what is left with INTERNAL_ERROR, retryable."""
        ...

    def close(self) -> None:
        """Stop the threads. After ``drain``."""
        ...
