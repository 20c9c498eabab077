"""Appending to a SQLite database: plan, write and commit; calls that wait for a commit share the next one."""

from __future__ import annotations

import collections
import contextlib
import sqlite3
import threading
from collections.abc import Sequence
from typing import NamedTuple

from ..protocol import (
    AppendError,
    AppendUncertain,
    EventIdConflict,
    Limits,
    LockTimeout,
    LogCorrupt,
    SessionDeleted,
    StorageRejected,
    StorageUnavailable,
    row_seed,
)
from ._patience import WouldWait, catch_up, may_wait
from ._plan import BatchPlan, SessionPlan, event_checksum, ids_in_doubt
from ._sqlite_db import BUSY, CommitUncertain, Database, DatabaseBusy, errno_of, primary_code
from ._sqlite_rows import find_session
from ._sqlite_sessions import SessionEnd, SqliteSessions, damage_of, make_session
from ._store import BatchResult, SessionBatch

__all__ = ["CORRUPT", "SqliteAppender"]

CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
"""Result codes that say that the file is not what SQLite wrote."""
_SESSION_BYTES = 2 * 4096  # a page of events and one of ids
_ROWS_MAX = 32
# By the number of rows, as a row costs a third less in a statement with others than in one of its own.
_INSERTS = tuple(
    f"INSERT INTO event (session, seq, id, head, payload, crc) VALUES {', '.join(['(?1, ?, ?, ?, ?, ?)'] * rows)}"  # noqa: S608
    for rows in range(_ROWS_MAX + 1)
)
_COLUMNS = 5  # of a row, the session not counted
# Does nothing to a session that is not as this process has left it.
_ADVANCE = """
    UPDATE session SET last_seq = ?, through_seq = ?
    WHERE key = ? AND id = ? AND last_seq = ? AND through_seq = ?
    AND halt_reason IS NULL AND halt_at IS NULL AND sealed_at IS NULL AND deleted_at IS NULL
"""


class _Call:
    """One call of ``append`` on its way through a commit; its thread sleeps until it has an answer, or is to commit."""

    __slots__ = ("batches", "error", "leads", "results", "sleep")

    def __init__(self, batches: Sequence[SessionBatch]) -> None:
        self.batches = batches
        self.results: list[BatchResult] = []
        self.error: Exception | None = None
        self.leads = False
        self.sleep = threading.Lock()
        self.sleep.acquire()


class _Open:
    """A session inside a transaction: its plan, and its key once it has one."""

    __slots__ = ("key", "plan")

    def __init__(self, key: int | None, plan: SessionPlan) -> None:
        self.key = key
        self.plan = plan


class _Foreseen(NamedTuple):
    """A batch that was planned before its transaction, as if nobody else touched its session meanwhile."""

    end: SessionEnd
    plan: BatchPlan
    rows: _Rows


class _Rows(NamedTuple):
    """The columns of events, one after the other, and the bytes of all."""

    values: list[object]
    size_bytes: int


class SqliteAppender:
    """Writes the batches of one store. Safe from any thread."""

    def __init__(self, database: Database, sessions: SqliteSessions, limits: Limits) -> None:
        self._database = database
        self._sessions = sessions
        self._limits = limits
        self._waiting: collections.deque[_Call] = collections.deque()
        self._mutex = threading.Lock()
        self._is_led = False

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        """See ``EventStore.append``."""
        self._database.check_usable()
        if self._sessions.unwritten:
            for batch in batches:
                self._sessions.offer_halt(batch.session_id)
        call = _Call(batches)
        with self._mutex:
            call.leads = not self._is_led
            if not call.leads and not may_wait():
                raise WouldWait
            self._is_led = True
            self._waiting.append(call)
        if not call.leads:
            self._await(call)
        if call.leads:
            self._lead(call)
        if call.error is not None:
            raise call.error
        return call.results

    def _await(self, call: _Call) -> None:
        """Sleep until the call is done, or is to lead; an interrupt leaves neither the call nor the lead behind."""
        catch_up()
        try:
            call.sleep.acquire()
        except BaseException:
            with self._mutex:
                if call in self._waiting:
                    self._waiting.remove(call)
                if call.leads:
                    self._hand_over()
            raise

    def _hand_over(self) -> None:
        """Let the first who waits lead the next commit; the mutex is held."""
        self._is_led = bool(self._waiting)
        if self._waiting:
            self._waiting[0].leads = True
            self._waiting[0].sleep.release()

    def _lead(self, own: _Call) -> None:
        """Commit for everybody who waits, and wake them; the first who has come meanwhile leads the next commit."""
        with self._mutex:
            calls = list(self._waiting)
            self._waiting.clear()
        try:
            self._write_calls(calls, own)
        except WouldWait:
            with self._mutex:  # nothing was done; who may wait goes on
                self._waiting.extendleft(call for call in reversed(calls) if call is not own)
            calls = []
            raise
        finally:
            with self._mutex:
                self._hand_over()
            for call in calls:
                if call is not own:
                    call.sleep.release()

    def _write_calls(self, calls: list[_Call], own: _Call) -> None:
        batches = [batch for call in calls for batch in call.batches]
        try:
            results = self._write(batches)
        except WouldWait:
            raise
        except Exception as error:  # a closed store, a forked process: the same for everyone
            for call in calls:
                call.error = error
            return
        except BaseException as error:
            # An interrupt of this thread is not the others' business, but nobody can tell whether it came before the
            # commit or after it.
            reason = f"interrupted: {type(error).__name__}"
            for call in calls:
                if call is not own:
                    call.results = [self._uncertain_batch(batch, reason) for batch in call.batches]
            raise
        if self._sessions.unwritten:
            for session_id in {result.session_id for result in results if _is_uncertain(result)}:
                with contextlib.suppress(SessionDeleted):  # the answers stand; nothing more is appended there
                    self._sessions.record_halt(session_id)
        at = 0
        for call in calls:
            call.results = results[at : at + len(call.batches)]
            at += len(call.batches)

    def _write(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        if not batches:
            return []
        foreseen = self._foresee(batches)
        # The callers of the last commit run while SQLite writes this one. They are not answered inside the transaction:
        # what a future calls back may write to the store itself.
        catch_up()
        try:
            return self._database.transact(lambda connection: self._commit(connection, batches, foreseen))
        except DatabaseBusy as busy:
            wait_s, pid = self._limits.lock_wait_s, busy.holder_pid
            return [
                self._refused(batch, LockTimeout(session_id=batch.session_id, waited_s=wait_s, holder_pid=pid))
                for batch in batches
            ]
        except StorageUnavailable:
            raise
        except (sqlite3.Error, OSError, MemoryError) as error:
            if len(batches) > 1 and not _concerns_everybody(error):
                return [result for batch in batches for result in self._write([batch])]
            return [self._refused(batch, self._rejection(batch, error)) for batch in batches]

    def _foresee(self, batches: Sequence[SessionBatch]) -> dict[str, _Foreseen]:
        """Plan and make the rows of what is plain, as if every session were where this process has left it."""
        foreseen: dict[str, _Foreseen] = {}
        if len({batch.session_id for batch in batches}) < len(batches):
            return foreseen  # of two batches of one session, the second has to see what becomes of the first
        for batch in batches:
            end = self._sessions.end_of(batch.session_id)
            if end is None:
                continue
            plan = SessionPlan(batch.session_id, seq=end.seq, through=end.through).plan_plainly(batch.requests)
            if plan is not None:
                foreseen[batch.session_id] = _Foreseen(end, plan, _rows_of(plan))
        return foreseen

    def _advance(self, connection: sqlite3.Connection, foreseen: _Foreseen) -> bool:
        """Write a batch as it was planned; False, and nothing written, when its session is not where it was left.

        So a session that only this process writes to is asked for and moved on in one statement.
        """
        end, session = foreseen.end, foreseen.plan.session
        if end.generation != self._database.generation or session.session_id in self._sessions.unwritten:
            return False
        values = (session.seq, session.through, end.key, session.session_id, end.seq, end.through)
        if connection.execute(_ADVANCE, values).rowcount != 1:
            return False
        _insert_rows(connection, end.key, foreseen.rows)
        return True

    def _commit(
        self, connection: sqlite3.Connection, batches: Sequence[SessionBatch], foreseen: dict[str, _Foreseen]
    ) -> list[BatchResult]:
        """Plan, write and commit; whatever is raised is raised before anything is durable."""
        opened: dict[str, _Open] = {}
        plans: list[BatchPlan | BatchResult] = []
        ends: dict[str, SessionEnd] = {}
        generation = self._database.generation
        for batch in batches:
            ahead = foreseen.get(batch.session_id)
            if ahead is not None and self._advance(connection, ahead):
                session = ahead.plan.session
                ends[batch.session_id] = SessionEnd(generation, ahead.end.key, session.seq, session.through)
                plans.append(ahead.plan)
                continue
            try:
                plans.append(self._plan(connection, opened, batch))
            except LogCorrupt as error:
                plans.append(_result_of(batch, error, max(0, (error.event_seq or 1) - 1)))
        sizes: list[int] = []
        for batch, plan in zip(batches, plans, strict=True):
            if batch.session_id in ends:
                sizes.append(foreseen[batch.session_id].rows.size_bytes)
            else:
                sizes.append(self._insert(connection, opened, plan) if isinstance(plan, BatchPlan) else 0)
        for session_id, opening in opened.items():
            if opening.plan.is_changed and opening.key is not None:
                ends[session_id] = SessionEnd(generation, opening.key, opening.plan.seq, opening.plan.through)
                connection.execute(
                    "UPDATE session SET last_seq = ?, through_seq = ? WHERE key = ?",
                    (opening.plan.seq, opening.plan.through, opening.key),
                )
        if not ends:
            return [plan if isinstance(plan, BatchResult) else plan.result() for plan in plans]
        self._database.grow(sum(sizes) + _SESSION_BYTES * (len(ends) - 1))
        try:
            sync_s = self._database.commit(connection)
        except CommitUncertain as uncertain:
            return self._uncertain(plans, str(uncertain))
        for session_id, end in ends.items():
            self._sessions.note_end(session_id, end)
        return [
            plan if isinstance(plan, BatchResult) else plan.result(bytes_written=size, sync_s=sync_s)
            for plan, size in zip(plans, sizes, strict=True)
        ]

    def _plan(
        self, connection: sqlite3.Connection, opened: dict[str, _Open], batch: SessionBatch
    ) -> BatchPlan | BatchResult:
        session = opened.get(batch.session_id)
        if session is None:
            row = self._sessions.row(connection, batch.session_id)
            if row is not None and row.deleted_at is not None:
                error = SessionDeleted(session_id=batch.session_id, last_seq=row.through, deleted_at=row.deleted_at)
                return _result_of(batch, error, row.seq)
            halt = self._sessions.halt_of(batch.session_id, row)
            if row is None:
                session = _Open(None, SessionPlan(batch.session_id, seq=0, through=0, halt=halt))
            else:
                is_sealed = row.sealed_at is not None
                plan = SessionPlan(batch.session_id, seq=row.seq, through=row.through, halt=halt, sealed=is_sealed)
                session = _Open(row.key, plan)
            opened[batch.session_id] = session
        known: dict[str, int] = {}
        if session.key is not None:
            for event_id in ids_in_doubt(batch.requests):
                found = connection.execute(
                    "SELECT seq FROM event WHERE session = ? AND id = ?", (session.key, event_id)
                ).fetchone()
                if found is not None:
                    known[event_id] = found[0]
        return session.plan.plan(batch.requests, known)

    def _insert(self, connection: sqlite3.Connection, opened: dict[str, _Open], plan: BatchPlan) -> int:
        """Write the rows of a plan and return their bytes."""
        if not plan.events:
            return 0
        session_id = plan.session.session_id
        session = opened[session_id]
        if session.key is None:
            session.key = make_session(connection, session_id)
        rows = _rows_of(plan)
        _insert_rows(connection, session.key, rows)
        return rows.size_bytes

    def _uncertain(self, plans: list[BatchPlan | BatchResult], reason: str) -> list[BatchResult]:
        results: list[BatchResult] = []
        for plan in plans:
            if isinstance(plan, BatchResult) or not plan.events:
                results.append(plan if isinstance(plan, BatchResult) else plan.result())
                continue
            session_id, first_id = plan.session.session_id, plan.first_event_id
            self._sessions.keep_halt(session_id, reason, first_id)
            error = AppendUncertain(session_id=session_id, reason=reason, first_event_id=first_id)
            results.append(plan.failed(error))
        return results

    def _uncertain_batch(self, batch: SessionBatch, reason: str) -> BatchResult:
        first_id = batch.requests[0].events[0].id if batch.requests else None
        self._sessions.keep_halt(batch.session_id, reason, first_id)
        return _result_of(
            batch, AppendUncertain(session_id=batch.session_id, reason=reason, first_event_id=first_id), 0
        )

    def _refused(self, batch: SessionBatch, error: AppendError) -> BatchResult:
        """Return the result of a batch that did not come to the log, with what can be read of its session."""
        try:
            with self._database.reader() as connection:
                row = find_session(connection, batch.session_id)
        except (sqlite3.Error, OSError):
            row = None
        return _result_of(batch, error, 0 if row is None else row.seq)

    def _rejection(self, batch: SessionBatch, error: sqlite3.Error | OSError | MemoryError) -> AppendError:
        session_id = batch.session_id
        found: AppendError | None = None
        if isinstance(error, sqlite3.IntegrityError):
            found = self._collision(batch)
        if found is None:
            code = primary_code(error) if isinstance(error, sqlite3.Error) else 0
            if code in CORRUPT:
                found = damage_of(session_id, str(error))
            elif code in BUSY:
                found = LockTimeout(session_id=session_id, waited_s=self._limits.lock_wait_s, holder_pid=None)
            else:
                number = errno_of(error) if isinstance(error, sqlite3.Error) else getattr(error, "errno", None)
                found = StorageRejected(session_id=session_id, reason=f"{type(error).__name__}: {error}", errno=number)
        found.__cause__ = error
        return found

    def _collision(self, batch: SessionBatch) -> AppendError:
        """Say which constraint a batch has met: an id that was said to be fresh, or a row beyond the high-water."""
        session_id = batch.session_id
        with self._database.reader() as connection:
            row = find_session(connection, session_id)
            for request in batch.requests if row is not None else ():
                for event in request.events:
                    taken = connection.execute(
                        "SELECT seq FROM event WHERE session = ? AND id = ?", (row.key if row else 0, event.id)
                    ).fetchone()
                    if taken is not None:
                        return EventIdConflict(session_id=session_id, event_id=event.id, event_seq=taken[0])
        return damage_of(
            session_id, "there is an event beyond the high-water", None if row is None else row.through + 1
        )


def _rows_of(plan: BatchPlan) -> _Rows:
    """Return the columns of what is to be written, their checksums among them."""
    seed = row_seed(plan.session.session_id)
    values: list[object] = []
    size_bytes = 0
    for seq, (event_id, _, _, head, payload, _) in plan.rows():
        values += (seq, event_id, head, payload, event_checksum(seed, seq, head, payload))
        size_bytes += len(head) + len(payload)
    return _Rows(values, size_bytes)


def _insert_rows(connection: sqlite3.Connection, key: int, rows: _Rows) -> None:
    """Insert events of a session, many in one statement."""
    values = rows.values
    for at in range(0, len(values), _ROWS_MAX * _COLUMNS):
        some = values[at : at + _ROWS_MAX * _COLUMNS]
        connection.execute(_INSERTS[len(some) // _COLUMNS], (key, *some))


def _result_of(batch: SessionBatch, error: AppendError, last_seq: int) -> BatchResult:
    return BatchResult(
        session_id=batch.session_id,
        answers=(error,) * len(batch.requests),
        last_seq_before=last_seq,
        last_seq=last_seq,
    )


def _is_uncertain(result: BatchResult) -> bool:
    return any(isinstance(answer, AppendUncertain) for answer in result.answers)


def _concerns_everybody(error: BaseException) -> bool:
    """Say whether an error of the database would meet every batch of a transaction alike."""
    return isinstance(error, OSError) or (
        isinstance(error, sqlite3.Error)
        and primary_code(error) in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, 0}
    )
