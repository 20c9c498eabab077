"""The tables of a PostgreSQL store, how they are made and brought up to date, and every statement that uses them."""

from __future__ import annotations

import dataclasses
from typing import cast

from ..protocol import SEQ_MAX
from ._postgres_pool import Connection
from ._postgres_url import check_schema

__all__ = ["STORE_VERSION", "NoStore", "SchemaUnusable", "Statements", "find_schema", "open_schema"]

# What is text to us is bytea to the server: ids may hold any character, NUL included, are compared byte by byte, and no
# encoding or collation of the database can change them. `convert_from(session_id, 'UTF8')` shows one.
_MIGRATIONS = (
    """
    CREATE TABLE {schema}.logmark_sessions (
        session_key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        session_id bytea NOT NULL UNIQUE,
        last_seq bigint NOT NULL DEFAULT 0,
        through_seq bigint NOT NULL DEFAULT 0,
        prior_seq bigint NOT NULL DEFAULT 0,
        halted_at text,
        halt_reason bytea,
        halt_event_id bytea,
        CHECK (0 <= last_seq AND last_seq <= through_seq)
    ) WITH (fillfactor = 50);
    COMMENT ON COLUMN {schema}.logmark_sessions.last_seq IS 'number of the last event';
    COMMENT ON COLUMN {schema}.logmark_sessions.through_seq IS 'highest number that is used, by an event or not';
    COMMENT ON COLUMN {schema}.logmark_sessions.prior_seq IS 'last_seq before the last append';
    CREATE TABLE {schema}.logmark_events (
        session_key bigint NOT NULL,
        event_seq bigint NOT NULL,
        checksum bigint NOT NULL,
        event_id bytea NOT NULL,
        head bytea NOT NULL,
        payload bytea NOT NULL,
        CONSTRAINT logmark_events_by_seq PRIMARY KEY (session_key, event_seq),
        CONSTRAINT logmark_events_by_id UNIQUE (session_key, event_id)
    );
    CREATE TABLE {schema}.logmark_reservations (
        session_key bigint NOT NULL,
        first_seq bigint NOT NULL,
        last_seq bigint NOT NULL,
        reason bytea,
        PRIMARY KEY (session_key, first_seq),
        CHECK (first_seq <= last_seq)
    );
    CREATE TABLE {schema}.logmark_quarantine (
        session_key bigint NOT NULL,
        event_seq bigint NOT NULL,
        reason bytea NOT NULL,
        taken_at timestamptz NOT NULL DEFAULT now(),
        checksum bigint,
        event_id bytea,
        head bytea,
        payload bytea
    );
    CREATE TABLE {schema}.logmark_snapshots (
        session_key bigint NOT NULL,
        name bytea NOT NULL,
        event_seq bigint NOT NULL,
        event_checksum bigint NOT NULL,
        data bytea NOT NULL,
        checksum bigint NOT NULL,
        PRIMARY KEY (session_key, name)
    );
    CREATE VIEW {schema}.logmark_log AS
        SELECT convert_from(session_id, 'UTF8') AS session, event_seq AS seq,
            ('{' || convert_from(head, 'UTF8') || '}')::json ->> 'type' AS type,
            ('{' || convert_from(head, 'UTF8') || '}')::json ->> 'ts' AS ts,
            convert_from(event_id, 'UTF8') AS id,
            convert_from(payload, 'UTF8')::json AS payload
        FROM {schema}.logmark_events JOIN {schema}.logmark_sessions USING (session_key);
    """,
    # A session ends at `final_seq` once it is sealed or deleted: the server itself refuses what a program of an earlier
    # version would append. A record's token tells who wrote it, also when the answer to that was lost.
    """
    ALTER TABLE {schema}.logmark_sessions
        ADD COLUMN pruned_through bigint NOT NULL DEFAULT 0,
        ADD COLUMN sealed_at text,
        ADD COLUMN deleted_at text,
        ADD COLUMN final_seq bigint,
        ADD CONSTRAINT logmark_sessions_pruned CHECK (0 <= pruned_through AND pruned_through <= through_seq),
        ADD CONSTRAINT logmark_sessions_final CHECK (last_seq <= final_seq);
    COMMENT ON COLUMN {schema}.logmark_sessions.pruned_through IS 'highest number whose event was removed for good';
    COMMENT ON COLUMN {schema}.logmark_sessions.final_seq IS 'last number of a session that was sealed or deleted';
    CREATE TABLE {schema}.logmark_records (
        session_key bigint NOT NULL,
        name bytea NOT NULL,
        version bigint NOT NULL CHECK (version > 0),
        data bytea NOT NULL,
        checksum bigint NOT NULL,
        token bytea NOT NULL,
        PRIMARY KEY (session_key, name)
    );
    """,
)
"""What leads from each version of the tables to the next; a store is at version ``len`` of it."""

STORE_VERSION = len(_MIGRATIONS)

_MAKE = """
    CREATE SCHEMA IF NOT EXISTS {schema};
    CREATE TABLE IF NOT EXISTS {schema}.logmark_store (
        is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
        version integer NOT NULL
    );
    INSERT INTO {schema}.logmark_store (version) VALUES (0) ON CONFLICT DO NOTHING;
"""


class SchemaUnusable(Exception):
    """There is no store in the schema, or one that this version does not know."""


class NoStore(SchemaUnusable):
    """There is no store, and none is to be made."""


@dataclasses.dataclass(frozen=True, slots=True)
class Statements:
    """The statements of one store, with its schema's name in them.

    ``append`` is the whole of an append: it raises the counter under the session's row lock, writes the rows with the
    numbers that it gives, and answers with what it found; or it does nothing at all, when the session is not there, or
    halted, sealed or deleted, its last event is not the expected one, an id is taken, no number is left, or the log
    ends before what this process knows of it.
    """

    append: bytes
    add_sessions: bytes
    lock: bytes
    lock_whole: bytes
    find_ids: bytes
    session: bytes
    last_seqs: bytes
    info: bytes
    sessions: bytes
    read: bytes
    read_backwards: bytes
    reservations: bytes
    reserve: bytes
    raise_through: bytes
    halt: bytes
    clear_halt: bytes
    counters: bytes
    set_counters: bytes
    take_out: bytes
    load_snapshot: bytes
    save_snapshot: bytes
    step_end: bytes
    remove_through: bytes
    unreserve_through: bytes
    set_pruned: bytes
    seal: bytes
    bury: bytes
    bury_records: bytes
    bury_snapshots: bytes
    bury_reservations: bytes
    bury_quarantine: bytes
    left: bytes
    load_records: bytes
    insert_record: bytes
    replace_record: bytes
    remove_record: bytes
    take_out_record: bytes
    constraints: bytes
    orphans: bytes

    @classmethod
    def of(cls, schema: str) -> Statements:
        """Return the statements for a schema."""
        parts = {**_PARTS, "{schema}": _quoted(schema)}
        made: dict[str, bytes] = {}
        for field in dataclasses.fields(cls):
            text = _STATEMENTS[field.name]
            for name, part in parts.items():
                text = text.replace(name, part)
            made[field.name] = text.encode()
        return cls(**made)


_PARTS = {
    "{session_columns}": (
        "session_key, last_seq, through_seq, halted_at, halt_reason, halt_event_id,"
        " pruned_through, sealed_at, deleted_at"
    ),
    "{row_bytes}": "octet_length(head) + octet_length(payload)",
    "{seq_max}": str(SEQ_MAX),
}
_STATEMENTS = {
    # An UPDATE that has waited for the row lock looks at the row anew, so that the counter is never a stale one. The
    # look for ids may be stale by then; what it misses meets the unique constraint, and the append is tried carefully.
    "append": """
        WITH counted AS (
            UPDATE {schema}.logmark_sessions AS s
            SET prior_seq = last_seq, last_seq = through_seq + %(count)b, through_seq = through_seq + %(count)b
            WHERE session_id = %(session)b AND halted_at IS NULL AND final_seq IS NULL AND through_seq >= %(known)b
                AND through_seq <= {seq_max} - %(count)b
                AND (%(expected)b::bigint IS NULL OR last_seq = %(expected)b::bigint)
                AND NOT EXISTS (
                    SELECT FROM {schema}.logmark_events AS e
                    WHERE e.session_key = s.session_key AND e.event_id = ANY (%(doubtful)b::bytea[])
                )
            RETURNING session_key, prior_seq, through_seq - %(count)b AS base
        ), written AS (
            INSERT INTO {schema}.logmark_events (session_key, event_seq, checksum, event_id, head, payload)
            SELECT session_key, base + n, checksum # (base + n), event_id, head, payload
            FROM counted, unnest(%(ids)b::bytea[], %(heads)b::bytea[], %(payloads)b::bytea[], %(checksums)b::bigint[])
                WITH ORDINALITY AS e (event_id, head, payload, checksum, n)
        )
        SELECT prior_seq, base FROM counted
    """,
    "add_sessions": """
        INSERT INTO {schema}.logmark_sessions (session_id)
        SELECT id FROM unnest(%b::bytea[]) AS each (id) ORDER BY id ON CONFLICT DO NOTHING
    """,
    # Stronger than what an append takes: whoever saves a record, and so holds the row by its key, is waited for.
    "lock_whole": """
        SELECT session_id, {session_columns} FROM {schema}.logmark_sessions WHERE session_id = %b FOR UPDATE
    """,
    "lock": """
        SELECT session_id, {session_columns} FROM {schema}.logmark_sessions
        WHERE session_id = ANY (%b::bytea[]) ORDER BY session_id FOR NO KEY UPDATE
    """,
    "find_ids": """
        SELECT s.session_id, e.event_id, e.event_seq
        FROM unnest(%b::bytea[], %b::bytea[]) AS wanted (session_id, event_id)
        JOIN {schema}.logmark_sessions AS s USING (session_id)
        JOIN {schema}.logmark_events AS e ON e.session_key = s.session_key AND e.event_id = wanted.event_id
    """,
    "session": "SELECT {session_columns} FROM {schema}.logmark_sessions WHERE session_id = %b",
    "last_seqs": """
        SELECT session_id, {session_columns} FROM {schema}.logmark_sessions WHERE session_id = ANY (%b::bytea[])
    """,
    "info": """
        SELECT {session_columns},
            (SELECT min(event_seq) FROM {schema}.logmark_events AS e WHERE e.session_key = s.session_key)
        FROM {schema}.logmark_sessions AS s WHERE session_id = %b
    """,
    "sessions": """
        SELECT session_id FROM {schema}.logmark_sessions
        WHERE session_id > %b AND deleted_at IS NULL
            AND (through_seq > 0 OR halted_at IS NOT NULL OR sealed_at IS NOT NULL)
        ORDER BY session_id LIMIT %b
    """,
    # As many rows as there may be in a page, and of those as many as fit into its bytes, but at least one.
    "read": """
        SELECT event_seq, checksum, event_id, head, payload FROM (
            SELECT *, sum({row_bytes}) OVER (ORDER BY event_seq) - ({row_bytes}) AS bytes_before FROM (
                SELECT event_seq, checksum, event_id, head, payload FROM {schema}.logmark_events
                WHERE session_key = %b AND event_seq BETWEEN %b AND %b ORDER BY event_seq LIMIT %b
            ) AS rows
        ) AS page WHERE bytes_before < %b
    """,
    "read_backwards": """
        SELECT event_seq, checksum, event_id, head, payload FROM (
            SELECT *, sum({row_bytes}) OVER (ORDER BY event_seq DESC) - ({row_bytes}) AS bytes_before FROM (
                SELECT event_seq, checksum, event_id, head, payload FROM {schema}.logmark_events
                WHERE session_key = %b AND event_seq BETWEEN %b AND %b ORDER BY event_seq DESC LIMIT %b
            ) AS rows
        ) AS page WHERE bytes_before < %b
    """,
    "reservations": """
        SELECT first_seq, last_seq FROM {schema}.logmark_reservations
        WHERE session_key = %b AND last_seq >= %b AND first_seq <= %b ORDER BY first_seq
    """,
    "reserve": """
        INSERT INTO {schema}.logmark_reservations (session_key, first_seq, last_seq, reason) VALUES (%b, %b, %b, %b)
    """,
    "raise_through": "UPDATE {schema}.logmark_sessions SET through_seq = %b WHERE session_key = %b",
    "halt": """
        INSERT INTO {schema}.logmark_sessions AS s (session_id, halted_at, halt_reason, halt_event_id)
        VALUES (%b, %s, %b, %b)
        ON CONFLICT (session_id) DO UPDATE SET
            halted_at = excluded.halted_at, halt_reason = excluded.halt_reason, halt_event_id = excluded.halt_event_id
        WHERE s.halted_at IS NULL AND s.deleted_at IS NULL RETURNING session_key
    """,
    "clear_halt": """
        UPDATE {schema}.logmark_sessions SET halted_at = NULL, halt_reason = NULL, halt_event_id = NULL
        WHERE session_id = %b
    """,
    "counters": """
        SELECT s.last_seq, s.through_seq,
            (SELECT max(event_seq) FROM {schema}.logmark_events AS e WHERE e.session_key = s.session_key),
            (SELECT max(last_seq) FROM {schema}.logmark_reservations AS r WHERE r.session_key = s.session_key),
            s.pruned_through, s.deleted_at
        FROM {schema}.logmark_sessions AS s WHERE session_key = %b
    """,
    "set_counters": "UPDATE {schema}.logmark_sessions SET last_seq = %b, through_seq = %b WHERE session_key = %b",
    "take_out": """
        WITH bad AS (
            DELETE FROM {schema}.logmark_events WHERE session_key = %b AND event_seq = %b
            RETURNING session_key, event_seq, checksum, event_id, head, payload
        )
        INSERT INTO {schema}.logmark_quarantine (session_key, event_seq, checksum, event_id, head, payload, reason)
        SELECT session_key, event_seq, checksum, event_id, head, payload, %b FROM bad
    """,
    # Only one of this very log: the event that it goes up to is the one that it was saved with.
    "load_snapshot": """
        SELECT n.event_seq, n.data, n.checksum FROM {schema}.logmark_snapshots AS n
        JOIN {schema}.logmark_events AS e ON e.session_key = n.session_key AND e.event_seq = n.event_seq
        WHERE n.session_key = %b AND n.name = %b AND e.checksum = n.event_checksum
    """,
    "save_snapshot": """
        INSERT INTO {schema}.logmark_snapshots (session_key, name, event_seq, event_checksum, data, checksum)
        SELECT e.session_key, %b, e.event_seq, e.checksum, %b, %b
        FROM {schema}.logmark_events AS e JOIN {schema}.logmark_sessions AS s USING (session_key),
            (SELECT set_config('synchronous_commit', 'off', true)) AS unsynced
        WHERE s.session_id = %b AND e.event_seq = %b AND s.deleted_at IS NULL
        FOR KEY SHARE OF s
        ON CONFLICT (session_key, name) DO UPDATE SET
            event_seq = excluded.event_seq, event_checksum = excluded.event_checksum,
            data = excluded.data, checksum = excluded.checksum
    """,
    # The end of events and of sessions: each of these is run while the session's row is locked.
    "step_end": """
        SELECT event_seq FROM {schema}.logmark_events
        WHERE session_key = %b AND event_seq <= %b ORDER BY event_seq LIMIT 1 OFFSET %b
    """,
    "remove_through": "DELETE FROM {schema}.logmark_events WHERE session_key = %b AND event_seq <= %b",
    "unreserve_through": "DELETE FROM {schema}.logmark_reservations WHERE session_key = %b AND last_seq <= %b",
    "set_pruned": "UPDATE {schema}.logmark_sessions SET pruned_through = %b WHERE session_key = %b",
    "seal": "UPDATE {schema}.logmark_sessions SET sealed_at = %s, final_seq = last_seq WHERE session_key = %b",
    "bury": """
        UPDATE {schema}.logmark_sessions SET
            deleted_at = %(at)s, last_seq = %(through)b, through_seq = %(through)b, final_seq = %(through)b,
            pruned_through = %(through)b, sealed_at = NULL, halted_at = NULL, halt_reason = NULL, halt_event_id = NULL
        WHERE session_key = %(key)b
    """,
    "bury_records": "DELETE FROM {schema}.logmark_records WHERE session_key = %b",
    "bury_snapshots": "DELETE FROM {schema}.logmark_snapshots WHERE session_key = %b",
    "bury_reservations": "DELETE FROM {schema}.logmark_reservations WHERE session_key = %b",
    "bury_quarantine": "DELETE FROM {schema}.logmark_quarantine WHERE session_key = %b",
    "left": "SELECT count(*) FROM {schema}.logmark_events WHERE session_key = %b",
    # Records are kept under the session's key, which only a deletion takes away: no append waits for one.
    "load_records": """
        SELECT s.session_key, s.through_seq, s.deleted_at, r.name, r.version, r.data, r.checksum, r.token
        FROM {schema}.logmark_sessions AS s
        LEFT JOIN {schema}.logmark_records AS r
            ON r.session_key = s.session_key AND (%(name)b::bytea IS NULL OR r.name = %(name)b::bytea)
        WHERE s.session_id = %(session)b ORDER BY r.name
    """,
    "insert_record": """
        INSERT INTO {schema}.logmark_records (session_key, name, version, data, checksum, token)
        SELECT session_key, %(name)b, 1, %(data)b, %(checksum)b, %(token)b FROM (
            SELECT session_key FROM {schema}.logmark_sessions
            WHERE session_id = %(session)b AND deleted_at IS NULL FOR KEY SHARE
        ) AS s
        ON CONFLICT DO NOTHING RETURNING version
    """,
    "replace_record": """
        WITH s AS (
            SELECT session_key FROM {schema}.logmark_sessions
            WHERE session_id = %(session)b AND deleted_at IS NULL FOR KEY SHARE
        )
        UPDATE {schema}.logmark_records AS r
        SET version = version + 1, data = %(data)b, checksum = %(checksum)b, token = %(token)b
        FROM s WHERE r.session_key = s.session_key AND name = %(name)b AND version = %(version)b RETURNING version
    """,
    "remove_record": """
        DELETE FROM {schema}.logmark_records AS r USING {schema}.logmark_sessions AS s
        WHERE s.session_id = %(session)b AND r.session_key = s.session_key
            AND name = %(name)b AND version = %(version)b RETURNING version
    """,
    "take_out_record": """
        WITH bad AS (
            DELETE FROM {schema}.logmark_records WHERE session_key = %b AND name = %b
            RETURNING session_key, name, data, checksum
        )
        INSERT INTO {schema}.logmark_quarantine (session_key, event_seq, checksum, event_id, payload, reason)
        SELECT session_key, 0, checksum, name, data, %b FROM bad
    """,
    "constraints": """
        SELECT count(*) FROM pg_constraint JOIN pg_index ON pg_index.indexrelid = conindid
        WHERE conrelid = '{schema}.logmark_events'::regclass AND contype IN ('p', 'u') AND indisvalid
    """,
    "orphans": """
        SELECT count(*) FROM (
            SELECT session_key FROM {schema}.logmark_events UNION ALL SELECT session_key FROM {schema}.logmark_records
        ) AS owned
        WHERE NOT EXISTS (SELECT FROM {schema}.logmark_sessions AS s WHERE s.session_key = owned.session_key)
    """,
}


def _quoted(schema: str) -> str:
    return f'"{schema}"'


def find_schema(connection: Connection, asked: str | None) -> str:
    """Return the schema of the store: the one asked for, or the first that the search path names.

    Raises:
        SchemaUnusable: the search path leads nowhere.
    """
    if asked is not None:
        return asked
    row = connection.execute("SELECT current_schema()").fetchone()
    name = None if row is None else row[0]
    if not isinstance(name, str):
        raise SchemaUnusable("the search path names no schema that is there; name one with ?logmark_schema=NAME")
    return check_schema(name)


def open_schema(connection: Connection, schema: str, *, create: bool) -> None:
    """Make the tables, or bring them up to date, unless they are as this version knows them.

    Whoever is first does it, in one transaction and under an advisory lock; the others wait for it.

    Raises:
        SchemaUnusable: it is of a newer version.
        NoStore: there is no store and none is to be made.
        psycopg.Error: the server does not allow it.
    """
    version = _version(connection, schema)
    if version == STORE_VERSION:
        return
    if version is not None and version > STORE_VERSION:
        raise SchemaUnusable(
            f"expected store version {STORE_VERSION}, found {version}; open it with the version of logmark that made it"
        )
    if version is None and not create:
        raise NoStore(f"there is no store in schema {schema!r}")
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"logmark {schema}",))
        version = _version(connection, schema) or 0
        if version == 0:
            connection.execute(_filled(_MAKE, schema))
        for number, script in enumerate(_MIGRATIONS[version:], version + 1):
            connection.execute(_filled(script, schema))
            connection.execute(_filled("UPDATE {schema}.logmark_store SET version = %s", schema), (number,))


def _version(connection: Connection, schema: str) -> int | None:
    """Return the version of the tables, or None when there are none."""
    # By a query, which sees what was committed before it: to_regclass remembers that there was nothing before the lock.
    there = connection.execute(
        "SELECT FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace"
        " WHERE nspname = %s AND relname = 'logmark_store'",
        (schema,),
    )
    if there.fetchone() is None:
        return None
    found = connection.execute(_filled("SELECT version FROM {schema}.logmark_store", schema)).fetchone()
    return None if found is None else cast("int", found[0])


def _filled(script: str, schema: str) -> bytes:
    return script.replace("{schema}", _quoted(schema)).encode()
