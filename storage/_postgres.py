"""The PostgreSQL engine: every session in the tables of one schema, for programs on many hosts.

The server is the one authority: it gives the numbers, in its own transactions and under its own locks, and what it says
after a lost connection is the truth. So nothing here halts a session for want of an answer.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import psycopg
from psycopg.types.numeric import Int8

from ..protocol import (
    SEQ_MAX,
    AppendRejected,
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
from ._postgres_append import Appender
from ._postgres_hints import Listener, Notifier, channel_of
from ._postgres_lifetimes import Lifetimes
from ._postgres_pool import Connection, ConnectionLost, Connections, ServerTooWeak, Unreachable
from ._postgres_rows import Events, KnownThrough, Reader, SessionRow, log_lost
from ._postgres_schema import NoStore, SchemaUnusable, Statements, find_schema, open_schema
from ._postgres_url import PostgresUrl
from ._postgres_verify import Scan, repair_locked, scan_session, verify_schema, verify_session
from ._store import BatchResult, EventStore, Finding, HaltRecord, Record, SessionBatch, SessionInfo, Snapshot

__all__ = ["PostgresEventStore"]

_DURABILITIES = ("fsync", "os")
_SESSIONS_PAGE = 1000
_LOOK_S = 1.0


class PostgresEventStore(EventStore):
    """Sessions in a schema of a PostgreSQL database; ``docs/engines.md`` has its promises, settings and costs.

    Args:
        url: ``postgresql://…`` as libpq reads it; ``logmark_schema=NAME`` among its parameters names the schema,
            which is made when it is missing. Several hosts may be named: the one that takes writes is used.
        limits: the bounds; this engine uses lock_wait_s, server_wait_s, server_connections_max and read_chunk_bytes.
        durability: ``"fsync"``: an append returns when the server has it on its disk, and on those of its synchronous
            standbys; a server whose settings promise less is refused. ``"os"``: an append returns when the server has
            it in memory (``synchronous_commit = off``): it survives the program, and may not survive the server.
        create: make schema and tables when there are none; False for tools that only look.
        clock: the time.

    Raises:
        InvalidArgument: the URL is wrong.
        StorageUnavailable: the server cannot be reached, promises too little, or has a store of a newer version.
    """

    def __init__(
        self,
        url: str,
        *,
        limits: Limits | None = None,
        durability: str = "fsync",
        create: bool = True,
        clock: Clock | None = None,
    ) -> None:
        if durability not in _DURABILITIES:
            message = f"durability is one of {', '.join(_DURABILITIES)}, not {durability!r}"
            raise InvalidArgument(message)
        parsed = PostgresUrl.parse(url)
        self.url = parsed.shown
        self._limits = limits or Limits()
        self._clock = clock or SystemClock()
        self.log = self._log = get_logger(actor="store")
        self._connections = Connections(parsed, limits=self._limits, must_sync=durability == "fsync", log=self._log)
        schema = self._open(parsed, create=create)
        self._sql = Statements.of(schema)
        self._known = KnownThrough()
        self._reader = Reader(self._connections, store=self.url, wait_s=self._limits.server_wait_s)
        self._appender = Appender(self._connections, self._sql, limits=self._limits, known=self._known)
        self._lifetimes = Lifetimes(
            self._connections,
            self._reader,
            self._sql,
            store=self.url,
            limits=self._limits,
            known=self._known,
            clock=self._clock,
        )
        self._channel = channel_of(schema)
        self._notifier = Notifier(self._connections, self._channel, self._log)
        self._listeners: list[Listener] = []
        self._closed = False

    def _open(self, url: PostgresUrl, *, create: bool) -> str:
        deadline = time.monotonic() + self._limits.server_wait_s
        try:
            connection = self._connections.connect(deadline)
            try:
                connection.deadline = deadline + self._limits.lock_wait_s
                schema = find_schema(connection, url.schema)
                open_schema(connection, schema, create=create)
            finally:
                connection.close()
        except (Unreachable, ServerTooWeak, SchemaUnusable) as error:
            missing = errno.ENOENT if isinstance(error, NoStore) else None
            raise StorageUnavailable(store=self.url, reason=str(error), errno=missing) from error
        except psycopg.Error as error:
            reason = f"the tables cannot be made: {type(error).__name__}: {error}".strip()
            raise StorageUnavailable(store=self.url, reason=reason) from error
        self._connections.open()
        return schema

    # -- appending ----------------------------------------------------------------------------------------------

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        """See ``EventStore.append``; several sessions are written in one transaction."""
        results = self._appender.append(batches)
        for result in results:
            if result.bytes_written:
                self._notifier.appended(result.session_id)
        return results

    def reserve(self, session_id: str, through_seq: int) -> None:
        """See ``EventStore.reserve``."""

        def work(connection: Connection, row: SessionRow) -> None:
            row.check_not_deleted(session_id)
            halt = row.halt(session_id)
            if halt is not None:
                raise SessionHalted(session_id=session_id, reason=halt.reason, halted_at=halt.at)
            if row.sealed_at is not None:
                raise SessionSealed(session_id=session_id, last_seq=row.seq)
            if through_seq > SEQ_MAX:
                raise SequenceExhausted(session_id=session_id, last_seq=row.through)
            if through_seq > row.through:
                first, last, key = Int8(row.through + 1), Int8(through_seq), Int8(row.key)
                connection.execute(self._sql.reserve, (key, first, last, None))
                connection.execute(self._sql.raise_through, (last, key))

        self._locked(session_id, work)
        self._known.note(session_id, min(through_seq, SEQ_MAX))

    def _locked(self, session_id: str, work: Callable[[Connection, SessionRow], None]) -> None:
        """Do something that may be done twice, in a transaction that holds the session's lock."""
        key = session_id.encode()
        deadline = time.monotonic() + self._limits.lock_wait_s + self._limits.server_wait_s
        while True:
            try:
                with self._connections.use(deadline) as connection:
                    connection.execute(self._sql.add_sessions, ([key],))
                    with connection.transaction():
                        (row,) = connection.execute(self._sql.lock, ([key],), binary=True).fetchall()
                        work(connection, SessionRow.of(row[1:]))
                    return
            except Unreachable as error:
                raise StorageRejected(session_id=session_id, reason=str(error)) from error
            except ConnectionLost as error:
                if time.monotonic() >= deadline:
                    raise StorageRejected(session_id=session_id, reason=str(error)) from error
            except psycopg.errors.LockNotAvailable:
                waited_s = self._limits.lock_wait_s
                raise LockTimeout(session_id=session_id, waited_s=waited_s, holder_pid=None) from None
            except psycopg.Error as error:
                reason = f"{type(error).__name__}: {error}".strip()
                raise StorageRejected(session_id=session_id, reason=reason) from error

    # -- reading ------------------------------------------------------------------------------------------------

    def _session_row(self, session_id: str) -> SessionRow | None:
        rows = self._reader.ask(self._sql.session, (session_id.encode(),))
        return SessionRow.of(rows[0]) if rows else None

    def _readable(self, session_id: str, *, halted_ok: bool) -> SessionRow | None:
        """Return what the table says of a session that may be read, or None when it was never written to."""
        known = self._known.through(session_id)
        row = self._session_row(session_id)
        if row is None:
            self._check_through(session_id, 0, known)
            return None
        row.check_not_deleted(session_id)
        if not halted_ok:
            halt = row.halt(session_id)
            if halt is not None:
                raise SessionHalted(session_id=session_id, reason=halt.reason, halted_at=halt.at)
            self._check_through(session_id, row.through, known)
        return row

    def _events(self, session_id: str, *, halted_ok: bool) -> Events | None:
        row = self._readable(session_id, halted_ok=halted_ok)
        if row is None:
            return None
        return Events(self._reader, self._sql, session_id, row, chunk_bytes=self._limits.read_chunk_bytes)

    def _check_through(self, session_id: str, through: int, known: int) -> None:
        """Raise when the log ends before what was known of it when it was asked; else learn how far it goes."""
        if through < known:
            raise log_lost(session_id, through, known)
        if through > known:
            self._known.note(session_id, through)

    def read(
        self, session_id: str, *, from_seq: int = 1, through_seq: int | None = None, halted_ok: bool = False
    ) -> Iterator[RawEnvelope]:
        """See ``EventStore.read``; no connection is held between two pages.

        Raises:
            StorageUnavailable: the server did not answer in time.
        """
        events = self._events(session_id, halted_ok=halted_ok)
        if events is None:
            return iter(())
        if max(1, from_seq) < events.first_available:
            raise SeqPruned(session_id=session_id, seq=max(1, from_seq), first_available=events.first_available)
        return events.upwards(from_seq, through_seq)

    def read_backwards(self, session_id: str, *, before_seq: int | None = None) -> Iterator[RawEnvelope]:
        """See ``EventStore.read_backwards``; raises as ``read`` does."""
        events = self._events(session_id, halted_ok=False)
        return iter(()) if events is None else events.downwards(before_seq)

    def info(self, session_id: str) -> SessionInfo:
        """See ``EventStore.info``."""
        known = self._known.through(session_id)
        rows = self._reader.ask(self._sql.info, (session_id.encode(),))
        if not rows:
            self._check_through(session_id, 0, known)
            return SessionInfo(session_id=session_id, last_seq=0, next_seq=1)
        row = SessionRow.of(rows[0])
        self._check_through(session_id, row.through, known)
        halt = row.halt(session_id)
        return SessionInfo(
            session_id=session_id,
            last_seq=row.seq,
            next_seq=row.through + 1,
            first_seq=rows[0][9] or 0,
            first_available=row.first_available,
            sealed=row.sealed_at is not None,
            deleted=row.deleted_at is not None,
            halted=None if halt is None else halt.reason,
        )

    def last_seq(self, session_id: str) -> int:
        """See ``EventStore.last_seq``."""
        answer = self.last_seqs([session_id])[session_id]
        if isinstance(answer, SessionDeleted):
            return answer.last_seq
        if isinstance(answer, Exception):
            raise answer
        return answer

    def last_seqs(self, session_ids: Iterable[str]) -> dict[str, int | Exception]:
        """See ``EventStore.last_seqs``; one round trip for all of them."""
        wanted = list(session_ids)
        if not wanted:
            return {}
        known = {session_id: self._known.through(session_id) for session_id in wanted}
        try:
            rows = self._reader.ask(self._sql.last_seqs, ([session_id.encode() for session_id in wanted],))
        except StorageUnavailable as error:
            return dict.fromkeys(wanted, error)
        found = {key.decode(): SessionRow.of(values) for key, *values in rows}
        answers: dict[str, int | Exception] = {}
        for session_id in wanted:
            row = found.get(session_id)
            try:
                if row is not None:
                    row.check_not_deleted(session_id)
                self._check_through(session_id, 0 if row is None else row.through, known[session_id])
            except (LogCorrupt, SessionDeleted) as error:
                answers[session_id] = error
            else:
                answers[session_id] = 0 if row is None else row.seq
        return answers

    def sessions(self) -> Iterator[str]:
        """See ``EventStore.sessions``; raises as ``read`` does."""
        after = b""
        while True:
            rows = self._reader.ask(self._sql.sessions, (after, _SESSIONS_PAGE))
            for (key,) in rows:
                yield key.decode()
            if len(rows) < _SESSIONS_PAGE:
                return
            after = rows[-1][0]

    def load_snapshot(self, session_id: str, name: str) -> Snapshot | None:
        """See ``EventStore.load_snapshot``; raises as ``read`` does too."""
        try:
            row = self._readable(session_id, halted_ok=False)
        except SessionDeleted:
            row = None
        rows = [] if row is None else self._reader.ask(self._sql.load_snapshot, (row.key, name.encode()))
        if not rows or crc32(rows[0][1]) != rows[0][2]:
            return None
        return Snapshot(rows[0][0], rows[0][1])

    def save_snapshot(self, session_id: str, name: str, snapshot: Snapshot) -> None:
        """See ``EventStore.save_snapshot``."""
        values = (name.encode(), snapshot.data, Int8(crc32(snapshot.data)), session_id.encode(), snapshot.seq)
        self._reader.ask(self._sql.save_snapshot, values)

    def load_record(self, session_id: str, name: str) -> Record | None:
        """See ``EventStore.load_record``; raises as ``read`` does too."""
        return self._lifetimes.records(session_id, name).get(name)

    def save_record(self, session_id: str, name: str, data: bytes | None, *, version: int) -> int:
        """See ``EventStore.save_record``."""
        return self._lifetimes.save_record(session_id, name, data, version=version)

    def records(self, session_id: str) -> dict[str, Record]:
        """See ``EventStore.records``; raises as ``read`` does too."""
        return self._lifetimes.records(session_id)

    def truncate_before(self, session_id: str, seq: int) -> int:
        """See ``EventStore.truncate_before``; it is done in steps, and others append between two of them."""
        try:
            return self._lifetimes.truncate_before(session_id, seq)
        finally:
            self._notifier.appended(session_id)

    def seal(self, session_id: str) -> int:
        """See ``EventStore.seal``."""
        last_seq = self._lifetimes.seal(session_id)
        self._notifier.appended(session_id)
        return last_seq

    def delete(self, session_id: str) -> None:
        """See ``EventStore.delete``."""
        try:
            self._lifetimes.delete(session_id)
        finally:
            self._notifier.appended(session_id)

    def watch(self, changed: Callable[[str | None], None]) -> float | None:
        """See ``EventStore.watch``: the server's notifications, on a connection and a thread of their own."""
        listener = Listener(self._connections, self._channel, changed, self._notifier, self._log)
        self._listeners.append(listener)
        listener.start()
        return _LOOK_S

    # -- halting, verifying, repairing --------------------------------------------------------------------------

    def halt(self, session_id: str, reason: str, *, first_event_id: str | None = None) -> None:
        """See ``EventStore.halt``: for every process, at once.

        Raises:
            StorageUnavailable: the server did not answer in time; the session is not halted.
        """
        at = rfc3339(self._clock.time_ns())
        event_id = None if first_event_id is None else first_event_id.encode()
        values = (session_id.encode(), at, reason.encode(errors="backslashreplace"), event_id)
        if not self._reader.ask(self._sql.halt, values):
            row = self._session_row(session_id)  # which is halted already, or deleted
            if row is not None:
                row.check_not_deleted(session_id)
        self._log.error("session_halted", session=session_id, reason=reason, first_event_id=first_event_id)

    def halted(self, session_id: str) -> HaltRecord | None:
        """See ``EventStore.halted``; raises as ``read`` does."""
        row = self._session_row(session_id)
        return None if row is None else row.halt(session_id)

    def clear_halt(self, session_id: str) -> None:
        """See ``EventStore.clear_halt``; raises as ``read`` does too."""
        row = self._session_row(session_id)
        if row is None:
            return
        row.check_not_deleted(session_id)
        _, error = self._verify(session_id, row)
        if error is not None:
            raise error
        self._reader.ask(self._sql.clear_halt, (session_id.encode(),))
        if row.halted_at is not None:
            self._log.warning("halt_cleared", session=session_id)

    def _verify(self, session_id: str, row: SessionRow) -> tuple[list[Finding], LogCorrupt | None]:
        return verify_session(
            self._reader,
            self._sql,
            session_id,
            row,
            known=self._known.through(session_id),
            chunk_bytes=self._limits.read_chunk_bytes,
        )

    def verify(self, session_id: str) -> list[Finding]:
        """See ``EventStore.verify``; raises as ``read`` does."""
        row = self._session_row(session_id)
        return [] if row is None else self._verify(session_id, row)[0]

    def verify_store(self) -> list[Finding]:
        """See ``EventStore.verify_store``: constraints that are gone, rows that no session owns."""
        return verify_schema(self._reader, self._sql)

    def repair(self, session_id: str, *, dry_run: bool = False) -> list[str]:
        """See ``EventStore.repair``; what is taken out goes to the table ``logmark_quarantine``."""
        row = self._session_row(session_id)
        if row is None:
            return []
        if row.deleted_at is not None:
            return self._finish_deletion(session_id, row, dry_run=dry_run)
        known = self._known.through(session_id)
        scan = self._scan(session_id, row, known)
        halt = row.halt(session_id)
        if scan.is_sound and halt is None and known <= row.through:
            return []
        steps: list[str] = []

        def work(connection: Connection, locked: SessionRow) -> None:
            again = self._scan(session_id, locked, known)  # nobody appends now
            steps[:] = (
                []
                if again.is_sound and known <= locked.through
                else repair_locked(connection, self._sql, locked, again, known=known, dry_run=dry_run)
            )
            standing = locked.halt(session_id)
            if standing is not None:
                steps.append(f"clear the halt ({standing.reason})")
                if not dry_run:
                    connection.execute(self._sql.clear_halt, (session_id.encode(),))

        try:
            self._locked(session_id, work)
        except AppendRejected as error:
            if isinstance(error, StorageRejected):
                raise StorageUnavailable(store=self.url, reason=error.reason) from error
            raise
        if not dry_run:
            self._known.forget(session_id)
            self._log.warning("session_repaired", session=session_id, steps=len(steps), originals="logmark_quarantine")
        return steps

    def _finish_deletion(self, session_id: str, row: SessionRow, *, dry_run: bool) -> list[str]:
        ((left,),) = self._reader.ask(self._sql.left, (row.key,))
        if not left:
            return []
        if not dry_run:
            self._lifetimes.remove_events(session_id, row.key)
        return [f"remove {left} events that are left of the session, which was deleted"]

    def _scan(self, session_id: str, row: SessionRow, known: int) -> Scan:
        return scan_session(
            self._reader, self._sql, session_id, row, known=known, chunk_bytes=self._limits.read_chunk_bytes
        )

    # -- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """See ``EventStore.close``."""
        if self._closed:
            return
        self._closed = True
        self._notifier.close()
        for listener in self._listeners:
            listener.close()
        self._connections.close()

    def after_fork_in_child(self) -> None:
        """Let go of the connections without a word to the server: they are the parent's."""
        self._connections.after_fork_in_child()
