"""Jobs that run in this process: where their events become durable, and where they end, once."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, cast

from ..protocol import (
    AppendError,
    Envelope,
    EventTooLarge,
    JobEnded,
    Overloaded,
    WrongExpectedSeq,
    encode_json,
    encode_ulid,
)
from ..protocol.arcp import JobRecord, Status, time_text
from ._contract import TerminalStatus
from ._instance import Instance
from ._limits import GatewayLimits

if TYPE_CHECKING:
    from .._runtime import Runtime
    from .._session import Session

__all__ = ["LiveJob", "derived_id", "end_orphan"]

_RANDOM_BITS = 80
_ATTEMPTS_MAX = 256
_TERMINAL = frozenset({"success", "error", "cancelled", "timed_out"})


def derived_id(at_ns: int, *parts: object) -> str:
    """Return the ULID that stands for some fact, the same in every process, whose time part is a time of the fact."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    at_ms = min(max(at_ns // 1_000_000, 0), 2**48 - 1)
    return encode_ulid(at_ms << _RANDOM_BITS | int.from_bytes(digest[: _RANDOM_BITS // 8]))


def _append_unless_ended(session: Session, job_id: str, events: Sequence[Envelope]) -> tuple[int, int]:
    """Append to a job that others may end meanwhile: only on what is known to be the end of the log.

    Raises:
        JobEnded: it has its terminal.
        AppendError: as ``Session.append_many``.
    """
    for _ in range(_ATTEMPTS_MAX):
        last_seq = session.last_seq
        mark = session.job(job_id).mark  # of everything up to there
        if mark.status in _TERMINAL:
            raise JobEnded(job_id=job_id, status=mark.status)
        try:
            return session.append_many(events, expected_seq=last_seq)
        except WrongExpectedSeq:
            continue
    raise Overloaded(session_id=session.session_id, waited_s=0, waiting_events=_ATTEMPTS_MAX)


class LiveJob:
    """The sink of one job; see ``JobSink``. Events are numbered in the order in which emits were called.

    Emits of several threads share a commit: the lock covers handing over, not the wait for the disk. The session's
    actor keeps the order, so that what was handed over before the terminal lies before it.

    Other processes leave the job alone as long as this one says that it lives. Once it has missed that, they may have
    ended the job, and from then on every append is made on condition that they have not.
    """

    def __init__(
        self,
        runtime: Runtime,
        record: JobRecord,
        instance: Instance,
        limits: GatewayLimits,
        *,
        on_end: Callable[[Status, int], None],
    ) -> None:
        self.record = record
        self._runtime = runtime
        self._instance = instance
        self._limits = limits
        self._on_end = on_end
        self._epoch = instance.epoch
        self._lock = threading.Lock()
        self._status: Status | None = None
        self._started = False
        self._owed: tuple[str, dict[str, Any], Status] | None = None

    @property
    def _session(self) -> Session:
        return self._runtime.session(self.record.session_id)

    @property
    def event_bytes_max(self) -> int:
        """See ``JobSink``."""
        return self._limits.event_bytes_max

    @property
    def chunk_bytes_max(self) -> int:
        """See ``JobSink``."""
        return self._limits.chunk_bytes_max

    @property
    def state(self) -> tuple[str, int]:
        """How the job stands, as everyone reads it in the log: its status, and the number of its last event."""
        mark = self._session.job(self.record.job_id).mark
        if mark.count == 0:
            return ("running" if self._started else "pending"), 0
        return mark.status, mark.last_seq

    def started(self) -> None:
        """See ``JobSink``."""
        self._started = True

    def emit(self, kind: str, body: Mapping[str, Any]) -> int:
        """See ``JobSink``."""
        return self.emit_many([(kind, body)])[1]

    def emit_many(self, events: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[int, int]:
        """See ``JobSink``."""
        envelopes = [self._envelope("job.event", self._payload(kind, body)) for kind, body in events]
        with self._lock:
            if self._status is not None:
                raise JobEnded(job_id=self.record.job_id, status=self._status)
            future = self._hand_over(envelopes)
        return future.result()

    def _envelope(self, type_: str, payload: Mapping[str, Any]) -> Envelope:
        return Envelope(type=type_, payload=payload, job_id=self.record.job_id, trace_id=self.record.trace_id)

    def _hand_over(self, events: Sequence[Envelope]) -> Future[tuple[int, int]]:
        if self._instance.is_trusted and self._instance.epoch == self._epoch:
            return self._session.submit_many(events)
        try:
            numbers = _append_unless_ended(self._session, self.record.job_id, events)
        except JobEnded as ended:
            self._status = cast("Status", ended.status)
            raise
        future: Future[tuple[int, int]] = Future()
        future.set_result(numbers)
        return future

    def submit_status(self, phase: str, message: str) -> None:
        """Emit a ``status`` without waiting for the disk, unless the job has ended or is busy handing over."""
        payload = self._payload("status", {"phase": phase, "message": message})
        if self._lock.acquire(blocking=False):
            try:
                if self._status is None:
                    self._hand_over([self._envelope("job.event", payload)])
            finally:
                self._lock.release()

    def result(
        self,
        result: Any = None,
        *,
        result_id: str | None = None,
        result_size: int | None = None,
        summary: str | None = None,
    ) -> bool:
        """See ``JobSink``; a streamed result is named, never repeated inline (section 8.4)."""
        payload: dict[str, Any] = {"final_status": "success"}
        if result_id is None:
            payload["result"] = result
        else:
            payload |= {"result_id": result_id, "result_size": result_size}
        if summary is not None:
            payload["summary"] = summary
        return self._end("job.result", payload, "success")

    def error(
        self,
        code: str,
        message: str,
        *,
        retryable: bool,
        status: TerminalStatus = "error",
        details: Mapping[str, Any] | None = None,
    ) -> bool:
        """See ``JobSink``. The log holds the draft's form (sections 7.3, 7.4); the dialect is chosen when sending."""
        payload: dict[str, Any] = {"final_status": status, "code": code, "message": message, "retryable": retryable}
        if details is not None:
            payload["details"] = dict(details)
        return self._end("job.error", payload, status)

    def end_here(self, status: Status) -> None:
        """Take nothing more: the job has its terminal."""
        with self._lock:
            self._status = self._status or status
            self._owed = None

    @property
    def owes(self) -> bool:
        """Whether the disk has refused the terminal."""
        return self._owed is not None

    def settle(self) -> None:
        """Try once more to write the terminal that the disk refused."""
        owed = self._owed
        if owed is not None:
            self._end(*owed)

    def _end(self, type_: str, payload: dict[str, Any], status: Status) -> bool:
        payload = payload | {"completed_at": time_text(self._runtime.clock.time_ns())}
        self._check_size(payload)
        with self._lock:
            if self._status is not None:
                return False
            try:
                future = self._hand_over([self._envelope(type_, payload)])
            except JobEnded:
                return False
            self._status = status
        try:
            seq, _ = future.result()
        except AppendError:
            with self._lock:
                self._status = None
                self._owed = type_, payload, status
            raise
        self._owed = None
        self._on_end(status, seq)
        return True

    def _payload(self, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
        payload = {"kind": kind, "ts": time_text(self._runtime.clock.time_ns()), "body": dict(body)}
        self._check_size(payload)
        return payload

    def _check_size(self, payload: Mapping[str, Any]) -> None:
        limits = self._runtime.limits
        data = encode_json(payload, bytes_max=limits.event_bytes_max, depth_max=limits.depth_max)
        if len(data) > self._limits.event_bytes_max:
            raise EventTooLarge(size_bytes=len(data), limit_bytes=self._limits.event_bytes_max)


def end_orphan(runtime: Runtime, job: JobRecord) -> tuple[Status, int]:
    """End a job whose process has died, and return how it stands in the log: perhaps it had ended before.

    Raises:
        LogmarkError: its log cannot be read or written; it has not ended.
    """
    session = runtime.session(job.session_id)
    status: Status = "error"
    payload: dict[str, Any] = {
        "code": "INTERNAL_ERROR",
        "message": "the process that ran the job has died",
        "retryable": True,
    }
    if job.cancel_reason is not None:
        status, payload = "cancelled", {"code": "CANCELLED", "message": "the job was cancelled", "retryable": False}
    payload |= {"final_status": status, "completed_at": time_text(runtime.clock.time_ns())}
    end = Envelope(type="job.error", payload=payload, job_id=job.job_id, trace_id=job.trace_id)
    try:
        _, seq = _append_unless_ended(session, job.job_id, [end])
    except JobEnded:
        mark = session.job(job.job_id).mark
        return cast("Status", mark.status), mark.last_seq
    return status, seq
