"""Pages of a session."""

from __future__ import annotations

import dataclasses

from .protocol import Envelope

__all__ = ["Page"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some consecutive events of a session.

    Attributes:
        events: ascending.
        has_more: there are more in the direction of the page: older ones for the newest page and ``before``, newer ones
            for ``after``.
        first_seq, last_seq: the numbers of the first and last event here, 0 when there are none.
    """

    events: tuple[Envelope, ...]
    has_more: bool

    @property
    def first_seq(self) -> int:
        """Number of the first event here, 0 when there is none."""
        return self.events[0].event_seq or 0 if self.events else 0

    @property
    def last_seq(self) -> int:
        """Number of the last event here, 0 when there is none."""
        return self.events[-1].event_seq or 0 if self.events else 0
