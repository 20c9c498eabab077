"""The memory engine: the same contract without a disk, for tests and for programs that need no durability."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterator, Sequence

from ..protocol import (
    SEQ_MAX,
    Clock,
    CursorAhead,
    RawEnvelope,
    RecordChanged,
    SeqPruned,
    SequenceExhausted,
    SessionDeleted,
    SessionHalted,
    SessionSealed,
)
from ._clock import SystemClock, rfc3339
from ._ids_index import IdIndex
from ._plan import SessionPlan, ids_in_doubt
from ._store import BatchResult, EventStore, Finding, HaltRecord, Record, SessionBatch, SessionInfo

__all__ = ["MemoryEventStore"]


class _Log:
    __slots__ = (
        "deleted_at",
        "events",
        "first_available",
        "halt",
        "ids",
        "last_seq",
        "records",
        "sealed",
        "seqs",
        "through",
    )

    def __init__(self) -> None:
        self.events: list[RawEnvelope] = []
        self.seqs: list[int] = []
        self.through = 0
        self.ids = IdIndex()
        self.halt: HaltRecord | None = None
        self.last_seq = 0
        self.first_available = 1
        self.sealed = False
        self.deleted_at: str | None = None
        self.records: dict[str, Record] = {}


class MemoryEventStore(EventStore):
    """Sessions as lists, gone with the process."""

    is_shared = False
    is_local = True

    def __init__(self, *, clock: Clock | None = None) -> None:
        self.url = "memory:"
        self._clock = clock or SystemClock()
        self._logs: dict[str, _Log] = {}
        self._mutex = threading.Lock()

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        """See ``EventStore.append``."""
        with self._mutex:
            return [self._append(batch) for batch in batches]

    def _append(self, batch: SessionBatch) -> BatchResult:
        log = self._logs.setdefault(batch.session_id, _Log())
        if log.deleted_at is not None:
            error = _deleted(batch.session_id, log)
            return BatchResult(
                session_id=batch.session_id,
                answers=(error,) * len(batch.requests),
                last_seq_before=log.last_seq,
                last_seq=log.last_seq,
            )
        session = SessionPlan(batch.session_id, seq=log.last_seq, through=log.through, halt=log.halt, sealed=log.sealed)
        known = {event_id: log.ids.find(event_id) for event_id in ids_in_doubt(batch.requests)}
        plan = session.plan(batch.requests, {event_id: seq for event_id, seq in known.items() if seq is not None})
        size = 0
        for seq, event in plan.rows():
            log.events.append(event.stamped(batch.session_id, seq))
            log.seqs.append(seq)
            log.ids.add(event.id, seq)
            size += event.size_bytes
        log.last_seq, log.through = session.seq, session.through
        return plan.result(bytes_written=size)

    def _readable(self, session_id: str, *, halted_ok: bool = False) -> _Log:
        log = self._logs.get(session_id)
        if log is None:
            return _Log()
        if log.deleted_at is not None:
            raise _deleted(session_id, log)
        if log.halt is not None and not halted_ok:
            raise SessionHalted(session_id=session_id, reason=log.halt.reason, halted_at=log.halt.at)
        return log

    def read(
        self, session_id: str, *, from_seq: int = 1, through_seq: int | None = None, halted_ok: bool = False
    ) -> Iterator[RawEnvelope]:
        """See ``EventStore.read``."""
        with self._mutex:  # so that an append of several events is seen wholly or not at all
            log = self._readable(session_id, halted_ok=halted_ok)
            if max(1, from_seq) < log.first_available:
                raise SeqPruned(session_id=session_id, seq=max(1, from_seq), first_available=log.first_available)
            start = bisect.bisect_left(log.seqs, from_seq)
            end = len(log.seqs) if through_seq is None else bisect.bisect_right(log.seqs, through_seq)
            events = log.events
        return (events[index] for index in range(start, end))

    def read_backwards(self, session_id: str, *, before_seq: int | None = None) -> Iterator[RawEnvelope]:
        """See ``EventStore.read_backwards``."""
        with self._mutex:
            log = self._readable(session_id)
            end = len(log.seqs) if before_seq is None else bisect.bisect_left(log.seqs, before_seq)
            events = log.events
        return (events[index] for index in range(end - 1, -1, -1))

    def info(self, session_id: str) -> SessionInfo:
        """See ``EventStore.info``."""
        with self._mutex:
            log = self._logs.get(session_id) or _Log()
            return SessionInfo(
                session_id=session_id,
                last_seq=log.last_seq,
                next_seq=log.through + 1,
                first_seq=log.seqs[0] if log.seqs else 0,
                first_available=log.first_available,
                sealed=log.sealed,
                deleted=log.deleted_at is not None,
                halted=None if log.halt is None else log.halt.reason,
            )

    def sessions(self) -> Iterator[str]:
        """See ``EventStore.sessions``."""
        with self._mutex:
            found = sorted(
                name
                for name, log in self._logs.items()
                if (log.through or log.halt or log.sealed) and log.deleted_at is None
            )
        return iter(found)

    def reserve(self, session_id: str, through_seq: int) -> None:
        """See ``EventStore.reserve``."""
        with self._mutex:
            log = self._writable(session_id)
            if log.sealed:
                raise SessionSealed(session_id=session_id, last_seq=log.last_seq)
            if through_seq > SEQ_MAX:
                raise SequenceExhausted(session_id=session_id, last_seq=log.through)
            log.through = max(log.through, through_seq)

    def _writable(self, session_id: str) -> _Log:
        log = self._logs.setdefault(session_id, _Log())
        if log.deleted_at is not None:
            raise _deleted(session_id, log)
        if log.halt is not None:
            raise SessionHalted(session_id=session_id, reason=log.halt.reason, halted_at=log.halt.at)
        return log

    def load_record(self, session_id: str, name: str) -> Record | None:
        """See ``EventStore.load_record``."""
        return self.records(session_id).get(name)

    def save_record(self, session_id: str, name: str, data: bytes | None, *, version: int) -> int:
        """See ``EventStore.save_record``."""
        with self._mutex:
            log = self._logs.setdefault(session_id, _Log())
            if log.deleted_at is not None:
                raise _deleted(session_id, log)
            found = log.records.get(name)
            known = 0 if found is None else found.version
            if known != version:
                raise RecordChanged(session_id=session_id, name=name, version=known)
            if data is None:
                log.records.pop(name, None)
                return 0
            log.records[name] = Record(data, version + 1)
            return version + 1

    def records(self, session_id: str) -> dict[str, Record]:
        """See ``EventStore.records``."""
        with self._mutex:
            log = self._readable(session_id, halted_ok=True)
            return dict(sorted(log.records.items()))

    def truncate_before(self, session_id: str, seq: int) -> int:
        """See ``EventStore.truncate_before``."""
        with self._mutex:
            log = self._writable(session_id) if session_id in self._logs else _Log()
            if seq > log.through + 1:
                raise CursorAhead(session_id=session_id, cursor=seq, last_seq=log.last_seq)
            if seq > log.first_available:
                kept = bisect.bisect_left(log.seqs, seq)
                log.events, log.seqs, log.ids = log.events[kept:], log.seqs[kept:], IdIndex()
                for event, number in zip(log.events, log.seqs, strict=True):
                    log.ids.add(event.fields.id or "", number)
                log.first_available = seq
            return log.first_available

    def seal(self, session_id: str) -> int:
        """See ``EventStore.seal``."""
        with self._mutex:
            log = self._writable(session_id)
            log.sealed = True
            return log.last_seq

    def delete(self, session_id: str) -> None:
        """See ``EventStore.delete``."""
        with self._mutex:
            log = self._logs.get(session_id) or _Log()
            if log.deleted_at is None:
                grave = self._logs[session_id] = _Log()
                grave.last_seq = grave.through = log.through
                grave.first_available = log.through + 1
                grave.deleted_at = rfc3339(self._clock.time_ns())

    def halt(self, session_id: str, reason: str, *, first_event_id: str | None = None) -> None:
        """See ``EventStore.halt``."""
        with self._mutex:
            log = self._logs.setdefault(session_id, _Log())
            if log.deleted_at is not None:
                raise _deleted(session_id, log)
            if log.halt is None:
                log.halt = HaltRecord(
                    session_id=session_id,
                    reason=reason,
                    at=rfc3339(self._clock.time_ns()),
                    first_event_id=first_event_id,
                )

    def halted(self, session_id: str) -> HaltRecord | None:
        """See ``EventStore.halted``."""
        log = self._logs.get(session_id)
        return None if log is None else log.halt

    def clear_halt(self, session_id: str) -> None:
        """See ``EventStore.clear_halt``; memory is always sound."""
        log = self._logs.get(session_id)
        if log is not None and log.deleted_at is not None:
            raise _deleted(session_id, log)
        if log is not None:
            log.halt = None

    def verify(self, session_id: str) -> list[Finding]:
        """See ``EventStore.verify``."""
        halt = self.halted(session_id)
        if halt is None:
            return []
        detail = f"halted since {halt.at}: {halt.reason}"
        return [Finding(session_id=session_id, kind="halt", detail=detail, harmless=False)]

    def repair(self, session_id: str, *, dry_run: bool = False) -> list[str]:
        """See ``EventStore.repair``; memory has only its halt to clear."""
        halt = self.halted(session_id)
        if halt is None:
            return []
        if not dry_run:
            self.clear_halt(session_id)
        return [f"clear the halt ({halt.reason})"]

    def close(self) -> None:
        """See ``EventStore.close``."""


def _deleted(session_id: str, log: _Log) -> SessionDeleted:
    return SessionDeleted(session_id=session_id, last_seq=log.through, deleted_at=log.deleted_at or "")
