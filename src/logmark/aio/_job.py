"""One job of a session, from an event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..protocol import Envelope, JobMark
from ._reading import AsyncEvents
from ._subscription import AsyncSubscription

if TYPE_CHECKING:
    from ._session import AsyncSession

__all__ = ["AsyncJob"]


class AsyncJob:
    """One job of a session: its events and its mark; see ``Job``."""

    __slots__ = ("job_id", "session")

    def __init__(self, session: AsyncSession, job_id: str) -> None:
        self.session = session
        self.job_id = job_id

    async def mark(self) -> JobMark:
        """Return the job's mark now; it includes every append that has returned."""
        return (await self.session.marks(self.job_id))[0]

    async def append(self, type: str, payload: Any = None, **options: Any) -> int:
        """Append an event of this job; see ``AsyncSession.append``."""
        return await self.session.append(type, payload, job_id=self.job_id, **options)

    def read(self, from_seq: int | Envelope = 1, limit: int | None = None) -> AsyncEvents:
        """Iterate over the events of this job; see ``AsyncSession.read``."""
        return self.session.read(from_seq, limit, self.job_id)

    def subscribe(self, from_seq: int | Envelope | None = None, *, control: bool = False) -> AsyncSubscription:
        """Follow this job; see ``AsyncSession.subscribe``."""
        return self.session.subscribe(from_seq, self.job_id, control=control)

    def __repr__(self) -> str:
        return f"<AsyncJob {self.job_id!r} of {self.session.session_id!r}>"
