"""What a process knows of the sessions in a SQLite database: how far they went, and halts that it could not write."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from typing import NamedTuple, cast

from ..protocol import Clock, LogCorrupt, SessionDeleted, row_seed
from ._clock import rfc3339
from ._logging import Logger
from ._sqlite_db import CommitUncertain, Database, DatabaseBusy
from ._sqlite_rows import SessionRow, find_session, row_problem
from ._store import HaltRecord

__all__ = ["SessionEnd", "SqliteSessions", "damage_of", "make_session"]


# In one statement, as others may be writing.
_END = """
    SELECT last_seq, pruned_through, seq, event.id, head, payload, crc
    FROM session LEFT JOIN event ON session = key AND seq = (SELECT max(seq) FROM event WHERE session = key)
    WHERE key = ?
"""


class SessionEnd(NamedTuple):
    """Where this process's last commit has left a session; others may have been there since.

    Attributes:
        generation: of the database, as ``Database.generation`` counts it.
        key: what its events call it.
        seq: number of its last event.
        through: its high-water.
    """

    generation: int
    key: int
    seq: int
    through: int


class SqliteSessions:
    """The sessions of one store, as one process has seen them. Safe from any thread."""

    def __init__(self, database: Database, clock: Clock, log: Logger) -> None:
        self._database = database
        self._clock = clock
        self._log = log
        self._mutex = threading.Lock()
        self._checked: set[str] = set()
        self._generation = 0
        self._seen: dict[str, int] = {}
        self._ends: dict[str, SessionEnd] = {}
        self.unwritten: dict[str, HaltRecord] = {}
        """Halts that the database has refused; they hold in this process."""

    def row(self, connection: sqlite3.Connection, session_id: str, *, damaged_ok: bool = False) -> SessionRow | None:
        """Return what the database says of a session, once it was seen that the end of its events agrees.

        Raises:
            LogCorrupt: it does not, or there was more before.
        """
        if self._generation != self._database.generation:  # another file: nothing is known of it yet
            self._generation = self._database.generation
            self._checked.clear()
        seen = self._seen.get(session_id, 0)  # before the question, as another thread may be appending
        row = find_session(connection, session_id)
        if damaged_ok:
            return row
        through = 0 if row is None else row.through
        if through < seen:
            raise damage_of(session_id, f"events {through + 1} to {seen} were durable and are missing", through + 1)
        if row is None:
            return None
        if session_id not in self._checked and row.deleted_at is None:
            self._check_end(connection, session_id, row)
        if through > seen:
            self.note(session_id, through)
        return row

    def note(self, session_id: str, through: int) -> None:
        """Remember how far a session was seen to go."""
        with self._mutex:
            self._seen[session_id] = max(self._seen.get(session_id, 0), through)
            self._checked.add(session_id)

    def note_end(self, session_id: str, end: SessionEnd) -> None:
        """Remember where a commit has left a session."""
        self.note(session_id, end.through)
        self._ends[session_id] = end

    def end_of(self, session_id: str) -> SessionEnd | None:
        """Return where this process's last commit has left a session, to be believed only when the database agrees.

        None when somebody was seen to go further: then what is there must be compared with that.
        """
        end = self._ends.get(session_id)
        return None if end is None or end.through < self._seen.get(session_id, 0) else end

    def seen(self, session_id: str) -> int:
        """Return the last number that this process saw used."""
        return self._seen.get(session_id, 0)

    def forget(self, session_id: str) -> None:
        """Look at the end of a session anew when it is next asked for."""
        with self._mutex:
            self._checked.discard(session_id)
            self._ends.pop(session_id, None)

    def halt_of(self, session_id: str, row: SessionRow | None) -> HaltRecord | None:
        """Return why a session is halted, by its row or in this process only."""
        return (None if row is None else row.halt) or self.unwritten.get(session_id)

    def _check_end(self, connection: sqlite3.Connection, session_id: str, row: SessionRow) -> None:
        (last_seq, pruned, *last) = connection.execute(_END, (row.key,)).fetchone()
        found = last[0] or 0
        if found < last_seq and last_seq > pruned:
            found = max(found, pruned)
            raise damage_of(session_id, f"events {found + 1} to {last_seq} were durable and are missing", found + 1)
        if found > last_seq:
            raise damage_of(session_id, f"event {found} is beyond the last one that was committed", found)
        problem = row_problem(tuple(last), row_seed(session_id)) if found else None
        if problem is not None:
            raise damage_of(session_id, problem, found)
        self._checked.add(session_id)

    def keep_halt(self, session_id: str, reason: str, first_event_id: str | None) -> None:
        """Halt a session in this process; ``record_halt`` makes it durable."""
        record = HaltRecord(
            session_id=session_id, reason=reason, at=rfc3339(self._clock.time_ns()), first_event_id=first_event_id
        )
        self.unwritten.setdefault(session_id, record)

    def record_halt(self, session_id: str) -> None:
        """Write a halt that was kept, and say so, or that it could not be written.

        Raises:
            SessionDeleted: there is no session to be halted any more.
        """
        log = self._log.bind(session=session_id)
        record = self.unwritten[session_id]
        try:
            record = self._write_halt(session_id, record)
        except (DatabaseBusy, CommitUncertain, sqlite3.Error, OSError) as error:
            log.error("halt_marker_unwritten", error=f"{type(error).__name__}: {error}")
        log.error("session_halted", reason=record.reason, first_event_id=record.first_event_id)

    def _write_halt(self, session_id: str, record: HaltRecord) -> HaltRecord:
        """Make a halt durable and return the one that stands, which is the first."""

        def work(connection: sqlite3.Connection) -> HaltRecord:
            row = find_session(connection, session_id)
            if row is not None:
                row.check_not_deleted(session_id)
                if row.halt is not None:
                    return row.halt
            key = make_session(connection, session_id) if row is None else row.key
            connection.execute(
                "UPDATE session SET halt_reason = ?, halt_at = ?, halt_first_event_id = ? WHERE key = ?",
                (record.reason, record.at, record.first_event_id, key),
            )
            self._database.commit(connection)
            return record

        try:
            standing = self._database.transact(work)
        except SessionDeleted:
            self.unwritten.pop(session_id, None)
            raise
        self.unwritten.pop(session_id, None)
        return standing

    def offer_halt(self, session_id: str) -> None:
        """Offer the database once more a halt that it has refused: only one that it has can be repaired away."""
        record = self.unwritten.get(session_id)
        if record is not None:
            # A refusal was said the first time; a session that was deleted needs no halt.
            with contextlib.suppress(DatabaseBusy, CommitUncertain, SessionDeleted, sqlite3.Error, OSError):
                self._write_halt(session_id, record)


def damage_of(session_id: str, reason: str, event_seq: int | None = None) -> LogCorrupt:
    """Return the error for a session whose rows are not what they were."""
    return LogCorrupt(session_id=session_id, reason=reason, event_seq=event_seq, segment=None, offset=None)


def make_session(connection: sqlite3.Connection, session_id: str) -> int:
    """Insert the row of a session and return its key."""
    key = connection.execute("INSERT INTO session (id) VALUES (?)", (session_id,)).lastrowid
    return cast("int", key)
