"""The errors of readers that come back later; the whole tree is drawn in ``_errors``."""

from __future__ import annotations

from ._errors import LogmarkError

__all__ = ["StaleCursor", "UpcastFailed"]


class StaleCursor(LogmarkError, ValueError):
    """A cursor was acknowledged in another log than this one, such as before the store was restored from a copy.

    Attributes:
        name: the cursor.
        seq: its position.
        event_id: id of the event that was acknowledged.
        found_id: id of the event that has this number now.
    """

    def __init__(self, *, session_id: str, name: str, seq: int, event_id: str, found_id: str) -> None:
        self.session_id = session_id
        self.name = name
        self.seq = seq
        self.event_id = event_id
        self.found_id = found_id
        super().__init__(
            f"session {session_id!r}: cursor {name!r} stands at event {seq}, whose id was {event_id!r} and is"
            f" {found_id!r} now: the log is not the one that was read; delete the cursor and start again from a"
            " position that is known"
        )


class UpcastFailed(LogmarkError):
    """An upcaster of the embedding program raised; what it raised is the cause. The event itself is as it was.

    Attributes:
        seq: the event.
        type: its type.
        version: the version of the payload that the upcaster was given.
    """

    def __init__(self, *, session_id: str | None, seq: int | None, type: str, version: int, reason: str) -> None:
        self.session_id = session_id
        self.seq = seq
        self.type = type
        self.version = version
        self.reason = reason
        super().__init__(
            f"session {session_id!r}: the upcaster of {type!r} from version {version} failed at event {seq}: {reason};"
            " mend it and read again, or read the event as it was written with read_raw()"
        )
