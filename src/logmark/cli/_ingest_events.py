"""What the readers of foreign logs make of a line."""

from __future__ import annotations

import dataclasses
import enum

from ..protocol import Envelope, InvalidArgument, check_session_id

__all__ = ["ORIGIN_SEQ", "ForeignEvent", "MalformedLine", "NotStored"]

ORIGIN_SEQ = "origin_seq"
"""The extension field that keeps the number an event had in the log it comes from."""


class MalformedLine(ValueError):
    """A line that holds no event and no envelope; the message says why, in words for the log's owner."""


class NotStored(enum.Enum):
    """A valid line that is no event of a session."""

    CONTROL = "a control envelope, which has no number"
    CLIENT = "a frame from the client to the server"


@dataclasses.dataclass(frozen=True, slots=True)
class ForeignEvent:
    """An event to append.

    Attributes:
        session_id: the session it belongs to.
        envelope: its fields; ``id`` is set, so that appending it twice stores it once.
        origin_seq: its number in the foreign log, or None when it had none there.
        is_row: it is a row of an event store, whose file has every number of the session, ascending.
    """

    session_id: str
    envelope: Envelope
    origin_seq: int | None
    is_row: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no session id."""
        try:
            check_session_id(self.session_id)
        except InvalidArgument as error:
            raise MalformedLine(str(error)) from error
