"""logmark on its engines with a server or a database, and plain clients that do the same work there.

The same work: dense numbers from a counter of the session, and an id for each event that the database keeps unique.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from typing import Any
from urllib.parse import quote

import orjson

import logmark

from ._base import Caller, Events, Participant, Payload, Tally
from ._group import GroupCaller, GroupWriter
from ._logmark import Logmark
from ._postgres import PostgreSql, insert_many
from ._sqlite import SqliteGroup, SqlitePlain

__all__ = ["LogmarkOnPostgres", "LogmarkOnSqlite", "PostgresEach", "PostgresGrouped", "SqliteEach", "SqliteGrouped"]


_PREFIX = "grouped-"  # its sessions are others than those of the client that shares the tables


class LogmarkOnSqlite(Logmark):
    """The SQLite engine with its defaults."""

    name = "logmark-sqlite"
    label = "logmark on SQLite"

    @staticmethod
    def store(directory: str) -> str:
        """Return the URL of the store."""
        return f"sqlite:{os.path.join(directory, 'store.db')}"


_SQLITE_SCHEMA = """
CREATE TABLE sessions (session TEXT PRIMARY KEY, last_seq INTEGER NOT NULL) WITHOUT ROWID;
DROP TABLE events;
CREATE TABLE events (session TEXT, seq INTEGER, id TEXT, payload BLOB, PRIMARY KEY (session, seq)) WITHOUT ROWID;
CREATE UNIQUE INDEX event_ids ON events (session, id);
"""
_COUNT = """
INSERT INTO sessions VALUES (?, ?)
ON CONFLICT (session) DO UPDATE SET last_seq = last_seq + excluded.last_seq RETURNING last_seq
"""
_INSERT = "INSERT INTO events VALUES (?, ?, ?, ?)"


def _write(connection: sqlite3.Connection, groups: dict[str, list[bytes]]) -> dict[str, int]:
    """Commit the payloads of each session, and return its last number before them."""
    connection.execute("BEGIN IMMEDIATE")
    lasts: dict[str, int] = {}
    for session_id, payloads in groups.items():
        ((last,),) = connection.execute(_COUNT, (session_id, len(payloads))).fetchall()
        lasts[session_id] = last - len(payloads)
        now = f"{time.time_ns():016x}"
        connection.executemany(
            _INSERT,
            [
                (session_id, seq, f"{now}{seq:010x}", payload)
                for seq, payload in enumerate(payloads, lasts[session_id] + 1)
            ],
        )
    connection.execute("COMMIT")
    return lasts


class SqliteGrouped(SqliteGroup):
    """A thread that commits all that waits."""

    def open(self, directory: str) -> None:
        """Make the tables for the same work."""
        super().open(directory)
        self.writing.executescript(_SQLITE_SCHEMA)

    def _commit(self, groups: dict[str, list[bytes]]) -> dict[str, int]:
        return _write(self.writing, groups)


class _EachCaller(Caller):
    def __init__(self, connection: sqlite3.Connection, lock: threading.Lock, session_id: str) -> None:
        self._connection = connection
        self._lock = lock
        self._session_id = session_id

    def append(self, payload: Payload) -> int:
        row = orjson.dumps(payload)
        with self._lock:
            return _write(self._connection, {self._session_id: [row]})[self._session_id] + 1


class SqliteEach(SqlitePlain):
    """A commit for each call."""

    has_batches = False

    def open(self, directory: str) -> None:
        """Make the tables for the same work."""
        super().open(directory)
        self.writing.executescript(_SQLITE_SCHEMA)
        self._turn = threading.Lock()

    def caller(self, session_id: str) -> Caller:
        """Share the connection."""
        return _EachCaller(self.writing, self._turn, session_id)


class LogmarkOnPostgres(Logmark):
    """The PostgreSQL engine with its defaults, on a server that is up.

    Args:
        server: the participant that has started it.
    """

    name = "logmark-postgres"
    label = "logmark on PostgreSQL"

    def __init__(self, server: PostgreSql) -> None:
        super().__init__()
        self._server = server

    def open(self, directory: str) -> None:
        """Open a store in a schema of its own."""
        host = quote(self._server.directory, safe="")
        self._runtime = logmark.open(f"postgresql://postgres@/postgres?host={host}&logmark_schema=logmark")


class PostgresEach(PostgreSql):
    """A connection for each caller, and a commit for each call: the number and the row in one statement."""

    name = "postgres-each"
    label = "PostgreSQL, a commit each"
    has_submit = False

    def open(self, directory: str) -> None:
        """Start the server, and make the tables for the same work."""
        super().open(directory)
        with self.connect() as connection:
            connection.execute("ALTER TABLE events ADD COLUMN id bigserial, ADD UNIQUE (session, id)")


class PostgresGrouped(Participant):
    """A thread that commits all that waits: for one session, as most often here, in one statement and round trip.

    Args:
        server: the participant that has started the server; its tables are used.
    """

    name = "postgres-grouped"
    label = "PostgreSQL, group commit"
    has_submit = True

    def __init__(self, server: PostgreSql) -> None:
        self._server = server
        self._connection: Any = None
        self._writer: GroupWriter | None = None

    def open(self, directory: str) -> None:
        """Connect, and start the thread."""
        self._connection = self._server.connect()
        self._writer = GroupWriter(self._commit)

    def _commit(self, groups: dict[str, list[bytes]]) -> dict[str, int]:
        if len(groups) == 1:
            return self._insert(groups)
        with self._connection.transaction():
            return self._insert(groups)

    def _insert(self, groups: dict[str, list[bytes]]) -> dict[str, int]:
        lasts: dict[str, int] = {}
        with self._connection.cursor() as cursor:
            for session_id, payloads in groups.items():
                last = insert_many(cursor, session_id, [payload.decode() for payload in payloads])
                lasts[session_id] = last - len(payloads)
        return lasts

    def caller(self, session_id: str) -> Caller:
        """Hand everything to the thread."""
        if self._writer is None:
            raise RuntimeError("not open")
        return GroupCaller(self._writer, _PREFIX + session_id)

    def tally(self, session_id: str) -> Tally:
        """Ask the table."""
        return self._server.tally(_PREFIX + session_id)

    def replay(self, session_id: str, from_seq: int = 1, *, ahead: int = 1000) -> Events:
        """Read as the other client does."""
        return self._server.replay(_PREFIX + session_id, from_seq, ahead=ahead)

    def close(self) -> None:
        """Stop the thread, and leave the server."""
        if self._writer is not None:
            self._writer.stop()
            self._writer = None
            self._connection.close()
