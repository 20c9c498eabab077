"""How sessions in PostgreSQL are pruned, sealed and deleted, and the records that are kept beside them.

Events are removed in steps, each a transaction that also raises the first number that is available: whoever appends
waits for a step at most, and one that was not made is made by the next call. The space that rows leave is the server's
to use again, after its autovacuum.

Everything here may be done twice, so that a lost connection is answered by doing it again; only when that is not
possible until the deadline is it said that the outcome is unknown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import psycopg
from psycopg.types.numeric import Int8

from ..protocol import (
    SEQ_MAX,
    Clock,
    CursorAhead,
    Limits,
    LockTimeout,
    LogCorrupt,
    LogmarkError,
    RecordChanged,
    SessionDeleted,
    SessionHalted,
    StorageUnavailable,
    row_seed,
)
from ._clock import rfc3339
from ._plan import record_checksum, truncated_partly
from ._postgres_pool import Connection, ConnectionLost, Connections, Unreachable
from ._postgres_rows import KnownThrough, Reader, SessionRow, log_lost
from ._postgres_schema import Statements
from ._store import Record

__all__ = ["Lifetimes", "damaged_records"]

T = TypeVar("T")

_STEP_ROWS = 5000
_PAUSE_S = 0.05
_TOKEN_BYTES = 16


class Lifetimes:
    """Prunes, seals and deletes the sessions of one store, and keeps records. Safe from any thread.

    Args:
        connections: to the server.
        reader: of the same server.
        statements: of the store.
        store: its URL, for errors.
        limits: lock_wait_s and server_wait_s count.
        known: through which numbers this process knows logs to go; kept up to date.
        clock: the time.
    """

    def __init__(
        self,
        connections: Connections,
        reader: Reader,
        statements: Statements,
        *,
        store: str,
        limits: Limits,
        known: KnownThrough,
        clock: Clock,
    ) -> None:
        self._connections = connections
        self._reader = reader
        self._sql = statements
        self._store = store
        self._limits = limits
        self._known = known
        self._clock = clock

    # -- records ------------------------------------------------------------------------------------------------

    def records(self, session_id: str, name: str | None = None) -> dict[str, Record]:
        """Return the records of a session, or the one of a name; raises as ``EventStore.load_record`` does."""
        rows = self._reader.ask(self._sql.load_records, _record_arguments(session_id, name))
        _check_not_deleted(session_id, rows)
        for _, reason in damaged_records(session_id, rows):
            raise LogCorrupt(session_id=session_id, reason=reason, event_seq=None, segment=None, offset=None)
        return {row[3].decode(): Record(row[5], row[4]) for row in rows if row[3] is not None}

    def save_record(self, session_id: str, name: str, data: bytes | None, *, version: int) -> int:
        """See ``EventStore.save_record``; one statement, which is made again after a lost connection."""
        token = os.urandom(_TOKEN_BYTES)
        arguments: dict[str, object] = {
            "session": session_id.encode(),
            "name": name.encode(),
            "version": Int8(version),
            "data": data,
            "checksum": Int8(record_checksum(row_seed(session_id), name, version + 1, data or b"")),
            "token": token,
        }
        if data is None:
            statement, wanted = self._sql.remove_record, 0
        else:
            statement, wanted = self._sql.replace_record if version else self._sql.insert_record, version + 1

        def attempt(connection: Connection, doubts: int) -> int | None:
            if connection.execute(statement, arguments, binary=True).fetchone() is not None:
                return wanted
            asked = _record_arguments(session_id, name)
            rows = connection.execute(self._sql.load_records, asked, binary=True).fetchall()
            _check_not_deleted(session_id, rows)
            known, found = (rows[0][4] or 0, rows[0][7]) if rows else (0, None)
            if found == token or (doubts and data is None and not known):
                return wanted  # by an attempt whose answer was lost
            if known != version:
                raise RecordChanged(session_id=session_id, name=name, version=known)
            if data is None and not known:
                return 0
            if not rows:
                connection.execute(self._sql.add_sessions, ([session_id.encode()],))
            return None  # once more: there was no session, or somebody has brought the version back meanwhile

        while True:
            answer = self._until_done(session_id, attempt)
            if answer is not None:
                return answer

    # -- the end of events, and of sessions ---------------------------------------------------------------------

    def truncate_before(self, session_id: str, seq: int) -> int:
        """See ``EventStore.truncate_before``."""

        def step(connection: Connection, row: SessionRow | None) -> tuple[int, bool]:
            return self._truncate_step(connection, session_id, row, seq)

        first, is_done = self._locked(session_id, step)
        while not is_done:
            try:
                first, is_done = self._locked(session_id, step)
            except SessionDeleted:
                raise
            except LogmarkError as error:
                raise truncated_partly(self._store, session_id, first, seq, error) from error
        return first

    def _truncate_step(
        self, connection: Connection, session_id: str, row: SessionRow | None, seq: int
    ) -> tuple[int, bool]:
        """Remove some events, and return the first number that is available then, and whether this was all."""
        self._check_writable(session_id, row)
        if seq > (1 if row is None else row.through + 1):
            raise CursorAhead(session_id=session_id, cursor=seq, last_seq=0 if row is None else row.seq)
        if row is None or seq <= row.first_available:
            return 1 if row is None else row.first_available, True
        key = Int8(row.key)
        more = connection.execute(self._sql.step_end, (key, Int8(seq - 1), Int8(_STEP_ROWS)), binary=True).fetchone()
        first: int = seq if more is None else more[0]
        with connection.pipeline():
            connection.execute(self._sql.remove_through, (key, Int8(first - 1)))
            connection.execute(self._sql.unreserve_through, (key, Int8(first - 1)))
            connection.execute(self._sql.set_pruned, (Int8(first - 1), key))
        return first, more is None

    def seal(self, session_id: str) -> int:
        """See ``EventStore.seal``."""

        def work(connection: Connection, row: SessionRow | None) -> int:
            self._check_writable(session_id, row)
            if row is not None and row.sealed_at is None:
                connection.execute(self._sql.seal, (rfc3339(self._clock.time_ns()), Int8(row.key)))
            return 0 if row is None else row.seq

        return self._locked(session_id, work, makes=True)

    def delete(self, session_id: str) -> None:
        """See ``EventStore.delete``: first the tombstone, which ends the session at once, then the events."""
        known = self._known.through(session_id)

        def bury(connection: Connection, row: SessionRow | None) -> SessionRow | None:
            if row is None or row.deleted_at is not None:
                return row
            key, through = Int8(row.key), Int8(max(row.through, known))
            with connection.pipeline():
                at = rfc3339(self._clock.time_ns())
                connection.execute(self._sql.bury, {"at": at, "through": through, "key": key})
                for statement in (
                    self._sql.bury_records,
                    self._sql.bury_snapshots,
                    self._sql.bury_reservations,
                    self._sql.bury_quarantine,
                ):
                    connection.execute(statement, (key,))
            return row

        row = self._locked(session_id, bury, makes=True)
        if row is not None:
            self.remove_events(session_id, row.key)

    def remove_events(self, session_id: str, key: int) -> None:
        """Remove all events of a session that was deleted."""

        def step(connection: Connection, _doubts: int) -> bool:
            end = connection.execute(
                self._sql.step_end, (Int8(key), Int8(SEQ_MAX), Int8(_STEP_ROWS)), binary=True
            ).fetchone()
            connection.execute(self._sql.remove_through, (Int8(key), Int8(SEQ_MAX if end is None else end[0])))
            return end is not None

        while self._until_done(session_id, step):
            pass

    def _check_writable(self, session_id: str, row: SessionRow | None) -> None:
        known = self._known.through(session_id)
        through = 0 if row is None else row.through
        if row is not None:
            row.check_not_deleted(session_id)
        if through < known:
            raise log_lost(session_id, through, known)
        halt = None if row is None else row.halt(session_id)
        if halt is not None:
            raise SessionHalted(session_id=session_id, reason=halt.reason, halted_at=halt.at)

    # -- doing it -----------------------------------------------------------------------------------------------

    def _locked(self, session_id: str, work: Callable[[Connection, SessionRow | None], T], *, makes: bool = False) -> T:
        """Do something in a transaction that holds the session's row, which is made for it when asked to."""
        key = session_id.encode()

        def attempt(connection: Connection, _doubts: int) -> T:
            if makes:
                connection.execute(self._sql.add_sessions, ([key],))
            with connection.transaction():
                rows = connection.execute(self._sql.lock_whole, (key,), binary=True).fetchall()
                return work(connection, SessionRow.of(rows[0][1:]) if rows else None)

        return self._until_done(session_id, attempt)

    def _until_done(self, session_id: str, attempt: Callable[[Connection, int], T]) -> T:
        """Do something that may be done twice, until it was done or the deadline has passed.

        Args:
            session_id: for errors.
            attempt: gets a connection, and how many earlier attempts may have done it.
        """
        deadline = time.monotonic() + self._limits.lock_wait_s + self._limits.server_wait_s
        doubts = 0
        while True:
            try:
                with self._connections.use(deadline) as connection:
                    return attempt(connection, doubts)
            except Unreachable as error:
                raise self._unavailable(str(error), doubts) from error
            except ConnectionLost as error:
                doubts += not error.nothing_done
                if time.monotonic() + _PAUSE_S >= deadline:
                    raise self._unavailable(str(error), doubts) from error
                time.sleep(_PAUSE_S)
            except psycopg.errors.LockNotAvailable as error:
                if doubts:
                    raise self._unavailable("the session's row stays locked", doubts) from error
                waited_s = self._limits.lock_wait_s
                raise LockTimeout(session_id=session_id, waited_s=waited_s, holder_pid=None) from None
            except psycopg.Error as error:
                raise self._unavailable(f"{type(error).__name__}: {error}".strip(), doubts) from error

    def _unavailable(self, reason: str, doubts: int) -> StorageUnavailable:
        what = "whether it was done is unknown, and doing it again settles it" if doubts else "nothing was done"
        return StorageUnavailable(store=self._store, reason=f"{reason}; {what}")


def _record_arguments(session_id: str, name: str | None) -> dict[str, object]:
    return {"session": session_id.encode(), "name": None if name is None else name.encode()}


def _check_not_deleted(session_id: str, rows: list[tuple[Any, ...]]) -> None:
    for row in rows[:1]:
        if row[2] is not None:
            raise SessionDeleted(session_id=session_id, last_seq=row[1], deleted_at=row[2])


def damaged_records(session_id: str, rows: Iterable[tuple[Any, ...]]) -> list[tuple[bytes, str]]:
    """Return name and reason of each record that cannot be trusted, of what ``Statements.load_records`` has found."""
    seed = row_seed(session_id)
    found: list[tuple[bytes, str]] = []
    for _, _, _, name, version, data, checksum, _ in rows:
        if name is None:
            continue
        shown = name.decode(errors="replace")
        if record_checksum(seed, shown, version, data) != checksum:
            found.append((name, f"the checksum of record {shown!r} does not match"))
    return found
