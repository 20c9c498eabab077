"""A durable cursor, from an event loop."""

from __future__ import annotations

from .._cursor import Cursor
from ..protocol import Envelope
from ._bridge import Bridges

__all__ = ["AsyncCursor"]


class AsyncCursor:
    """A reader's position in a session, which outlives the process; ``Cursor``, from an event loop."""

    __slots__ = ("_bridges", "cursor")

    def __init__(self, bridges: Bridges, cursor: Cursor) -> None:
        self._bridges = bridges
        self.cursor = cursor
        """The cursor itself, whose calls block."""

    @property
    def name(self) -> str:
        """The cursor's name."""
        return self.cursor.name

    async def position(self) -> int:
        """Return the number of the last event that was acknowledged, 0 when none was."""
        return await self._bridges.run(lambda: self.cursor.position)

    async def lag(self) -> int:
        """Return how many numbers the log is ahead of the position."""
        return await self._bridges.run(lambda: self.cursor.lag)

    async def ack(self, event: int | Envelope) -> int:
        """Acknowledge everything up to an event and return the position, once it is durable; see ``Cursor.ack``.

        When the caller is cancelled, it is acknowledged all the same.
        """
        return await self._bridges.run(lambda: self.cursor.ack(event))

    async def delete(self) -> None:
        """Remove the cursor durably."""
        await self._bridges.run(self.cursor.delete)

    def __repr__(self) -> str:
        return f"<AsyncCursor {self.name!r} of {self.cursor.session_id!r}>"
