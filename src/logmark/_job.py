"""One job of a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ._subscription import Subscription
from .protocol import Envelope, JobMark

if TYPE_CHECKING:
    from ._session import Session

__all__ = ["Job"]


class Job:
    """One job of a session: its events and its mark."""

    __slots__ = ("_mark_of", "job_id", "session")

    def __init__(self, session: Session, job_id: str, mark_of: Callable[[str], JobMark]) -> None:
        self.session = session
        self.job_id = job_id
        self._mark_of = mark_of

    @property
    def mark(self) -> JobMark:
        """The job's mark now; it includes every append that has returned."""
        return self._mark_of(self.job_id)

    def append(self, type: str, payload: Any = None, **options: Any) -> int:
        """Append an event of this job; see ``Session.append``."""
        return self.session.append(type, payload, job_id=self.job_id, **options)

    def read(self, from_seq: int | Envelope = 1, limit: int | None = None) -> Iterator[Envelope]:
        """Iterate over the events of this job; see ``Session.read``."""
        return self.session.read(from_seq, limit, self.job_id)

    def subscribe(self, from_seq: int | Envelope | None = None, *, control: bool = False) -> Subscription:
        """Follow this job; see ``Session.subscribe``."""
        return self.session.subscribe(from_seq, self.job_id, control=control)

    def __repr__(self) -> str:
        return f"<Job {self.job_id!r} of {self.session.session_id!r}>"
