"""The errors of views that are derived from the log; the whole tree is drawn in ``_errors``."""

from __future__ import annotations

from ._errors import LogmarkError

__all__ = ["InvalidPosition", "ProjectionBusy", "ProjectionHalted"]


class ProjectionHalted(LogmarkError):
    """A projection stands still at an event that it could not apply. Log and session are not concerned.

    Attributes:
        name: the projection.
        seq: the event.
        reason: what ``apply`` has raised.
        halted_at: RFC 3339 time, or None when it happened just now.
    """

    def __init__(self, *, session_id: str, name: str, seq: int, reason: str, halted_at: str | None = None) -> None:
        self.session_id = session_id
        self.name = name
        self.seq = seq
        self.reason = reason
        self.halted_at = halted_at
        since = "" if halted_at is None else f" since {halted_at}"
        super().__init__(
            f"session {session_id!r}: projection {name!r} is halted{since} at event {seq}: {reason}; mend apply(), then"
            " clear_halt(), and it goes on with this event"
        )


class ProjectionBusy(LogmarkError):
    """Somebody else is at the same view.

    Attributes:
        name: the projection.
        path: its view.
    """

    def __init__(self, *, session_id: str, name: str, path: str) -> None:
        self.session_id = session_id
        self.name = name
        self.path = path
        super().__init__(
            f"session {session_id!r}: projection {name!r} is at work elsewhere on {path}; let one process run it, and"
            " close it there before it goes on here"
        )


class InvalidPosition(LogmarkError, ValueError):
    """What was given is no position of a feed, or a damaged one."""

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"not a position of a feed: {reason}; pass on what FeedEvent.position or Feed.position returned"
        )
