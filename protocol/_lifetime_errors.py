"""The errors of a session's lifetime, and of what its readers keep; the whole tree is drawn in ``_errors``."""

from __future__ import annotations

from ._errors import AppendRejected, LogmarkError

__all__ = ["RecordChanged", "SeqPruned", "SessionDeleted", "SessionSealed"]


class SessionSealed(AppendRejected):
    """The session was sealed: it takes no event any more, and everything in it can be read."""

    def __init__(self, *, session_id: str, last_seq: int) -> None:
        self.session_id = session_id
        self.last_seq = last_seq
        super().__init__(
            f"session {session_id!r} is sealed: it ends with event {last_seq} for good; append to another session"
        )


class SessionDeleted(AppendRejected):
    """The session was deleted: its events are gone, and its numbers are not given again.

    Attributes:
        last_seq: the last number that the session had used.
        deleted_at: RFC 3339 time, in UTC.
    """

    def __init__(self, *, session_id: str, last_seq: int, deleted_at: str) -> None:
        self.session_id = session_id
        self.last_seq = last_seq
        self.deleted_at = deleted_at
        super().__init__(
            f"session {session_id!r} was deleted at {deleted_at}, after event {last_seq}; its id is not used again:"
            " open a session by another"
        )


class SeqPruned(LogmarkError):
    """What was asked for lies before the first event that is kept.

    Attributes:
        seq: the number that was asked for.
        first_available: the smallest number that can be asked for; an event of that number need not be there yet.
    """

    def __init__(self, *, session_id: str, seq: int, first_available: int) -> None:
        self.session_id = session_id
        self.seq = seq
        self.first_available = first_available
        super().__init__(
            f"session {session_id!r}: event {seq} was pruned, the first that is available is {first_available}; read"
            " from there, and take what came before from where it was kept"
        )


class RecordChanged(LogmarkError):
    """A record is no longer of the version that was to be replaced: somebody else was quicker.

    Attributes:
        version: the version that it has now, 0 when it is not there.
    """

    def __init__(self, *, session_id: str, name: str, version: int) -> None:
        self.session_id = session_id
        self.name = name
        self.version = version
        super().__init__(f"session {session_id!r}: record {name!r} has version {version} now; load it and decide again")
