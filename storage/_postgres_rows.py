"""Reading a PostgreSQL store: pages of rows, each by itself, so that a reader holds no connection while it rests."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, cast

import psycopg

from ..protocol import LogCorrupt, RawEnvelope, SeqPruned, SessionDeleted, StorageUnavailable, row_seed
from ._plan import event_checksum
from ._postgres_pool import ConnectionLost, Connections, Unreachable
from ._postgres_schema import Statements
from ._store import HaltRecord

__all__ = ["Events", "KnownThrough", "Reader", "Row", "SessionRow", "log_lost", "row_problem"]

_PAUSE_S = 0.05
_ROWS_MAX = 4096
_ROW_BYTES_GUESS = 512
_KNOWN_MAX = 10_000

Row = tuple[int, int, bytes, bytes, bytes]
"""Number, checksum, event id, head and payload."""


@dataclasses.dataclass(frozen=True, slots=True)
class SessionRow:
    """What the table says of a session."""

    key: int
    seq: int
    through: int
    halted_at: str | None
    halt_reason: bytes | None
    halt_event_id: bytes | None
    pruned_through: int = 0
    sealed_at: str | None = None
    deleted_at: str | None = None

    @classmethod
    def of(cls, values: Sequence[Any]) -> Self:
        """Make it of the columns that every statement about sessions begins with."""
        return cls(*values[:9])

    @property
    def first_available(self) -> int:
        """The smallest number that can be read."""
        return self.pruned_through + 1

    def check_not_deleted(self, session_id: str) -> None:
        """Raise SessionDeleted for a tombstone."""
        if self.deleted_at is not None:
            raise SessionDeleted(session_id=session_id, last_seq=self.through, deleted_at=self.deleted_at)

    def halt(self, session_id: str) -> HaltRecord | None:
        """Return why the session is halted, or None."""
        if self.halted_at is None:
            return None
        return HaltRecord(
            session_id=session_id,
            reason=(self.halt_reason or b"").decode(errors="replace"),
            at=self.halted_at,
            first_event_id=None if self.halt_event_id is None else self.halt_event_id.decode(),
        )


class KnownThrough:
    """How far this process knows logs to go, so that it notices when a server has lost what it had acknowledged.

    A server that was restored from an older copy, or a standby that took over without the last commits, would give
    numbers out again that somebody was told already.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._through: OrderedDict[str, int] = OrderedDict()

    def through(self, session_id: str) -> int:
        """Return the highest number that the log was seen to have used, 0 when it was not looked at."""
        return self._through.get(session_id, 0)

    def note(self, session_id: str, through: int) -> None:
        """Learn how far a log goes; those used longest ago are forgotten when they are too many."""
        with self._mutex:
            self._through[session_id] = max(through, self._through.get(session_id, 0))
            self._through.move_to_end(session_id)
            if len(self._through) > _KNOWN_MAX:
                self._through.popitem(last=False)

    def forget(self, session_id: str) -> None:
        """Take what the server says from now on."""
        with self._mutex:
            self._through.pop(session_id, None)


def log_lost(session_id: str, through: int, known: int) -> LogCorrupt:
    """Return the error for a log that has become shorter."""
    return LogCorrupt(
        session_id=session_id,
        reason=(
            f"numbers up to {known} were given, and the server knows of {through}: it was restored from an older copy,"
            " or a standby has taken over that lacked the last commits"
        ),
        event_seq=through + 1,
        segment=None,
        offset=None,
    )


def row_problem(row: Row, seed: int) -> str | None:
    """Return what is wrong with a row, or None."""
    seq, checksum, event_id, head, payload = row
    if event_checksum(seed, 0, head, payload) ^ seq != checksum:
        return "the checksum does not match"
    found = RawEnvelope.from_stored("", seq, head, payload).id
    if found is None or found.encode() != event_id:
        return f"the row's id is {event_id!r}, and its event's {found!r}"
    return None


class Reader:
    """Asks the server, again and again until it answers or the deadline has passed. Safe from any thread.

    Args:
        connections: to the server.
        store: the store's URL, for errors.
        wait_s: the longest wait for one answer.
    """

    def __init__(self, connections: Connections, *, store: str, wait_s: float) -> None:
        self._connections = connections
        self._store = store
        self._wait_s = wait_s

    def ask(self, statement: bytes, arguments: Sequence[Any] | Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Return the rows of a statement that changes nothing, or nothing more when it is repeated.

        Raises:
            StorageUnavailable: the server did not answer in time, or refused.
        """
        deadline = time.monotonic() + self._wait_s
        while True:
            try:
                with self._connections.use(deadline) as connection:
                    cursor = connection.execute(statement, arguments, binary=True, prepare=True)
                    return cursor.fetchall() if cursor.description is not None else []
            except Unreachable as error:
                raise StorageUnavailable(store=self._store, reason=str(error)) from error
            except ConnectionLost as error:
                if time.monotonic() + _PAUSE_S >= deadline:
                    raise StorageUnavailable(store=self._store, reason=str(error)) from error
                time.sleep(_PAUSE_S)
            except psycopg.Error as error:
                reason = f"{type(error).__name__}: {error}".strip()
                raise StorageUnavailable(store=self._store, reason=reason) from error


class Events:
    """The events of one session, as far as they went when it was made.

    Args:
        reader: asks the server.
        statements: of the store.
        session_id: the session.
        row: what the table says of it.
        chunk_bytes: the size of a page.
    """

    def __init__(
        self, reader: Reader, statements: Statements, session_id: str, row: SessionRow, *, chunk_bytes: int
    ) -> None:
        self._reader = reader
        self._sql = statements
        self._session_id = session_id
        self._row = row
        self.first_available = row.first_available
        """The smallest number that can be read, as far as it is known."""
        self._seed = row_seed(session_id)
        self._chunk_bytes = chunk_bytes

    def upwards(self, from_seq: int, through_seq: int | None) -> Iterator[RawEnvelope]:
        """Yield the events from a number to another, both included; raises ``LogCorrupt`` at the first damage.

        Raises:
            SeqPruned, SessionDeleted: what comes next was removed meanwhile.
        """
        last = self._row.seq if through_seq is None else min(through_seq, self._row.seq)
        wanted = max(1, from_seq)
        for row in self.rows(wanted, last):
            if row[0] != wanted:
                self._check_reserved_or_pruned(wanted, row[0] - 1)
            yield self._envelope(row)
            wanted = row[0] + 1
        if wanted <= last:
            self._check_reserved_or_pruned(wanted, last)

    def downwards(self, before_seq: int | None) -> Iterator[RawEnvelope]:
        """Yield the events below a number, the last one first; raises ``LogCorrupt`` at the first damage.

        Raises:
            SessionDeleted: they were removed meanwhile.
        """
        wanted = self._row.seq if before_seq is None else min(before_seq - 1, self._row.seq)
        for row in self._pages(self._sql.read_backwards, self.first_available, wanted, backwards=True):
            if row[0] != wanted:
                self._check_reserved(row[0] + 1, wanted)
            yield self._envelope(row)
            wanted = row[0] - 1
        if wanted >= self.first_available:
            self._check_reserved(self.first_available, wanted)

    def rows(self, first: int, last: int) -> Iterator[Row]:
        """Yield the rows from a number to another as they are."""
        return self._pages(self._sql.read, first, last, backwards=False)

    def _pages(self, statement: bytes, first: int, last: int, *, backwards: bool) -> Iterator[Row]:
        row_bytes = _ROW_BYTES_GUESS
        while first <= last:
            # The server looks at as many rows as will fill a page, going by the last one, and returns those that fit.
            rows_max = max(1, min(self._chunk_bytes // row_bytes, _ROWS_MAX, last - first + 1))
            arguments = (self._row.key, first, last, rows_max, self._chunk_bytes)
            page = cast("list[Row]", self._reader.ask(statement, arguments))
            if not page:
                return
            row_bytes = 1 + sum(len(row[3]) + len(row[4]) for row in page) // len(page)
            yield from page
            if backwards:
                last = page[-1][0] - 1
            else:
                first = page[-1][0] + 1

    def _envelope(self, row: Row) -> RawEnvelope:
        seq, checksum, _, head, payload = row
        if event_checksum(self._seed, 0, head, payload) ^ seq != checksum:
            raise self.damaged(seq, "the checksum does not match")
        return RawEnvelope.from_stored(self._session_id, seq, head, payload)

    def _check_reserved(self, first: int, last: int) -> int:
        """Raise when something is missing that was not pruned; return the first number that is available now.

        Rows and ``first_available`` change in one transaction and the latter never falls, so that whoever finds a row
        pruned finds here that it was.
        """
        missing = self.unexplained(first, last)
        if not missing:
            return self.first_available
        for values in self._reader.ask(self._sql.session, (self._session_id.encode(),)):
            row = SessionRow.of(values)
            row.check_not_deleted(self._session_id)
            self.first_available = max(self.first_available, row.first_available)
        for low, high in missing:
            if high >= self.first_available:
                lost = max(low, self.first_available)
                raise self.damaged(lost, f"events {lost} to {high} were durable and are missing")
        return self.first_available

    def _check_reserved_or_pruned(self, first: int, last: int) -> None:
        available = self._check_reserved(first, last)
        if first < available:
            raise SeqPruned(session_id=self._session_id, seq=first, first_available=available)

    def unexplained(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the ranges of numbers between two that no reservation covers."""
        found: list[tuple[int, int]] = []
        for low, high in cast(
            "list[tuple[int, int]]", self._reader.ask(self._sql.reservations, (self._row.key, first, last))
        ):
            if low > first:
                found.append((first, low - 1))
            first = max(first, high + 1)
        if first <= last:
            found.append((first, last))
        return found

    def damaged(self, seq: int | None, reason: str) -> LogCorrupt:
        """Return the error for damage at a number."""
        return LogCorrupt(session_id=self._session_id, reason=reason, event_seq=seq, segment=None, offset=None)
