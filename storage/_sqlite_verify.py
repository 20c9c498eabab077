"""Verify and repair the SQLite engine's sessions: every row by itself, the numbers without a hole, the high-water."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import cast

from ..protocol import LogCorrupt, row_seed
from ._sqlite_db import Database
from ._sqlite_rows import (
    Row,
    SessionRow,
    SqliteRows,
    find_session,
    record_problem,
    remove_events,
    row_problem,
    uncovered,
)
from ._sqlite_sessions import make_session
from ._store import Finding, HaltRecord

__all__ = ["SqliteRepair", "verify_database", "verify_session"]

_MESSAGES_MAX = 100
_ALL = "SELECT seq, id, head, payload, crc FROM event WHERE session = ? ORDER BY seq"
_COUNTS = (
    "SELECT (SELECT count(head) FROM event NOT INDEXED WHERE session = ?),"
    " (SELECT count(*) FROM event INDEXED BY event_id WHERE session = ?)"
)

_ORPHANS = (
    "SELECT (SELECT count(*) FROM event WHERE session NOT IN (SELECT key FROM session))"
    " + (SELECT count(*) FROM reservation WHERE session NOT IN (SELECT key FROM session))"
    " + (SELECT count(*) FROM record WHERE session NOT IN (SELECT key FROM session))"
)

Range = tuple[int, int]


@dataclasses.dataclass(slots=True)
class _Scan:
    """What reading all rows of a session has shown.

    Attributes:
        bad: number and reason of each row that is damaged.
        missing: first and last number of each gap that nothing explains.
        last: number of the last row that is sound.
        rows: how many rows there are.
    """

    bad: list[tuple[int, str]] = dataclasses.field(default_factory=list[tuple[int, str]])
    missing: list[Range] = dataclasses.field(default_factory=list[Range])
    last: int = 0
    rows: int = 0

    def forget_below(self, first_available: int) -> None:
        """Take for granted what was pruned while the rows were read."""
        self.missing = [(max(first, first_available), last) for first, last in self.missing if last >= first_available]

    def last_seq(self, row: SessionRow) -> int:
        """Return what the number of the session's last event should be; that event may be pruned."""
        return self.last or min(row.seq, row.first_available - 1)


def _scan(rows: Iterable[Row], seed: int, known: SessionRow, uncovered_in: Callable[[int, int], list[Range]]) -> _Scan:
    """Look at every row, and at every gap from the first number that is available up to the high-water."""
    scan = _Scan()
    wanted, through = known.first_available, known.through
    for row in rows:
        seq = cast("int", row[0])  # the table takes nothing else there
        scan.rows += 1
        if seq < known.first_available:
            scan.bad.append((seq, f"it is below {known.first_available}, the first number that is available"))
            continue
        if seq > wanted:
            scan.missing += uncovered_in(wanted, seq - 1)
        wanted = seq + 1
        problem = row_problem(row, seed)
        if problem is None:
            scan.last = seq
        else:
            scan.bad.append((seq, problem))
    if wanted <= through:
        scan.missing += uncovered_in(wanted, through)
    return scan


def verify_session(database: Database, session_id: str, *, chunk_bytes: int) -> tuple[list[Finding], LogCorrupt | None]:
    """Return what is wrong with a session, and the first error that an append or a read would raise for it."""
    findings: list[Finding] = []
    error: LogCorrupt | None = None
    with database.reader() as connection:
        row = find_session(connection, session_id)
    if row is None:
        return findings, None
    if row.deleted_at is not None:
        with database.reader() as connection:
            (left,) = connection.execute("SELECT count(*) FROM event WHERE session = ?", (row.key,)).fetchone()
        if left:
            detail = f"{left} events are left of a session that was deleted at {row.deleted_at}; delete it again"
            findings.append(Finding(session_id=session_id, kind="damage", detail=detail, harmless=True))
        return findings, None
    if row.halt is not None:
        detail = f"halted since {row.halt.at}: {row.halt.reason}"
        findings.append(Finding(session_id=session_id, kind="halt", detail=detail, harmless=False))
    key = row.key
    rows = SqliteRows(database, session_id, row, chunk_bytes=chunk_bytes)

    def uncovered_in(first: int, last: int) -> list[Range]:
        with database.reader() as connection:
            return uncovered(connection, key, first, last)

    # Rows that arrive while this reads are beyond the high-water, which was read first.
    scan = _scan(rows.all_rows(row.through), row_seed(session_id), row, uncovered_in)
    with database.reader() as connection:
        now = find_session(connection, session_id)
        if now is None or now.deleted_at is not None:
            return findings, None  # somebody has removed it meanwhile, and what it lacked with it
        scan.forget_below(now.first_available)
        row = dataclasses.replace(row, first_available=now.first_available)
        problems = [*_problems(scan, row), *_contradictions(connection, row.key)]
        records = _damaged_records(connection, row.key, session_id)
    for kind, event_seq, reason in problems:
        damage = LogCorrupt(session_id=session_id, reason=reason, event_seq=event_seq, segment=None, offset=None)
        error = error or damage
        findings.append(
            Finding(session_id=session_id, kind=kind, detail=str(damage), harmless=False, event_seq=event_seq)
        )
    findings += [  # which are no reason to keep a session halted
        Finding(session_id=session_id, kind="damage", detail=reason, harmless=False, place=f"record {name!r}")
        for name, reason in records
    ]
    return findings, error


def _problems(scan: _Scan, row: SessionRow) -> Iterator[tuple[str, int | None, str]]:
    """Yield kind, first number and reason of what is wrong up to the high-water, in the order of the numbers."""
    found: list[tuple[str, int, str]] = [("damage", seq, reason) for seq, reason in scan.bad]
    for first, last in scan.missing:
        found.append(
            ("lost" if last >= row.seq else "gap", first, f"events {first} to {last} were durable and are missing")
        )
    yield from sorted(found, key=lambda each: each[1])
    if not found and row.seq >= row.first_available and scan.last != row.seq:
        reason = f"the session's last event is said to be {row.seq}, and it is {scan.last}"
        yield "damage", min(scan.last, row.seq) + 1, reason


def _contradictions(connection: sqlite3.Connection, key: int) -> Iterator[tuple[str, int | None, str]]:
    """Yield what the tables say against each other, each asked in one statement, as others may be writing."""
    last_seq, last_row = connection.execute(
        "SELECT last_seq, (SELECT max(seq) FROM event WHERE session = key) FROM session WHERE key = ?", (key,)
    ).fetchone()
    if (last_row or 0) > last_seq:
        yield "damage", last_seq + 1, f"event {last_row} is beyond the last one that was committed"
    rows, ids = connection.execute(_COUNTS, (key, key)).fetchone()
    if rows != ids:
        yield "damage", None, f"the index of event ids has {ids} entries for {rows} events"


def _damaged_records(connection: sqlite3.Connection, key: int, session_id: str) -> list[tuple[object, str]]:
    """Return name and reason of each record that cannot be trusted."""
    seed = row_seed(session_id)
    rows = connection.execute("SELECT name, version, data, crc FROM record WHERE session = ?", (key,)).fetchall()
    return [(row[0], problem) for row in rows if (problem := record_problem(row, seed)) is not None]


def verify_database(connection: sqlite3.Connection) -> list[Finding]:
    """Return what SQLite's own check says of the whole file, and rows that no session owns."""
    try:
        messages = _integrity(connection)
        (orphans,) = connection.execute(_ORPHANS).fetchone()
        if orphans:
            messages.append(f"{orphans} events, reservations and records belong to no session")
    except sqlite3.DatabaseError as error:
        messages = [str(error)]
    return [Finding(session_id="", kind="damage", detail=message, harmless=False) for message in messages]


def _integrity(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute(f"PRAGMA integrity_check({_MESSAGES_MAX})").fetchall()
    return [] if rows == [("ok",)] else [str(text) for (text,) in rows]


class SqliteRepair:
    """Makes one session sound inside a write transaction that the caller commits.

    Args:
        session_id: the session.
        at: the time, for what is put aside.
        seen: the last number that this process saw used, which the database may have lost.
        unwritten: a halt that the database does not have.
        dry_run: only say what would be done.
    """

    def __init__(self, session_id: str, at: str, *, seen: int, unwritten: HaltRecord | None, dry_run: bool) -> None:
        self._session_id = session_id
        self._at = at
        self._seen = seen
        self._unwritten = unwritten
        self._dry_run = dry_run
        self.steps: list[str] = []

    def run(self, connection: sqlite3.Connection) -> None:
        """Find what is wrong and mend it; ``steps`` says what was done.

        Raises:
            LogCorrupt: the database itself is damaged beyond its indexes.
        """
        row = find_session(connection, self._session_id)
        if row is None:
            if self._unwritten is None and not self._seen:
                return
            row = SessionRow(make_session(connection, self._session_id), 0, 0, None)  # undone with a dry run
        key, through = row.key, max(row.through, self._seen)
        if row.deleted_at is not None:
            self._finish_deletion(connection, key)
            return
        scan = _scan(
            connection.execute(_ALL, (key,)),
            row_seed(self._session_id),
            dataclasses.replace(row, through=through),
            lambda first, last: uncovered(connection, key, first, last),
        )
        if through == row.through and self._is_sound(connection, row, scan):
            return
        self._mend_database(connection)
        (last_row,) = connection.execute("SELECT max(seq) FROM event WHERE session = ?", (key,)).fetchone()
        through = max(through, last_row or 0)
        for seq, reason in scan.bad:
            self._put_aside(connection, row.key, seq, reason)
        for first, last in scan.missing:
            self._step(
                connection,
                f"reserve the missing numbers {first} to {last}",
                "INSERT INTO reservation VALUES (?, ?, ?)",
                (row.key, first, last),
            )
        if through > row.through:
            self._step(
                connection,
                f"raise the high-water from {row.through} to {through}",
                "UPDATE session SET through_seq = ? WHERE key = ?",
                (through, row.key),
            )
        last_seq = scan.last_seq(row)
        if last_seq != row.seq:
            self._step(
                connection,
                f"note {last_seq} as the last event, instead of {row.seq}",
                "UPDATE session SET last_seq = ? WHERE key = ?",
                (last_seq, row.key),
            )
        for name, reason in _damaged_records(connection, key, self._session_id):
            self._put_record_aside(connection, key, name, reason)
        halt = row.halt or self._unwritten
        if halt is not None:
            self._step(
                connection,
                f"clear the halt ({halt.reason})",
                "UPDATE session SET halt_reason = NULL, halt_at = NULL, halt_first_event_id = NULL WHERE key = ?",
                (row.key,),
            )

    def _is_sound(self, connection: sqlite3.Connection, row: SessionRow, scan: _Scan) -> bool:
        return (
            row.halt is None
            and self._unwritten is None
            and not any(_problems(scan, row))
            and not any(_contradictions(connection, row.key))
            and not _damaged_records(connection, row.key, self._session_id)
        )

    def _step(
        self, connection: sqlite3.Connection, sentence: str, statement: str, parameters: tuple[object, ...]
    ) -> None:
        self.steps.append(sentence)
        if not self._dry_run:
            connection.execute(statement, parameters)

    def _put_aside(self, connection: sqlite3.Connection, key: int, seq: int, reason: str) -> None:
        self.steps.append(f"put row {seq} into quarantine ({reason}) and reserve its number")
        if self._dry_run:
            return
        connection.execute(
            "INSERT INTO quarantine SELECT session, seq, id, head, payload, crc, ?, ? FROM event"
            " WHERE session = ? AND seq = ?",
            (reason, self._at, key, seq),
        )
        connection.execute("DELETE FROM event WHERE session = ? AND seq = ?", (key, seq))
        connection.execute("INSERT INTO reservation VALUES (?, ?, ?)", (key, seq, seq))

    def _put_record_aside(self, connection: sqlite3.Connection, key: int, name: object, reason: str) -> None:
        self.steps.append(f"put record {name!r} into quarantine ({reason})")
        if self._dry_run:
            return
        connection.execute(
            "INSERT INTO quarantine SELECT session, NULL, name, NULL, data, crc, ?, ? FROM record"
            " WHERE session = ? AND name = ?",
            (reason, self._at, key, name),
        )
        connection.execute("DELETE FROM record WHERE session = ? AND name = ?", (key, name))

    def _finish_deletion(self, connection: sqlite3.Connection, key: int) -> None:
        (left,) = connection.execute("SELECT count(*) FROM event WHERE session = ?", (key,)).fetchone()
        if left:
            self.steps.append(f"remove {left} events that are left of the session, which was deleted")
            if not self._dry_run:
                remove_events(connection, key)

    def _mend_database(self, connection: sqlite3.Connection) -> None:
        """Rebuild indexes that SQLite's own check finds wrong; what is wrong beyond them needs another tool."""
        messages = _integrity(connection)
        if not messages:
            return
        self.steps.append(f"rebuild the indexes ({messages[0]})")
        if self._dry_run:
            return
        try:
            connection.execute("REINDEX")
            messages = _integrity(connection)
        except sqlite3.DatabaseError as error:
            messages = [str(error)]
        if messages:
            raise LogCorrupt(
                session_id=self._session_id,
                reason=f"the database itself is damaged ({messages[0]}): recover it with the shell of SQLite"
                " ('.recover'); 'logmark copy' brings the sessions that are sound into another store",
                event_seq=None,
                segment=None,
                offset=None,
            )
