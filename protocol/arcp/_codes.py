"""Error codes: the table of the ARCP draft, section 12, and how a request is declined."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["ERROR_CODES", "Refusal"]

ERROR_CODES: Mapping[str, bool] = {
    # code: retryable unless the one who refuses knows better. Sections 9.5 and 9.6 forbid retries of the lease codes,
    # section 12 calls INTERNAL_ERROR always retryable.
    "PERMISSION_DENIED": False,
    "LEASE_SUBSET_VIOLATION": False,
    "JOB_NOT_FOUND": False,
    "DUPLICATE_KEY": False,
    "AGENT_NOT_AVAILABLE": False,
    "AGENT_VERSION_NOT_AVAILABLE": False,
    "CANCELLED": False,
    "TIMEOUT": False,
    "RESUME_WINDOW_EXPIRED": False,
    "HEARTBEAT_LOST": True,
    "LEASE_EXPIRED": False,
    "BUDGET_EXHAUSTED": False,
    "INVALID_REQUEST": False,
    "UNAUTHENTICATED": False,
    "INTERNAL_ERROR": True,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a request that is declined.

    Attributes:
        code: one of ``ERROR_CODES``.
        message: what is wrong; never a secret, a path or a payload, nor anything that tells whether a job of another
            principal exists.
    """

    code: str
    message: str
    job_id: str | None = None

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return ERROR_CODES[self.code]

    def payload(self, request_id: str | None) -> dict[str, Any]:
        """Return the payload of ``session.error``; ``request_id`` and ``job_id`` say what it answers."""
        members: dict[str, Any] = {"code": self.code, "message": self.message, "retryable": self.retryable}
        if request_id is not None:
            members["request_id"] = request_id
        if self.job_id is not None:
            members["job_id"] = self.job_id
        return members
