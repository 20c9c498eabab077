"""Reading the SQLite engine's rows: in chunks, so that no statement stays open, and never past a gap unseen."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator

from ..protocol import SEQ_MAX, LogCorrupt, RawEnvelope, SeqPruned, SessionDeleted, row_seed
from ._plan import event_checksum, record_checksum
from ._sqlite_db import Database
from ._store import HaltRecord

__all__ = [
    "RecordRow",
    "SessionRow",
    "SqliteRows",
    "find_session",
    "record_problem",
    "remove_events",
    "row_problem",
    "uncovered",
]

_ROWS_MAX = 1024
_UPWARDS = "SELECT seq, id, head, payload, crc FROM event WHERE session = ? AND seq BETWEEN ? AND ? ORDER BY seq"
_DOWNWARDS = _UPWARDS + " DESC"

Row = tuple[object, object, object, object, object]
RecordRow = tuple[object, object, object, object]
"""Name, version, content and checksum."""


@dataclasses.dataclass(frozen=True, slots=True)
class SessionRow:
    """A session's row.

    Attributes:
        key: what its events call it.
        seq: number of its last event.
        through: its high-water.
        halt: why it is halted, or None.
        first_available: the smallest number that can be read.
        sealed_at: when it was sealed, or None.
        deleted_at: when it was deleted, or None.
    """

    key: int
    seq: int
    through: int
    halt: HaltRecord | None
    first_available: int = 1
    sealed_at: str | None = None
    deleted_at: str | None = None

    def check_not_deleted(self, session_id: str) -> None:
        """Raise SessionDeleted for a tombstone."""
        if self.deleted_at is not None:
            raise SessionDeleted(session_id=session_id, last_seq=self.through, deleted_at=self.deleted_at)


def find_session(connection: sqlite3.Connection, session_id: str) -> SessionRow | None:
    """Return a session's row, or None when it has none."""
    row = connection.execute(
        "SELECT key, last_seq, through_seq, halt_reason, halt_at, halt_first_event_id,"
        " pruned_through, sealed_at, deleted_at FROM session WHERE id = ?",
        (session_id,),
    ).fetchone()
    if row is None:
        return None
    key, seq, through, reason, at, first_event_id, pruned, sealed_at, deleted_at = row
    halt = None
    if at is not None or reason is not None:
        halt = HaltRecord(
            session_id=session_id,
            reason=str(reason),
            at=str(at),
            first_event_id=None if first_event_id is None else str(first_event_id),
        )
    return SessionRow(key, seq, through, halt, pruned + 1, sealed_at, deleted_at)


def row_problem(row: Row, seed: int) -> str | None:
    """Say what is wrong with a row by itself, or None."""
    seq, event_id, head, payload, crc = row
    if not (isinstance(seq, int) and isinstance(head, bytes) and isinstance(payload, bytes)):
        return "the row does not hold what it held when it was written"
    if event_checksum(seed, seq, head, payload) != crc:
        return "the checksum does not match"
    if RawEnvelope.from_stored("", seq, head, payload).id != event_id:
        return "the id is not the one it was written under"
    return None


def record_problem(row: RecordRow, seed: int) -> str | None:
    """Say what is wrong with a record, or None."""
    name, version, data, crc = row
    if not (isinstance(name, str) and isinstance(version, int) and isinstance(data, bytes)):
        return f"record {name!r} does not hold what it held when it was written"
    if record_checksum(seed, name, version, data) != crc:
        return f"the checksum of record {name!r} does not match"
    return None


def remove_events(connection: sqlite3.Connection, key: int, rows_max: int = -1) -> int:
    """Remove events of a session, all or so many, and return how many it were."""
    return connection.execute(
        "DELETE FROM event WHERE session = ?1 AND seq IN"
        " (SELECT seq FROM event WHERE session = ?1 ORDER BY seq LIMIT ?2)",
        (key, rows_max),
    ).rowcount


def uncovered(connection: sqlite3.Connection, key: int, first: int, last: int) -> list[tuple[int, int]]:
    """Return the ranges of numbers from ``first`` to ``last`` that no reservation covers."""
    found: list[tuple[int, int]] = []
    for start, end in connection.execute(
        "SELECT first_seq, last_seq FROM reservation WHERE session = ? AND first_seq <= ? AND last_seq >= ?"
        " ORDER BY first_seq",
        (key, last, first),
    ):
        if start > first:
            found.append((first, start - 1))
        first = max(first, end + 1)
    if first <= last:
        found.append((first, last))
    return found


class SqliteRows:
    """The events of one session, as of a high-water."""

    def __init__(self, database: Database, session_id: str, row: SessionRow, *, chunk_bytes: int) -> None:
        self._database = database
        self._session_id = session_id
        self._seed = row_seed(session_id)
        self._key = row.key
        self._seq = row.seq
        self._first = row.first_available
        self._chunk_bytes = chunk_bytes

    def upwards(self, from_seq: int, through: int) -> Iterator[RawEnvelope]:
        """Yield the events from a number to another; LogCorrupt at the first that is damaged or missing.

        Raises:
            SeqPruned, SessionDeleted: what comes next was removed meanwhile.
        """
        through = min(through, self._seq)
        wanted = max(1, from_seq)
        while wanted <= through:
            chunk, is_last = self.chunk(_UPWARDS, wanted, through)
            for row in chunk:
                event = self._envelope(row)
                seq = event.event_seq or 0
                if seq != wanted:
                    self._expect_reserved_or_pruned(wanted, seq - 1)
                wanted = seq + 1
                yield event
            if is_last:
                break
        if wanted <= through:
            self._expect_reserved_or_pruned(wanted, through)

    def downwards(self, before: int) -> Iterator[RawEnvelope]:
        """Yield the events below a number, down to the first there is; LogCorrupt at the first damaged or missing one.

        Raises:
            SessionDeleted: they were removed meanwhile.
        """
        wanted = min(before - 1, self._seq)
        while wanted >= self._first:
            chunk, is_last = self.chunk(_DOWNWARDS, self._first, wanted)
            for row in chunk:
                event = self._envelope(row)
                seq = event.event_seq or 0
                if seq != wanted:
                    self._expect_reserved(seq + 1, wanted)
                wanted = seq - 1
                yield event
            if is_last:
                break
        if wanted >= self._first:
            self._expect_reserved(self._first, wanted)

    def all_rows(self, through: int = SEQ_MAX) -> Iterator[Row]:
        """Yield every row up to a number as it is, for a verification."""
        wanted = 1
        while wanted <= through:
            chunk, is_last = self.chunk(_UPWARDS, wanted, through)
            yield from chunk
            if is_last:
                return
            wanted = int(str(chunk[-1][0])) + 1

    def chunk(self, query: str, first: int, last: int) -> tuple[list[Row], bool]:
        """Return the next rows, and whether these are all."""
        chunk: list[Row] = []
        size = 0
        with self._database.reader() as connection:
            cursor = connection.execute(query, (self._key, first, last))
            for row in cursor:
                chunk.append(row)
                size += len(row[2] or b"") + len(row[3] or b"")
                if size >= self._chunk_bytes or len(chunk) >= _ROWS_MAX:
                    cursor.close()
                    return chunk, False
        return chunk, True

    def _envelope(self, row: Row) -> RawEnvelope:
        seq, _, head, payload, crc = row
        if not (isinstance(seq, int) and isinstance(head, bytes) and isinstance(payload, bytes)):
            raise self._damage("the row does not hold what it held when it was written", seq)
        if event_checksum(self._seed, seq, head, payload) != crc:
            raise self._damage("the checksum does not match", seq)
        return RawEnvelope.from_stored(self._session_id, seq, head, payload)

    def _expect_reserved(self, first: int, last: int) -> int:
        """Raise when something is missing that was not pruned; return the first number that is available now.

        Rows and ``first_available`` change in one transaction and the latter never falls, so that whoever finds a row
        pruned finds here that it was.
        """
        with self._database.reader() as connection:
            missing = uncovered(connection, self._key, first, last)
            if not missing:
                return self._first
            row = find_session(connection, self._session_id)
        if row is not None:
            row.check_not_deleted(self._session_id)
            self._first = max(self._first, row.first_available)
        for start, end in missing:
            if end >= self._first:
                lost = max(start, self._first)
                raise self._damage(f"events {lost} to {end} were durable and are missing", lost)
        return self._first

    def _expect_reserved_or_pruned(self, first: int, last: int) -> None:
        available = self._expect_reserved(first, last)
        if first < available:
            raise SeqPruned(session_id=self._session_id, seq=first, first_available=available)

    def _damage(self, reason: str, seq: object) -> LogCorrupt:
        return LogCorrupt(
            session_id=self._session_id,
            reason=reason,
            event_seq=seq if isinstance(seq, int) else None,
            segment=None,
            offset=None,
        )
