-- The tables of the first version of the SQLite engine, as it made them.
PRAGMA journal_mode = WAL;
PRAGMA application_id = 1819240301;
PRAGMA user_version = 1;
CREATE TABLE session (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    last_seq INTEGER NOT NULL DEFAULT 0,
    through_seq INTEGER NOT NULL DEFAULT 0,
    halt_reason TEXT,
    halt_at TEXT,
    halt_first_event_id TEXT,
    CHECK (last_seq >= 0 AND through_seq >= last_seq)
);
CREATE TABLE event (
    session INTEGER NOT NULL REFERENCES session (key),
    seq INTEGER NOT NULL CHECK (typeof(seq) = 'integer' AND seq > 0),
    id TEXT NOT NULL,
    head BLOB NOT NULL,
    payload BLOB NOT NULL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (session, seq)
) WITHOUT ROWID;
CREATE UNIQUE INDEX event_id ON event (session, id);
CREATE TABLE reservation (
    session INTEGER NOT NULL REFERENCES session (key),
    first_seq INTEGER NOT NULL CHECK (first_seq > 0),
    last_seq INTEGER NOT NULL CHECK (last_seq >= first_seq),
    PRIMARY KEY (session, first_seq)
) WITHOUT ROWID;
CREATE TABLE quarantine (
    session INTEGER NOT NULL REFERENCES session (key),
    seq, id, head, payload, crc,
    reason TEXT NOT NULL,
    at TEXT NOT NULL
);
CREATE TABLE snapshot (
    session INTEGER NOT NULL REFERENCES session (key),
    name TEXT NOT NULL,
    seq INTEGER NOT NULL,
    event_crc INTEGER NOT NULL,
    data BLOB NOT NULL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (session, name)
);
CREATE VIEW log AS
SELECT session.id AS session,
       event.seq AS seq,
       event.id AS id,
       json_extract('{' || CAST(head AS TEXT) || '}', '$.ts') AS ts,
       json_extract('{' || CAST(head AS TEXT) || '}', '$.type') AS type,
       json_extract('{' || CAST(head AS TEXT) || '}', '$.job') AS job,
       CAST(payload AS TEXT) AS payload
FROM event JOIN session ON session.key = event.session;
