"""``session.list_jobs`` (section 6.6): filters, a cursor that survives removals, pages bounded by bytes."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from ._codes import Refusal
from ._connection import Listed
from ._frames import time_text
from ._ledger import JobRecord, Ledger
from ._requests import ListJobs

__all__ = ["JobState", "accepted_payload", "agent_name", "list_jobs", "subscribed_payload"]

JobState = Callable[[JobRecord], tuple[str, int]]
"""How a job stands now: its status, and the number of its last event."""


def agent_name(job: JobRecord) -> str:
    """Return ``name@version`` (section 7.5)."""
    return f"{job.agent}@{job.version}"


def _cursor(key: tuple[int, str]) -> str:
    return base64.urlsafe_b64encode(f"{key[0]}:{key[1]}".encode()).decode()


def _key(cursor: str) -> tuple[int, str] | None:
    try:
        at_ns, found, job_id = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode().partition(":")
        return (int(at_ns), job_id) if found else None
    except (binascii.Error, ValueError):  # UnicodeError is a ValueError
        return None


def _entry(job: JobRecord, status: str, last_event_seq: int) -> dict[str, Any]:
    created_at = time_text(job.accepted_at_ns)
    entry: dict[str, Any] = {
        "job_id": job.job_id,
        "agent": agent_name(job),
        "status": status,
        "lease": dict(job.lease),
        "parent_job_id": job.parent_job_id,
        "created_at": created_at,
        "submitted_at": created_at,  # what published clients call it
        "last_event_seq": last_event_seq,
    }
    return entry | _present(lease_constraints=job.lease_constraints, trace_id=job.trace_id)


def _present(**members: Any) -> dict[str, Any]:
    """Leave out what is not there: some clients take an absent member and refuse null."""
    return {name: value for name, value in members.items() if value is not None}


def _wanted(request: ListJobs, ledger: Ledger, after: tuple[int, str] | None) -> Iterator[JobRecord]:
    since_ns = request.created_after_ns
    if since_ns is not None and (after is None or after[0] <= since_ns):
        after = (since_ns + 1, "")  # strictly later
    for job in ledger.jobs_after(after):
        if request.agent is None or request.agent in (job.agent, agent_name(job)):
            yield job


def list_jobs(request: ListJobs, ledger: Ledger, state: JobState, *, jobs_max: int, bytes_max: int) -> Listed | Refusal:
    """Return one page, oldest first. It has at most ``jobs_max`` jobs and ``bytes_max`` bytes, and at least one job."""
    after = None
    if request.cursor is not None:
        after = _key(request.cursor)
        if after is None:
            return Refusal("INVALID_REQUEST", "the cursor is none of this server's")
    limit = jobs_max if request.limit is None else min(request.limit, jobs_max)
    page: list[Mapping[str, Any]] = []
    size = 0
    last: tuple[int, str] | None = None
    for job in _wanted(request, ledger, after):
        status, last_event_seq = state(job)
        if request.statuses is not None and status not in request.statuses:
            continue
        entry = _entry(job, status, last_event_seq)
        size += len(orjson.dumps(entry)) + 1
        if page and last is not None and (len(page) >= limit or size > bytes_max):
            return Listed(page, _cursor(last))
        page.append(entry)
        last = job.key
    return Listed(page, None)


def accepted_payload(job: JobRecord, budget: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the payload of ``job.accepted`` (section 7.1), the same whenever it is asked for (section 7.2)."""
    payload: dict[str, Any] = {
        "job_id": job.job_id,
        "agent": agent_name(job),
        "accepted_at": time_text(job.accepted_at_ns),
        "lease": dict(job.lease),
    }
    return payload | _present(
        lease_constraints=job.lease_constraints,
        budget=budget,
        trace_id=job.trace_id,
        parent_job_id=job.parent_job_id,
    )


def subscribed_payload(
    job: JobRecord, budget: Mapping[str, Any] | None, *, status: str, high_water: int, replayed: bool
) -> dict[str, Any]:
    """Return the payload of ``job.subscribed`` (section 7.6): the job's authority, and where its events stand."""
    payload: dict[str, Any] = {
        "job_id": job.job_id,
        "current_status": status,
        "agent": agent_name(job),
        "lease": dict(job.lease),
        "parent_job_id": job.parent_job_id,
        "subscribed_from": high_water,
        "replayed": replayed,
    }
    return payload | _present(lease_constraints=job.lease_constraints, budget=budget, trace_id=job.trace_id)
