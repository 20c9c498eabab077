"""Rows of a session, and pages of them."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

from .protocol import Envelope, RowMark

__all__ = ["Row", "RowPage"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row as its last change left it.

    Attributes:
        row_id: the row.
        position: where it stands: the number of the event that created it.
        event: its last change. Its payload is the content.
    """

    row_id: str
    position: int
    event: Envelope

    @property
    def last_seq(self) -> int:
        """Number of the row's last change."""
        return self.event.event_seq or 0

    @property
    def type(self) -> str:
        """Type of the last change."""
        return self.event.type

    @property
    def payload(self) -> Any:
        """The content."""
        return self.event.payload

    @property
    def job_id(self) -> str | None:
        """The job that the last change belongs to."""
        return self.event.job_id

    @property
    def id(self) -> str | None:
        """Event id of the last change."""
        return self.event.id

    @property
    def timestamp(self) -> dt.datetime | None:
        """When the last change happened."""
        return self.event.timestamp

    @property
    def final(self) -> bool:
        """Whether the last change was called the last (``Session.upsert(final=True)``)."""
        return self.event.extensions.get("row_final") is True

    @classmethod
    def of(cls, mark: RowMark, event: Envelope) -> Row:
        """Return the row whose last change this is."""
        return cls(row_id=mark.row_id, position=mark.position, event=event)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RowPage:
    """Some neighbouring rows.

    Attributes:
        rows: ascending by position.
        has_more: there are more in the direction of the page: older ones for the newest page and ``before``, newer ones
            for ``after``.
        last_seq: number of the last event that the page includes; subscribe from the next one to see what changes.
        first_position, last_position: of the first and last row here, 0 when there are none.
    """

    rows: tuple[Row, ...]
    has_more: bool
    last_seq: int

    @property
    def first_position(self) -> int:
        """Position of the first row here, 0 when there is none."""
        return self.rows[0].position if self.rows else 0

    @property
    def last_position(self) -> int:
        """Position of the last row here, 0 when there is none."""
        return self.rows[-1].position if self.rows else 0
