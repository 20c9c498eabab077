"""How sessions in a SQLite database are pruned, sealed and deleted, and the records that are kept beside them.

Events are removed in steps, each a transaction of its own that also raises the first number that is available: whoever
appends waits for a step at most, the write-ahead log stays small, and a step that was not made is made by the next
call. What this frees is given back to the file system once it is worth it.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable
from typing import TypeVar

from ..protocol import (
    Clock,
    CursorAhead,
    Limits,
    LockTimeout,
    LogmarkError,
    RecordChanged,
    SessionDeleted,
    SessionHalted,
    StorageUnavailable,
    row_seed,
)
from ._clock import rfc3339
from ._logging import Logger
from ._patience import WouldWait
from ._plan import record_checksum, truncated_partly
from ._sqlite_append import CORRUPT
from ._sqlite_db import CommitUncertain, Database, DatabaseBusy, errno_of, primary_code
from ._sqlite_rows import SessionRow, find_session, record_problem, remove_events
from ._sqlite_schema import pragma
from ._sqlite_sessions import SqliteSessions, damage_of, make_session
from ._store import Record

__all__ = ["SqliteLifetimes"]

T = TypeVar("T")

_STEP_ROWS = 5000
_STEP_PAGES = 1000
_STEP_BYTES = 4 * 1024 * 1024  # that a step writes about, so that the log is copied after it
_BURY = (
    "DELETE FROM record WHERE session = ?",
    "DELETE FROM snapshot WHERE session = ?",
    "DELETE FROM reservation WHERE session = ?",
    "DELETE FROM quarantine WHERE session = ?",
)
_FREE_PAGES_MIN = 256
_FREE_PART = 8
"""Free pages are given back once they are more than this part of the file."""


@dataclasses.dataclass(frozen=True, slots=True)
class SqliteLifetimes:
    """Prunes, seals and deletes the sessions of one store, and keeps records. Safe from any thread."""

    database: Database
    sessions: SqliteSessions
    limits: Limits
    clock: Clock
    log: Logger

    # -- records ------------------------------------------------------------------------------------------------

    def records(self, session_id: str, name: str | None = None) -> dict[str, Record]:
        """Return the records of a session, or the one of a name; raises as ``EventStore.load_record`` does."""
        with self.database.reader() as connection:
            rows = connection.execute(
                "SELECT name, version, data, record.crc FROM record JOIN session ON session = key"
                " WHERE id = ?1 AND (?2 IS NULL OR name = ?2) ORDER BY name",
                (session_id, name),
            ).fetchall()
            row = find_session(connection, session_id)
        if row is not None:
            row.check_not_deleted(session_id)
        seed = row_seed(session_id)
        found: dict[str, Record] = {}
        for each in rows:
            problem = record_problem(each, seed)
            if problem is not None:
                raise damage_of(session_id, problem)
            found[each[0]] = Record(each[2], each[1])
        return found

    def save_record(self, session_id: str, name: str, data: bytes | None, *, version: int) -> int:
        """See ``EventStore.save_record``."""

        def work(connection: sqlite3.Connection) -> int:
            row = find_session(connection, session_id)
            if row is not None:
                row.check_not_deleted(session_id)
            found = connection.execute(
                "SELECT version FROM record WHERE session = ? AND name = ?", (row.key if row else 0, name)
            ).fetchone()
            known = 0 if found is None else found[0]
            if known != version:
                raise RecordChanged(session_id=session_id, name=name, version=known)
            if data is None:
                if found is None or row is None:
                    return 0
                connection.execute("DELETE FROM record WHERE session = ? AND name = ?", (row.key, name))
            else:
                key = make_session(connection, session_id) if row is None else row.key
                checksum = record_checksum(row_seed(session_id), name, version + 1, data)
                connection.execute(
                    "INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?, ?)", (key, name, version + 1, data, checksum)
                )
            self.database.grow(len(data or b""))
            self.database.commit(connection)
            return 0 if data is None else version + 1

        return self._change(session_id, work)

    # -- the end of events, and of sessions ---------------------------------------------------------------------

    def truncate_before(self, session_id: str, seq: int) -> int:
        """See ``EventStore.truncate_before``."""

        def step(connection: sqlite3.Connection) -> tuple[int, bool]:
            return self._truncate_step(connection, session_id, seq)

        first, is_done = self._change(session_id, step)
        while not is_done:
            try:
                first, is_done = self._change(session_id, step)
            except SessionDeleted:
                raise
            except LogmarkError as error:
                raise truncated_partly(self.database.url, session_id, first, seq, error) from error
        self._give_back()
        return first

    def _truncate_step(self, connection: sqlite3.Connection, session_id: str, seq: int) -> tuple[int, bool]:
        """Remove some events, and return the first number that is available then, and whether this was all."""
        row = self._writable(connection, session_id)
        if seq > (1 if row is None else row.through + 1):
            raise CursorAhead(session_id=session_id, cursor=seq, last_seq=0 if row is None else row.seq)
        if row is None or seq <= row.first_available:
            return 1 if row is None else row.first_available, True
        more = connection.execute(
            "SELECT seq FROM event WHERE session = ? AND seq <= ? ORDER BY seq LIMIT 1 OFFSET ?",
            (row.key, seq - 1, _STEP_ROWS),
        ).fetchone()
        first: int = seq if more is None else more[0]
        connection.execute("DELETE FROM event WHERE session = ? AND seq <= ?", (row.key, first - 1))
        connection.execute("DELETE FROM reservation WHERE session = ? AND last_seq <= ?", (row.key, first - 1))
        connection.execute("UPDATE session SET pruned_through = ? WHERE key = ?", (first - 1, row.key))
        self.database.grow(_STEP_BYTES)
        self.database.commit(connection)
        return first, more is None

    def seal(self, session_id: str) -> int:
        """See ``EventStore.seal``."""

        def work(connection: sqlite3.Connection) -> int:
            row = self._writable(connection, session_id)
            if row is None:
                row = SessionRow(make_session(connection, session_id), 0, 0, None)
            if row.sealed_at is None:
                connection.execute(
                    "UPDATE session SET sealed_at = ?, final_seq = last_seq WHERE key = ?",
                    (rfc3339(self.clock.time_ns()), row.key),
                )
                self.database.commit(connection)
            return row.seq

        return self._change(session_id, work)

    def delete(self, session_id: str) -> None:
        """See ``EventStore.delete``: first the tombstone, which ends the session at once, then the events."""

        def bury(connection: sqlite3.Connection) -> int:
            row = find_session(connection, session_id)
            if row is not None and row.deleted_at is not None:
                return row.key
            key = make_session(connection, session_id) if row is None else row.key
            through = max(0 if row is None else row.through, self.sessions.seen(session_id))
            connection.execute(
                "UPDATE session SET deleted_at = ?1, last_seq = ?2, through_seq = ?2, final_seq = ?2,"
                " pruned_through = ?2, sealed_at = NULL, halt_reason = NULL, halt_at = NULL, halt_first_event_id = NULL"
                " WHERE key = ?3",
                (rfc3339(self.clock.time_ns()), through, key),
            )
            for statement in _BURY:
                connection.execute(statement, (key,))
            self.database.commit(connection)
            return key

        def remove(connection: sqlite3.Connection) -> bool:
            removed = remove_events(connection, key, _STEP_ROWS)
            if removed:
                self.database.grow(_STEP_BYTES)
                self.database.commit(connection)
            return removed == _STEP_ROWS

        key = self._change(session_id, bury)
        self.sessions.unwritten.pop(session_id, None)
        self.sessions.forget(session_id)
        while self._change(session_id, remove):
            pass
        self._give_back()

    def _writable(self, connection: sqlite3.Connection, session_id: str) -> SessionRow | None:
        row = self.sessions.row(connection, session_id)
        if row is not None:
            row.check_not_deleted(session_id)
        halt = self.sessions.halt_of(session_id, row)
        if halt is not None:
            raise SessionHalted(session_id=session_id, reason=halt.reason, halted_at=halt.at)
        return row

    def _give_back(self) -> None:
        """Give free pages back to the file system when they are many; the file shrinks as the log is copied into it.

        Whatever keeps this from being done, the events are gone, and their pages are used for new ones.
        """

        def work(connection: sqlite3.Connection) -> bool:
            free, pages = pragma(connection, "freelist_count"), pragma(connection, "page_count")
            if free < max(_FREE_PAGES_MIN, pages // _FREE_PART):
                return False
            for _ in range(min(free, _STEP_PAGES)):
                connection.execute("PRAGMA incremental_vacuum(1)")  # one, as Python's module makes a single step of it
            if pragma(connection, "page_count") == pages:
                return False  # a file of an earlier version, which only VACUUM makes smaller
            self.database.grow(_STEP_BYTES)
            self.database.commit(connection)
            return free > _STEP_PAGES

        try:
            while self.database.transact(work, synced=False):
                pass
        except (DatabaseBusy, CommitUncertain, WouldWait, sqlite3.Error, OSError) as error:
            self.log.warning("space_kept", store=self.database.url, error=f"{type(error).__name__}: {error}")

    def _change(self, session_id: str, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` in a transaction; what is raised says whether it may have been done."""
        url = self.database.url
        try:
            return self.database.transact(work)
        except DatabaseBusy as busy:
            raise LockTimeout(
                session_id=session_id, waited_s=self.limits.lock_wait_s, holder_pid=busy.holder_pid
            ) from busy
        except CommitUncertain as uncertain:
            reason = f"{uncertain}; whether it was done is unknown, and doing it again settles it"
            raise StorageUnavailable(store=url, reason=reason) from uncertain
        except sqlite3.Error as error:
            if primary_code(error) in CORRUPT:
                raise damage_of(session_id, str(error)) from error
            reason = f"nothing was done: {type(error).__name__}: {error}"
            raise StorageUnavailable(store=url, reason=reason, errno=errno_of(error)) from error
        except (LogmarkError, WouldWait):  # some of which are OSErrors too
            raise
        except OSError as error:
            reason = f"nothing was done: {type(error).__name__}: {error}"
            raise StorageUnavailable(store=url, reason=reason, errno=error.errno) from error
