"""The SQLite engine: every session in one database file, for programs on one machine.

SQLite's own transaction is what makes an append whole: rows and high-water are written under one write lock and are
there together or not at all. Appends of several sessions that arrive while a commit is under way share the next one.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

from ..protocol import (
    SEQ_MAX,
    AppendUncertain,
    Clock,
    InvalidArgument,
    Limits,
    LockTimeout,
    LogCorrupt,
    RawEnvelope,
    SeqPruned,
    SequenceExhausted,
    SessionDeleted,
    SessionHalted,
    SessionSealed,
    StorageRejected,
    StorageUnavailable,
    crc32,
)
from ._clock import SystemClock, rfc3339
from ._logging import get_logger
from ._sqlite_append import CORRUPT, SqliteAppender
from ._sqlite_db import CommitUncertain, Database, DatabaseBusy, errno_of, primary_code
from ._sqlite_lifetimes import SqliteLifetimes
from ._sqlite_rows import SessionRow, SqliteRows, find_session
from ._sqlite_sessions import SqliteSessions, damage_of, make_session
from ._sqlite_verify import SqliteRepair, verify_database, verify_session
from ._store import BatchResult, EventStore, Finding, HaltRecord, Record, SessionBatch, SessionInfo, Snapshot

__all__ = ["SqliteEventStore"]

_DURABILITIES = ("fsync", "os")
_PAGE = 100


class SqliteEventStore(EventStore):
    """Sessions in the tables of one SQLite database; ``docs/engines.md`` has its promises and its settings.

    Args:
        path: the database file.
        limits: the bounds; this engine uses lock_wait_s and read_chunk_bytes.
        durability: ``"fsync"``: an append returns after its transaction is on the disk (``synchronous=FULL``).
            ``"os"``: after it is in the page cache (``synchronous=NORMAL``), which survives the process and not the
            machine.
        create: make the database when there is none; False for tools that only look.
        clock: the time.

    Raises:
        StorageUnavailable: the file cannot be opened, is no database or another program's, or is of a newer version.
    """

    is_local = True
    catches_up = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        limits: Limits | None = None,
        durability: str = "fsync",
        create: bool = True,
        clock: Clock | None = None,
    ) -> None:
        if durability not in _DURABILITIES:
            message = f"durability is one of {', '.join(_DURABILITIES)}, not {durability!r}"
            raise InvalidArgument(message)
        self._path: str = os.path.abspath(os.fspath(path))
        self.url = f"sqlite:{self._path}"
        self._limits = limits or Limits()
        self._clock = clock or SystemClock()
        self.log = self._log = get_logger(actor="store")
        self._database = Database(
            self._path,
            url=self.url,
            clock=self._clock,
            lock_wait_s=self._limits.lock_wait_s,
            durability=durability,
            create=create,
        )
        self._sessions = SqliteSessions(self._database, self._clock, self._log)
        self._appender = SqliteAppender(self._database, self._sessions, self._limits)
        self._lifetimes = SqliteLifetimes(self._database, self._sessions, self._limits, self._clock, self._log)

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        """See ``EventStore.append``; calls that wait for a commit under way share the next one."""
        return self._appender.append(batches)

    def _row_for_reading(self, session_id: str, *, damaged_ok: bool = False) -> SessionRow | None:
        with self._typed(session_id), self._database.reader() as connection:
            return self._sessions.row(connection, session_id, damaged_ok=damaged_ok)

    @contextlib.contextmanager
    def _typed(self, session_id: str | None = None) -> Generator[None]:
        """Turn what SQLite and the system say into typed errors."""
        try:
            yield
        except sqlite3.Error as error:
            if session_id is not None and primary_code(error) in CORRUPT:
                raise damage_of(session_id, str(error)) from error
            reason = f"{type(error).__name__}: {error}"
            raise StorageUnavailable(store=self.url, reason=reason, errno=errno_of(error)) from error
        except (StorageUnavailable, StorageRejected, LockTimeout):  # which are OSErrors too
            raise
        except OSError as error:
            reason = f"{type(error).__name__}: {error}"
            raise StorageUnavailable(store=self.url, reason=reason, errno=error.errno) from error

    # -- reading ------------------------------------------------------------------------------------------------

    def read(
        self, session_id: str, *, from_seq: int = 1, through_seq: int | None = None, halted_ok: bool = False
    ) -> Iterator[RawEnvelope]:
        """See ``EventStore.read``."""
        row = self._readable(session_id, halted_ok=halted_ok)
        if row is None:
            return iter(())
        if max(1, from_seq) < row.first_available:
            raise SeqPruned(session_id=session_id, seq=max(1, from_seq), first_available=row.first_available)
        through = row.seq if through_seq is None else min(through_seq, row.seq)
        return self._typed_rows(session_id, self._rows(session_id, row).upwards(from_seq, through))

    def read_backwards(self, session_id: str, *, before_seq: int | None = None) -> Iterator[RawEnvelope]:
        """See ``EventStore.read_backwards``."""
        row = self._readable(session_id)
        if row is None:
            return iter(())
        before = row.seq + 1 if before_seq is None else before_seq
        return self._typed_rows(session_id, self._rows(session_id, row).downwards(before))

    def _readable(self, session_id: str, *, halted_ok: bool = False) -> SessionRow | None:
        self._sessions.offer_halt(session_id)
        row = self._row_for_reading(session_id, damaged_ok=halted_ok)
        if row is not None:
            row.check_not_deleted(session_id)
        halt = self._sessions.halt_of(session_id, row)
        if halt is not None and not halted_ok:
            raise SessionHalted(session_id=session_id, reason=halt.reason, halted_at=halt.at)
        return row

    def _rows(self, session_id: str, row: SessionRow) -> SqliteRows:
        return SqliteRows(self._database, session_id, row, chunk_bytes=self._limits.read_chunk_bytes)

    def _typed_rows(self, session_id: str, rows: Iterator[RawEnvelope]) -> Iterator[RawEnvelope]:
        with self._typed(session_id):
            yield from rows

    def last_seq(self, session_id: str) -> int:
        """See ``EventStore.last_seq``; one look-up by the session's id."""
        row = self._row_for_reading(session_id)
        return 0 if row is None else row.seq

    def last_seqs(self, session_ids: Iterable[str]) -> dict[str, int | Exception]:
        """See ``EventStore.last_seqs``; on one connection, as the sessions that are followed are asked for often."""
        wanted = list(session_ids)
        found: dict[str, int | Exception] = {}
        try:
            with self._typed(), self._database.reader() as connection:
                for session_id in wanted:
                    try:
                        row = self._sessions.row(connection, session_id)
                        if row is not None:
                            row.check_not_deleted(session_id)
                    except (LogCorrupt, SessionDeleted) as error:
                        found[session_id] = error
                    else:
                        found[session_id] = 0 if row is None else row.seq
        except StorageUnavailable as error:
            return dict.fromkeys(wanted, error)
        return found

    def load_snapshot(self, session_id: str, name: str) -> Snapshot | None:
        """See ``EventStore.load_snapshot``."""
        try:
            row = self._readable(session_id)
        except SessionDeleted:
            row = None
        if row is None:
            return None
        with self._typed(session_id), self._database.reader() as connection:
            found = connection.execute(
                "SELECT snapshot.seq, data, snapshot.crc FROM snapshot JOIN event USING (session)"
                " WHERE session = ? AND name = ? AND event.seq = snapshot.seq AND event.crc = event_crc",
                (row.key, name),
            ).fetchone()
        if found is None or not isinstance(found[1], bytes) or crc32(found[1]) != found[2]:
            return None
        return Snapshot(found[0], found[1])

    def save_snapshot(self, session_id: str, name: str, snapshot: Snapshot) -> None:
        """See ``EventStore.save_snapshot``."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO snapshot"
                " SELECT key, ?, seq, crc, ?, ? FROM session JOIN event ON session = key"
                " WHERE session.id = ? AND seq = ? AND deleted_at IS NULL",
                (name, snapshot.data, crc32(snapshot.data), session_id, snapshot.seq),
            )
            self._database.commit(connection)

        try:
            self._database.transact(work, synced=False)
        except (DatabaseBusy, CommitUncertain, sqlite3.Error, OSError) as error:
            if isinstance(error, StorageUnavailable):
                raise
            raise StorageUnavailable(store=self.url, reason=f"the snapshot was not saved: {error}") from error

    def info(self, session_id: str) -> SessionInfo:
        """See ``EventStore.info``."""
        row = self._row_for_reading(session_id)
        first: int | None = None
        if row is not None:
            with self._typed(session_id), self._database.reader() as connection:
                (first,) = connection.execute("SELECT min(seq) FROM event WHERE session = ?", (row.key,)).fetchone()
        halt = self._sessions.halt_of(session_id, row)
        return SessionInfo(
            session_id=session_id,
            last_seq=0 if row is None else row.seq,
            next_seq=1 if row is None else row.through + 1,
            first_seq=first or 0,
            first_available=1 if row is None else row.first_available,
            sealed=row is not None and row.sealed_at is not None,
            deleted=row is not None and row.deleted_at is not None,
            halted=None if halt is None else halt.reason,
        )

    def sessions(self) -> Iterator[str]:
        """See ``EventStore.sessions``."""
        after = ""
        while True:
            with self._typed(), self._database.reader() as connection:
                found = connection.execute(
                    "SELECT id FROM session WHERE id > ? AND deleted_at IS NULL"
                    " AND (through_seq > 0 OR halt_at IS NOT NULL OR sealed_at IS NOT NULL) ORDER BY id LIMIT ?",
                    (after, _PAGE),
                ).fetchall()
            yield from (session_id for (session_id,) in found)
            if len(found) < _PAGE:
                return
            after = found[-1][0]

    # -- records, and the end of events and sessions ------------------------------------------------------------

    def load_record(self, session_id: str, name: str) -> Record | None:
        """See ``EventStore.load_record``."""
        with self._typed(session_id):
            return self._lifetimes.records(session_id, name).get(name)

    def save_record(self, session_id: str, name: str, data: bytes | None, *, version: int) -> int:
        """See ``EventStore.save_record``."""
        return self._lifetimes.save_record(session_id, name, data, version=version)

    def records(self, session_id: str) -> dict[str, Record]:
        """See ``EventStore.records``."""
        with self._typed(session_id):
            return self._lifetimes.records(session_id)

    def truncate_before(self, session_id: str, seq: int) -> int:
        """See ``EventStore.truncate_before``; it is done in steps, and others append between two of them."""
        return self._lifetimes.truncate_before(session_id, seq)

    def seal(self, session_id: str) -> int:
        """See ``EventStore.seal``."""
        return self._lifetimes.seal(session_id)

    def delete(self, session_id: str) -> None:
        """See ``EventStore.delete``."""
        self._lifetimes.delete(session_id)

    # -- reservations and halts ---------------------------------------------------------------------------------

    def _transact(self, session_id: str, work: Callable[[sqlite3.Connection], None]) -> None:
        """Run ``work`` in a transaction, and raise what an append would be answered with."""
        with self._typed(session_id):
            try:
                self._database.transact(work)
            except DatabaseBusy as busy:
                raise LockTimeout(
                    session_id=session_id, waited_s=self._limits.lock_wait_s, holder_pid=busy.holder_pid
                ) from busy
            except CommitUncertain as uncertain:
                self._sessions.keep_halt(session_id, str(uncertain), None)
                raise AppendUncertain(session_id=session_id, reason=str(uncertain)) from uncertain
            except sqlite3.Error as error:
                if primary_code(error) in CORRUPT:
                    raise
                raise StorageRejected(
                    session_id=session_id, reason=f"{type(error).__name__}: {error}", errno=errno_of(error)
                ) from error
            except OSError as error:
                if isinstance(error, StorageUnavailable):
                    raise
                raise StorageRejected(
                    session_id=session_id, reason=f"{type(error).__name__}: {error}", errno=error.errno
                ) from error

    def reserve(self, session_id: str, through_seq: int) -> None:
        """See ``EventStore.reserve``."""

        def work(connection: sqlite3.Connection) -> None:
            row = self._sessions.row(connection, session_id)
            if row is not None:
                row.check_not_deleted(session_id)
            halt = self._sessions.halt_of(session_id, row)
            if halt is not None:
                raise SessionHalted(session_id=session_id, reason=halt.reason, halted_at=halt.at)
            if row is not None and row.sealed_at is not None:
                raise SessionSealed(session_id=session_id, last_seq=row.seq)
            through = 0 if row is None else row.through
            if through_seq > SEQ_MAX:
                raise SequenceExhausted(session_id=session_id, last_seq=through)
            if through_seq <= through:
                return
            key = make_session(connection, session_id) if row is None else row.key
            connection.execute("INSERT INTO reservation VALUES (?, ?, ?)", (key, through + 1, through_seq))
            connection.execute("UPDATE session SET through_seq = ? WHERE key = ?", (through_seq, key))
            self._database.commit(connection)
            self._sessions.note(session_id, through_seq)

        self._transact(session_id, work)

    def halt(self, session_id: str, reason: str, *, first_event_id: str | None = None) -> None:
        """See ``EventStore.halt``; a halt that the disk refuses holds in this process, and is offered again."""
        self._sessions.keep_halt(session_id, reason, first_event_id)
        self._sessions.record_halt(session_id)

    def halted(self, session_id: str) -> HaltRecord | None:
        """See ``EventStore.halted``."""
        self._sessions.offer_halt(session_id)
        row = self._row_for_reading(session_id, damaged_ok=True)
        return self._sessions.halt_of(session_id, row)

    def clear_halt(self, session_id: str) -> None:
        """See ``EventStore.clear_halt``."""
        row = self._row_for_reading(session_id, damaged_ok=True)
        if row is not None:
            row.check_not_deleted(session_id)
        with self._typed(session_id):
            _, error = verify_session(self._database, session_id, chunk_bytes=self._limits.read_chunk_bytes)
        if error is not None:
            raise error
        self._sessions.forget(session_id)

        def work(connection: sqlite3.Connection) -> None:
            row = find_session(connection, session_id)
            if row is not None and row.halt is not None:
                connection.execute(
                    "UPDATE session SET halt_reason = NULL, halt_at = NULL, halt_first_event_id = NULL WHERE key = ?",
                    (row.key,),
                )
                self._database.commit(connection)

        self._transact(session_id, work)
        self._sessions.unwritten.pop(session_id, None)
        self._log.bind(session=session_id).warning("halt_cleared")

    # -- verification and repair --------------------------------------------------------------------------------

    def verify(self, session_id: str) -> list[Finding]:
        """See ``EventStore.verify``."""
        with self._typed(session_id):
            findings, _ = verify_session(self._database, session_id, chunk_bytes=self._limits.read_chunk_bytes)
        unwritten = self._sessions.unwritten.get(session_id)
        if unwritten is not None and not any(finding.kind == "halt" for finding in findings):
            detail = f"halted since {unwritten.at}: {unwritten.reason}"
            findings.insert(0, Finding(session_id=session_id, kind="halt", detail=detail, harmless=False))
        return findings

    def verify_store(self) -> list[Finding]:
        """See ``EventStore.verify_store``: SQLite's own check of the whole file, and rows that belong to nobody."""
        with self._typed(), self._database.reader() as connection:
            return verify_database(connection)

    def repair(self, session_id: str, *, dry_run: bool = False) -> list[str]:
        """See ``EventStore.repair``; rows that are taken out are kept in the table ``quarantine``."""
        repair = SqliteRepair(
            session_id,
            rfc3339(self._clock.time_ns()),
            seen=self._sessions.seen(session_id),
            unwritten=self._sessions.unwritten.get(session_id),
            dry_run=dry_run,
        )

        def work(connection: sqlite3.Connection) -> None:
            repair.run(connection)
            if repair.steps and not dry_run:
                self._database.commit(connection)

        self._transact(session_id, work)
        if repair.steps and not dry_run:
            self._sessions.unwritten.pop(session_id, None)
            self._sessions.forget(session_id)
            self._log.bind(session=session_id).warning(
                "session_repaired", steps=len(repair.steps), originals="quarantine"
            )
        return repair.steps

    # -- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """See ``EventStore.close``; a halt that the disk has refused is offered once more."""
        for session_id in list(self._sessions.unwritten):
            self._sessions.offer_halt(session_id)
        self._database.close()
