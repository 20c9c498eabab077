"""SQLite as a careful program would use it: WAL, ``synchronous=FULL``, numbers from the table itself."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Sequence

import orjson

from ._base import Caller, Events, Participant, Payload, Tally
from ._group import GroupCaller, GroupWriter

__all__ = ["SqliteGroup", "SqlitePlain"]

_SCHEMA = "CREATE TABLE events (session TEXT, seq INTEGER, payload BLOB, PRIMARY KEY (session, seq)) WITHOUT ROWID"
_LAST = "SELECT COALESCE(MAX(seq), 0) FROM events WHERE session = ?"
_INSERT = "INSERT INTO events VALUES (?, ?, ?)"


class _Sqlite(Participant):
    """A table in a file, and one connection that writes."""

    def __init__(self) -> None:
        self._path = ""
        self._writing: sqlite3.Connection | None = None

    def open(self, directory: str) -> None:
        """Make the table."""
        self._path = os.path.join(directory, "events.db")
        self._writing = self._connect()
        self._writing.execute(_SCHEMA)

    @property
    def writing(self) -> sqlite3.Connection:
        """The connection that writes."""
        if self._writing is None:
            raise RuntimeError("not open")
        return self._writing

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def tally(self, session_id: str) -> Tally:
        """Ask the table; its key keeps numbers from repeating."""
        row = self.writing.execute("SELECT COUNT(*), MIN(seq), MAX(seq) FROM events WHERE session = ?", (session_id,))
        count, first, last = row.fetchone()
        return Tally(count, first or 0, last or 0)

    def replay(self, session_id: str, from_seq: int = 1, *, ahead: int = 1000) -> Events:
        """Read on a connection of its own."""
        loads, connection = orjson.loads, self._connect()
        try:
            rows = connection.execute(
                "SELECT seq, payload FROM events WHERE session = ? AND seq >= ? ORDER BY seq", (session_id, from_seq)
            )
            for seq, payload in rows:
                yield seq, loads(payload)
        finally:
            connection.close()

    def close(self) -> None:
        """Close the file."""
        if self._writing is not None:
            self._writing.close()
            self._writing = None


class _PlainCaller(Caller):
    def __init__(self, connection: sqlite3.Connection, lock: threading.Lock, session_id: str) -> None:
        self._connection = connection
        self._lock = lock
        self._session_id = session_id

    def append(self, payload: Payload) -> int:
        return self.append_batch((payload,))

    def append_batch(self, payloads: Sequence[Payload]) -> int:
        rows = [orjson.dumps(payload) for payload in payloads]
        execute, session_id = self._connection.execute, self._session_id
        with self._lock:
            execute("BEGIN IMMEDIATE")
            last: int = execute(_LAST, (session_id,)).fetchone()[0]
            numbered = [(session_id, seq, row) for seq, row in enumerate(rows, last + 1)]
            if len(numbered) == 1:
                execute(_INSERT, numbered[0])
            else:
                self._connection.executemany(_INSERT, numbered)
            execute("COMMIT")
        return last + len(rows)


class SqlitePlain(_Sqlite):
    """``MAX(seq) + 1`` and a commit for each call. A lock in the process spares the callers SQLite's busy waiting."""

    name = "sqlite"
    label = "SQLite, a commit each"

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def caller(self, session_id: str) -> Caller:
        """Share the connection."""
        return _PlainCaller(self.writing, self._lock, session_id)


class SqliteGroup(_Sqlite):
    """A thread that commits all that waits in one transaction."""

    name = "sqlite-group"
    label = "SQLite, group commit"
    has_submit = True

    def __init__(self) -> None:
        super().__init__()
        self._writer: GroupWriter | None = None

    def open(self, directory: str) -> None:
        """Start the thread as well."""
        super().open(directory)
        self._writer = GroupWriter(self._commit)

    def _commit(self, groups: dict[str, list[bytes]]) -> dict[str, int]:
        connection = self.writing
        connection.execute("BEGIN IMMEDIATE")
        lasts = {session_id: connection.execute(_LAST, (session_id,)).fetchone()[0] for session_id in groups}
        connection.executemany(
            _INSERT,
            [
                (session_id, seq, payload)
                for session_id, payloads in groups.items()
                for seq, payload in enumerate(payloads, lasts[session_id] + 1)
            ],
        )
        connection.execute("COMMIT")
        return lasts

    def caller(self, session_id: str) -> Caller:
        """Hand everything to the thread."""
        if self._writer is None:
            raise RuntimeError("not open")
        return GroupCaller(self._writer, session_id)

    def close(self) -> None:
        """Stop the thread first."""
        if self._writer is not None:
            self._writer.stop()
            self._writer = None
        super().close()
