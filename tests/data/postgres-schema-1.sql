-- The tables of the first version of the PostgreSQL engine, as it made them in the schema {schema}.
CREATE SCHEMA IF NOT EXISTS {schema};
CREATE TABLE IF NOT EXISTS {schema}.logmark_store (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    version integer NOT NULL
);
INSERT INTO {schema}.logmark_store (version) VALUES (0) ON CONFLICT DO NOTHING;
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
UPDATE {schema}.logmark_store SET version = 1;
