"""The cursors of a session: how far its readers have come."""

from __future__ import annotations

from ._cursor import Cursor, CursorMark, cursor_marks, delete_cursor
from ._session_core import SessionCore
from .protocol import ForeignCursor

__all__ = ["SessionCursors"]


class SessionCursors(SessionCore):
    """The part of a session that has its cursors."""

    def cursor(self, name: str) -> Cursor:
        """Return the cursor of that name; it is kept from its first ``ack`` on.

        Args:
            name: non-empty text of at most 193 UTF-8 bytes.

        Raises:
            CursorAhead: it stands beyond the log.
            StaleCursor: the event it stands at is another one now, as after the store was restored from an older copy.
            InvalidArgument: no valid name.
            SessionDeleted: the session was deleted.
            LogCorrupt, SchemaMismatch: what was kept, or the log where it stands, cannot be read.
        """
        return Cursor(self._runtime, self._id, name)

    def _own_cursor(self, cursor: str | Cursor) -> Cursor:
        """Return a cursor of this session, given itself or by name."""
        if not isinstance(cursor, Cursor):
            return self.cursor(cursor)
        if cursor.session_id != self._id:
            raise ForeignCursor(session_id=self._id, cursor_session_id=cursor.session_id)
        return cursor

    def cursors(self) -> list[CursorMark]:
        """Return how far each cursor of the session has come, also of a halted session, in the order of their names.

        Raises:
            SessionDeleted: the session was deleted, and its cursors with it.
            LogCorrupt, SchemaMismatch: what was kept, or the end of the log, cannot be trusted.
        """
        self._runtime.check_usable()
        return cursor_marks(self._runtime.store, self._id)

    def delete_cursor(self, name: str) -> bool:
        """Remove a cursor durably, also one that ``cursor`` refuses; False when there is none of that name."""
        self._runtime.check_usable()
        return delete_cursor(self._runtime.store, self._id, name)
