"""Appends to PostgreSQL: numbers and rows in one statement under the session's row lock.

The usual append is that one statement, a transaction of its own: one round trip, and one wait for the server's disk. It
does nothing when anything is unusual; then the append is made carefully: lock the rows of all its sessions, in the
order of their ids so that no two appends wait for each other, look for the ids, settle every request, write, commit.

A session's commits become visible in the order of its numbers, because the row lock is given up after the commit can be
seen and the next append reads the counter after it has the lock. So a reader that sees a number sees all below it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Generator, Mapping, Sequence

import psycopg
from psycopg.types.numeric import Int8

from ..protocol import (
    AppendError,
    AppendUncertain,
    EncodedEvent,
    Limits,
    LockTimeout,
    LogCorrupt,
    SessionDeleted,
    StorageRejected,
    row_seed,
)
from ._plan import BatchPlan, SessionPlan, event_checksum, ids_in_doubt
from ._postgres_pool import Connection, ConnectionLost, Connections, Unreachable, is_lost
from ._postgres_rows import KnownThrough, SessionRow, log_lost
from ._postgres_schema import Statements
from ._store import Appended, AppendRequest, BatchResult, SessionBatch

__all__ = ["Appender"]

_PAUSE_S = 0.01
_PAUSE_S_MAX = 0.25


@dataclasses.dataclass(slots=True)
class _Group:
    """All batches of one session in one call.

    Attributes:
        places: their indices in the call.
        sent: the server has something of it that it may commit, and has not answered yet.
        in_doubt: the connection was lost while it was so.
        results: one for each batch, when they are known.
    """

    session_id: str
    key: bytes
    batches: list[tuple[AppendRequest, ...]]
    places: list[int]
    sent: bool = False
    in_doubt: bool = False
    results: list[BatchResult] | None = None

    @property
    def requests(self) -> list[AppendRequest]:
        return [request for requests in self.batches for request in requests]

    @property
    def first_event_id(self) -> str | None:
        return next((event.id for request in self.requests for event in request.events), None)

    def fail(self, error: AppendError, last_seq: int = 0) -> None:
        """Give every request the same answer."""
        self.results = [
            BatchResult(
                session_id=self.session_id,
                answers=(error,) * len(requests),
                last_seq_before=last_seq,
                last_seq=last_seq,
            )
            for requests in self.batches
        ]


class Appender:
    """Writes batches. Safe from any thread.

    Args:
        connections: to the server.
        statements: of the store.
        limits: lock_wait_s and server_wait_s count.
        known: session ids and the numbers through which this process knows their logs to go; kept up to date.
    """

    def __init__(
        self, connections: Connections, statements: Statements, *, limits: Limits, known: KnownThrough
    ) -> None:
        self._connections = connections
        self._sql = statements
        self._limits = limits
        self._known = known

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        """Write the batches; every failure is in the answers."""
        groups = _grouped(batches)
        deadline = time.monotonic() + self._limits.lock_wait_s + self._limits.server_wait_s
        pause_s = _PAUSE_S
        while todo := [group for group in groups if group.results is None]:
            try:
                self._attempt(todo, deadline)
            except Unreachable as error:
                self._fail(todo, str(error))
            except ConnectionLost as error:
                for group in todo:
                    group.in_doubt = group.in_doubt or (group.sent and not error.nothing_done)
                    group.sent = False
                if time.monotonic() + pause_s >= deadline:
                    self._fail(todo, str(error))
                else:
                    # Whether it was written is asked of the server, by making the same append again under its ids.
                    time.sleep(pause_s)
                    pause_s = min(2 * pause_s, _PAUSE_S_MAX)
        results: list[BatchResult | None] = [None] * len(batches)
        for group in groups:
            for place, result in zip(group.places, group.results or (), strict=True):
                results[place] = result
        return [result for result in results if result is not None]

    def _attempt(self, todo: list[_Group], deadline: float) -> None:
        with self._connections.use(deadline) as connection:
            try:
                self._write(connection, todo)
                return
            except psycopg.Error as error:
                if is_lost(connection, error):
                    raise
                if len(todo) == 1:
                    self._refuse(todo[0], error)
                    return
            # One of several sessions may not keep the others from being written.
            for group in [group for group in todo if group.results is None]:
                try:
                    self._write(connection, [group])
                except psycopg.Error as error:
                    if is_lost(connection, error):
                        raise
                    self._refuse(group, error)

    def _write(self, connection: Connection, todo: list[_Group]) -> None:
        """Write what can be written; when it raises and the connection lives, nothing of it remains."""
        plain = [group for group in todo if not group.in_doubt and _is_plain(group)]
        if plain:
            # When an id was taken while this waited for the lock, nothing is written, and who took it is seen below.
            with contextlib.suppress(psycopg.errors.UniqueViolation), _rolled_back(connection, plain):
                self._write_quickly(connection, plain)
        others = [group for group in todo if group.results is None]
        if others:
            with _rolled_back(connection, others):
                self._write_carefully(connection, others)

    # -- the usual append ---------------------------------------------------------------------------------------

    def _write_quickly(self, connection: Connection, groups: list[_Group]) -> None:
        began = time.monotonic()
        cursors: list[psycopg.Cursor[tuple[int, int]]] = []
        if len(groups) == 1:
            cursors.append(self._write_one(connection, groups[0]))
        else:
            with connection.pipeline():
                connection.execute("BEGIN")
                for group in groups:
                    arguments = self._arguments(group)
                    cursors.append(connection.execute(self._sql.append, arguments, binary=True, prepare=True))
                for group in groups:
                    group.sent = True
                connection.execute("COMMIT")
        took_s = time.monotonic() - began
        for group, cursor in zip(groups, cursors, strict=True):
            row = cursor.fetchone()
            group.sent = False
            if row is not None:
                self._finish_quickly(group, row[0], row[1], took_s)

    def _write_one(self, connection: Connection, group: _Group) -> psycopg.Cursor[tuple[int, int]]:
        arguments = self._arguments(group)
        group.sent = True
        if self._known.through(group.session_id):
            return connection.execute(self._sql.append, arguments, binary=True, prepare=True)
        # It may be the first event of its session: the row comes with it, in one transaction and one round trip.
        with connection.pipeline():
            connection.execute(self._sql.add_sessions, ([group.key],), prepare=True)
            return connection.execute(self._sql.append, arguments, binary=True, prepare=True)

    def _finish_quickly(self, group: _Group, before: int, through: int, took_s: float) -> None:
        """Answer requests that were all written, one after the other."""
        results: list[BatchResult] = []
        for requests in group.batches:
            answers: list[Appended] = []
            size, through_before = 0, through
            for request in requests:
                answers.append(Appended(through + 1, through + len(request.events)))
                through += len(request.events)
                size += sum([event.size_bytes for event in request.events])
            results.append(
                BatchResult(
                    session_id=group.session_id,
                    answers=tuple(answers),
                    last_seq_before=before,
                    last_seq=through if answers else before,
                    bytes_written=size,
                    sync_s=took_s if answers else 0.0,
                    through_before=through_before if answers else None,
                )
            )
            before = results[-1].last_seq
        self._known.note(group.session_id, through)
        group.results = results

    def _arguments(self, group: _Group) -> dict[str, object]:
        seed = row_seed(group.session_id)
        requests = group.requests
        events = [event for request in requests for event in request.events]
        expected = requests[0].expected_seq
        return {
            "session": group.key,
            "count": Int8(len(events)),
            "known": Int8(self._known.through(group.session_id)),
            "expected": None if expected is None else Int8(expected),
            "doubtful": [event_id.encode() for event_id in ids_in_doubt(requests)] or None,
            **_columns(events, [event_checksum(seed, 0, event.head, event.payload_json) for event in events]),
        }

    # -- the careful append -------------------------------------------------------------------------------------

    def _write_carefully(self, connection: Connection, groups: list[_Group]) -> None:
        rows = self._lock(connection, groups)
        if len(rows) < len(groups):
            # Sessions are made in a transaction of its own: made in this one, they would be locked out of order.
            connection.execute("ROLLBACK")
            connection.execute(self._sql.add_sessions, ([group.key for group in groups],))
            rows = self._lock(connection, groups)
        wanted = [
            (group.key, event_id.encode())
            for group in groups
            for event_id in (_all_ids(group) if group.in_doubt else ids_in_doubt(group.requests))
        ]
        found: dict[bytes, dict[str, int]] = {group.key: {} for group in groups}
        if wanted:
            keys, ids = [key for key, _ in wanted], [event_id for _, event_id in wanted]
            for key, event_id, seq in connection.execute(self._sql.find_ids, (keys, ids), binary=True):
                found[key][event_id.decode()] = seq
        plans: list[tuple[_Group, SessionPlan, list[BatchPlan]]] = []
        for group in groups:
            plan = self._plan(group, rows[group.key], found[group.key])
            if plan is not None:
                plans.append((group, *plan))
        if not any(session.is_changed for _, session, _ in plans):
            connection.execute("ROLLBACK")  # which waits for no disk and no standby
            for group, session, batches in plans:
                self._finish(group, session, batches, 0.0)
            return
        began = time.monotonic()
        with connection.pipeline():
            for group, session, batches in plans:
                if session.is_changed:
                    self._write_rows(connection, group, session, batches)
            for group, session, _ in plans:
                group.sent = session.is_changed
            connection.execute("COMMIT")
        took_s = time.monotonic() - began
        for group, session, batches in plans:
            self._finish(group, session, batches, took_s)

    def _lock(self, connection: Connection, groups: list[_Group]) -> dict[bytes, SessionRow]:
        with connection.pipeline():
            connection.execute("BEGIN")
            cursor = connection.execute(self._sql.lock, ([group.key for group in groups],), binary=True)
        return {key: SessionRow.of(values) for key, *values in cursor}

    def _plan(
        self, group: _Group, row: SessionRow, found: Mapping[str, int]
    ) -> tuple[SessionPlan, list[BatchPlan]] | None:
        """Settle the requests of a session whose row is locked; None when the session's answers are known already."""
        known = self._known.through(group.session_id)
        if row.through < known:
            group.fail(log_lost(group.session_id, row.through, known))
            return None
        if group.in_doubt and (row.deleted_at is not None or row.first_available > known + 1):
            # What was sent may have been written, and is not there any more to tell.
            what = "deleted" if row.deleted_at is not None else f"pruned below {row.first_available}"
            reason = f"the connection was lost, and the session is {what}"
            group.fail(
                AppendUncertain(
                    session_id=group.session_id, reason=reason, first_event_id=group.first_event_id, halted=False
                )
            )
            return None
        if row.deleted_at is not None:
            group.fail(
                SessionDeleted(session_id=group.session_id, last_seq=row.through, deleted_at=row.deleted_at), row.seq
            )
            return None
        halt = row.halt(group.session_id)
        if halt is not None and group.in_doubt:
            first_id = group.first_event_id
            reason = f"the connection was lost, and the session has been halted since ({halt.reason})"
            group.fail(AppendUncertain(session_id=group.session_id, reason=reason, first_event_id=first_id))
            return None
        is_sealed = row.sealed_at is not None
        plan = SessionPlan(group.session_id, seq=row.seq, through=row.through, halt=halt, sealed=is_sealed)
        batches = group.batches
        if group.in_doubt:
            # What was sent before the connection was lost may be there, under ids that otherwise nobody would look for.
            batches = [_as_retries(requests) for requests in batches]
        return plan, [plan.plan(requests, found) for requests in batches]

    def _write_rows(
        self, connection: Connection, group: _Group, session: SessionPlan, batches: list[BatchPlan]
    ) -> None:
        seed = row_seed(group.session_id)
        events = [event for batch in batches for event in batch.events]
        arguments: dict[str, object] = {
            "session": group.key,
            "count": Int8(len(events)),
            "known": Int8(session.first - 1),
            "expected": None,
            "doubtful": None,
            **_columns(events, [event_checksum(seed, 0, event.head, event.payload_json) for event in events]),
        }
        connection.execute(self._sql.append, arguments, binary=True)

    # -- answers ------------------------------------------------------------------------------------------------

    def _finish(self, group: _Group, session: SessionPlan, batches: list[BatchPlan], took_s: float) -> None:
        group.sent = False
        self._known.note(group.session_id, session.through)
        group.results = [
            batch.result(bytes_written=sum(event.size_bytes for event in batch.events), sync_s=took_s)
            for batch in batches
        ]

    def _refuse(self, group: _Group, error: psycopg.Error) -> None:
        """Answer what the server has refused: certainly not written, unless an earlier attempt is in doubt."""
        reason = f"{type(error).__name__}: {error}".strip()
        if group.in_doubt:
            self._fail([group], reason)
        elif isinstance(error, psycopg.errors.UniqueViolation):
            group.fail(
                LogCorrupt(
                    session_id=group.session_id,
                    reason=f"the counter is behind the events ({error.diag.message_detail or error})",
                    event_seq=None,
                    segment=None,
                    offset=None,
                )
            )
        elif isinstance(error, psycopg.errors.LockNotAvailable):
            group.fail(LockTimeout(session_id=group.session_id, waited_s=self._limits.lock_wait_s, holder_pid=None))
        else:
            group.fail(_rejected(group.session_id, reason, error))

    def _fail(self, groups: list[_Group], reason: str) -> None:
        for group in [group for group in groups if group.results is None]:
            if group.in_doubt:
                group.fail(
                    AppendUncertain(
                        session_id=group.session_id,
                        reason=reason,
                        first_event_id=group.first_event_id,
                        halted=False,
                    )
                )
            else:
                group.fail(_rejected(group.session_id, reason, None))


def _rejected(session_id: str, reason: str, cause: Exception | None) -> StorageRejected:
    error = StorageRejected(session_id=session_id, reason=reason)
    error.__cause__ = cause
    return error


@contextlib.contextmanager
def _rolled_back(connection: Connection, groups: list[_Group]) -> Generator[None]:
    """End the transaction when the server has refused a part of it."""
    try:
        yield
    except psycopg.Error as error:
        if not is_lost(connection, error):
            for group in groups:
                group.sent = False
            if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                connection.execute("ROLLBACK")
        raise


def _grouped(batches: Sequence[SessionBatch]) -> list[_Group]:
    """Return the batches by session, in the order in which their rows are locked."""
    groups: dict[bytes, _Group] = {}
    for place, batch in enumerate(batches):
        key = batch.session_id.encode()
        group = groups.setdefault(key, _Group(batch.session_id, key, [], []))
        group.batches.append(batch.requests)
        group.places.append(place)
    return [groups[key] for key in sorted(groups)]


def _is_plain(group: _Group) -> bool:
    """Say whether the one statement can settle all of it: new events throughout, expected at most at their start."""
    requests = group.requests
    if not requests or any(request.expected_seq is not None for request in requests[1:]):
        return False
    ids = [event.id for request in requests for event in request.events]
    return len(ids) == 1 or len(set(ids)) == len(ids)


def _all_ids(group: _Group) -> list[str]:
    return list(dict.fromkeys(event.id for request in group.requests for event in request.events))


def _as_retries(requests: tuple[AppendRequest, ...]) -> tuple[AppendRequest, ...]:
    """Return the requests with ids that may be there already."""
    return tuple(
        AppendRequest(
            tuple(
                EncodedEvent(event.id, event.type, event.job_id, event.head, event.payload_json)
                for event in request.events
            ),
            request.expected_seq,
        )
        for request in requests
    )


def _columns(events: list[EncodedEvent], checksums: list[int]) -> dict[str, object]:
    return {
        "ids": [event.id.encode() for event in events],
        "heads": [event.head for event in events],
        "payloads": [event.payload_json for event in events],
        "checksums": checksums,
    }
