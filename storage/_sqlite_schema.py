"""The tables of the SQLite engine, and how a database gets them.

The version is ``PRAGMA user_version``, and ``application_id`` says whose database it is, so that no other program's is
taken for a store. A later version adds a step to ``_STEPS``; opening runs the steps that a database lacks, in one
transaction under the write lock.
"""

from __future__ import annotations

import sqlite3

__all__ = ["APPLICATION_ID", "SCHEMA_VERSION", "SchemaRefused", "holds_store", "is_current", "migrate", "pragma"]

APPLICATION_ID = 0x6C6F676D  # "logm"

# Ids are TEXT compared byte by byte, what JSON is stored as is BLOB: bytes go in and out as they are. `through_seq` is
# the high-water, kept apart from the rows, so that no number is given again whatever becomes of them.
_TABLES = (
    """
    CREATE TABLE session (
        key INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        last_seq INTEGER NOT NULL DEFAULT 0,
        through_seq INTEGER NOT NULL DEFAULT 0,
        halt_reason TEXT,
        halt_at TEXT,
        halt_first_event_id TEXT,
        CHECK (last_seq >= 0 AND through_seq >= last_seq)
    )
    """,
    """
    CREATE TABLE event (
        session INTEGER NOT NULL REFERENCES session (key),
        seq INTEGER NOT NULL CHECK (typeof(seq) = 'integer' AND seq > 0),
        id TEXT NOT NULL,
        head BLOB NOT NULL,
        payload BLOB NOT NULL,
        crc INTEGER NOT NULL,
        PRIMARY KEY (session, seq)
    ) WITHOUT ROWID
    """,
    "CREATE UNIQUE INDEX event_id ON event (session, id)",
    """
    CREATE TABLE reservation (
        session INTEGER NOT NULL REFERENCES session (key),
        first_seq INTEGER NOT NULL CHECK (first_seq > 0),
        last_seq INTEGER NOT NULL CHECK (last_seq >= first_seq),
        PRIMARY KEY (session, first_seq)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE quarantine (
        session INTEGER NOT NULL REFERENCES session (key),
        seq, id, head, payload, crc,
        reason TEXT NOT NULL,
        at TEXT NOT NULL
    )
    """,
    """
    CREATE TABLE snapshot (
        session INTEGER NOT NULL REFERENCES session (key),
        name TEXT NOT NULL,
        seq INTEGER NOT NULL,
        event_crc INTEGER NOT NULL,
        data BLOB NOT NULL,
        crc INTEGER NOT NULL,
        PRIMARY KEY (session, name)
    )
    """,
    """
    CREATE VIEW log AS
    SELECT session.id AS session,
           event.seq AS seq,
           event.id AS id,
           json_extract('{' || CAST(head AS TEXT) || '}', '$.ts') AS ts,
           json_extract('{' || CAST(head AS TEXT) || '}', '$.type') AS type,
           json_extract('{' || CAST(head AS TEXT) || '}', '$.job') AS job,
           CAST(payload AS TEXT) AS payload
    FROM event JOIN session ON session.key = event.session
    """,
)
# A session ends at `final_seq` once it is sealed or deleted: the database itself refuses what a program of an earlier
# version would append.
_LIFETIMES = (
    """
    ALTER TABLE session
    ADD COLUMN pruned_through INTEGER NOT NULL DEFAULT 0 CHECK (pruned_through BETWEEN 0 AND through_seq)
    """,
    "ALTER TABLE session ADD COLUMN sealed_at TEXT",
    "ALTER TABLE session ADD COLUMN deleted_at TEXT",
    "ALTER TABLE session ADD COLUMN final_seq INTEGER CHECK (final_seq IS NULL OR last_seq <= final_seq)",
    """
    CREATE TABLE record (
        session INTEGER NOT NULL REFERENCES session (key),
        name TEXT NOT NULL,
        version INTEGER NOT NULL CHECK (version > 0),
        data BLOB NOT NULL,
        crc INTEGER NOT NULL,
        PRIMARY KEY (session, name)
    )
    """,
)
_STEPS: tuple[tuple[str, ...], ...] = (_TABLES, _LIFETIMES)
SCHEMA_VERSION = len(_STEPS)


class SchemaRefused(Exception):
    """The database is not one that this version may use; the text says why."""


def is_current(connection: sqlite3.Connection) -> bool:
    """Say whether the database has every table; False when it is new or older.

    Raises:
        SchemaRefused: it is newer, or another program's.
    """
    application = pragma(connection, "application_id")
    version = pragma(connection, "user_version")
    if application == APPLICATION_ID:
        if version > SCHEMA_VERSION:
            message = (
                f"its tables are of version {version}, this logmark knows {SCHEMA_VERSION};"
                " open it with the version of logmark that made it, or a later one"
            )
            raise SchemaRefused(message)
        return version == SCHEMA_VERSION
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application or version or tables:
        message = "it is a database of another program"
        raise SchemaRefused(message)
    return False


def holds_store(connection: sqlite3.Connection) -> bool:
    """Say whether there is a store in the database, of whatever version."""
    return pragma(connection, "application_id") == APPLICATION_ID


def migrate(connection: sqlite3.Connection) -> None:
    """Run the steps that the database lacks; the caller holds the write lock and commits.

    Raises:
        SchemaRefused: as ``is_current`` does: another process may have been first.
    """
    if is_current(connection):
        return
    for step in _STEPS[pragma(connection, "user_version") :]:
        for statement in step:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def pragma(connection: sqlite3.Connection, name: str) -> int:
    """Return a setting or a count of the database."""
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)
