"""What an agent is given: its job, and the ways to report on it. ARCP draft, section 8."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from ..protocol import Clock, InvalidArgument, InvalidEvent, JobEnded, LeaseRefused
from ._bodies import check_body, error_body, log_level
from ._contract import JobSink, JobSpec
from ._lease import REMAINING, Lease
from ._stream import ResultStream

__all__ = ["AgentContext"]

_ABSENT: Final[Any] = object()


class AgentContext:
    """A job as its agent sees it. Safe from any thread; of use until the agent returns.

    Every method that emits returns once the event is durable, with its ``event_seq`` in the log of the session that
    submitted the job. Any of them may raise:

    * ``InvalidEvent``: the event is not what the draft and its published clients accept; nothing was written;
    * ``AppendError``: it was not stored, so nobody sees it;
    * ``JobEnded``: the job has its terminal event, by a cancel, a deadline or the end of the server. The agent should
      return; nothing that it does is seen any more.

    Attributes:
        cancelled: set when the job is to end: cancelled by its client, timed out, or shut down. An agent that works for
            long looks at it, or waits on it instead of sleeping.
        session_id, job_id, principal, agent, version, trace_id, parent_job_id: as the job was accepted.
    """

    def __init__(
        self, job: JobSpec, sink: JobSink, *, clock: Clock, new_id: Callable[[], str], result_bytes_max: int
    ) -> None:
        self.session_id = job.session_id
        self.job_id = job.job_id
        self.principal = job.principal
        self.agent = job.agent
        self.version = job.version
        self.trace_id = job.trace_id
        self.parent_job_id = job.parent_job_id
        self.cancelled = threading.Event()
        self._features = job.features
        self._sink = sink
        self._clock = clock
        self._new_id = new_id
        self._result_bytes_max = result_bytes_max
        self._grants = {namespace: list(patterns) for namespace, patterns in job.lease.items()}
        self._lease = Lease(job.job_id, job.lease, ends_ns=job.expires_at_ns)
        # Held over an append, so that counters and the events that report them go the same way.
        self._lease_mutex = threading.Lock()
        self._stream_mutex = threading.Lock()
        self._stream: ResultStream | None = None
        self._ended: str | None = None

    # -- reports ------------------------------------------------------------------------------------------------

    def log(self, level: str, message: str, **attributes: Any) -> int:
        """Emit a line of log.

        Args:
            level: trace, debug, info, warn, error or critical; Python's ``warning`` is understood.
            message: non-empty text.
            **attributes: any JSON values.
        """
        body = {"level": log_level(level), "message": message}
        return self.emit("log", {**body, "attributes": attributes} if attributes else body)

    def thought(self, text: str) -> int:
        """Emit a piece of reasoning."""
        return self.emit("thought", {"text": text})

    def status(self, phase: str, message: str | None = None) -> int:
        """Emit the phase that the work is in."""
        return self.emit("status", _present(phase=phase, message=message))

    def progress(
        self,
        current: float,
        total: float | None = None,
        units: str | None = None,
        message: str | None = None,
    ) -> int:
        """Emit how far the work is: ``current`` of ``total``, or of an unknown end."""
        return self.emit("progress", _present(current=current, total=total, units=units, message=message))

    def metric(
        self, name: str, value: float | Decimal, unit: str | None = None, *, dimensions: Mapping[str, Any] | None = None
    ) -> int:
        """Emit a measured value.

        A name that begins with ``cost.`` reports a cost: when the lease has a budget in that ``unit``, it falls by the
        value, and ``cost.budget.remaining`` is emitted in the same commit (ARCP draft, section 9.6).
        """
        number = float(value) if isinstance(value, Decimal) else value
        return self.emit("metric", _present(name=name, value=number, unit=unit, dimensions=dimensions))

    def artifact(self, uri: str, content_type: str, *, byte_size: int | None = None, sha256: str | None = None) -> int:
        """Emit a reference to something that the job has made and stored elsewhere."""
        return self.emit(
            "artifact_ref", _present(uri=uri, content_type=content_type, byte_size=byte_size, sha256=sha256)
        )

    def tool_call(self, tool: str, args: Mapping[str, Any] | None = None, *, call_id: str | None = None) -> str:
        """Emit that a tool is about to be called, and return the id of the call, for ``tool_result``.

        When the lease names ``tool.call``, it must cover the tool; when it has expired or a budget is spent, nothing is
        covered. Then a ``tool_result`` with that error follows at once (ARCP draft, sections 9.5 and 9.6).

        Raises:
            LeaseRefused: the lease does not allow the call. The agent may go on without it.
        """
        call_id = f"call_{self._new_id()}" if call_id is None else call_id
        self.emit("tool_call", {"tool": tool, "args": {} if args is None else args, "call_id": call_id})
        try:
            self._check_lease("tool.call", tool, named_only=True)
        except LeaseRefused as refused:
            self.tool_result(call_id, error=error_body(refused.code, refused.reason))
            raise
        return call_id

    def tool_result(self, call_id: str, result: Any = _ABSENT, *, error: str | Mapping[str, Any] | None = None) -> int:
        """Emit what a tool has answered: a result, None by default, or an error.

        Args:
            call_id: what ``tool_call`` returned.
            result: any JSON value.
            error: text, or an error of the draft: ``code``, ``message``, ``retryable``.
        """
        body: dict[str, Any] = {"call_id": call_id}
        if error is not None:
            body["error"] = error_body("INTERNAL_ERROR", error) if isinstance(error, str) else error
        if error is None or result is not _ABSENT:
            body["result"] = None if result is _ABSENT else result
        return self.emit("tool_result", body)

    # -- any event ----------------------------------------------------------------------------------------------

    def emit(self, kind: str, body: Mapping[str, Any]) -> int:
        """Emit an event of one of the draft's kinds, or of a kind of your own, which starts with ``x-vendor.``."""
        return self.emit_many([(kind, body)])[0]

    def emit_many(self, events: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[int, int]:
        """Emit several events in one commit, all of them or none; returns the first and the last number."""
        prepared: list[tuple[str, Mapping[str, Any]]] = []
        for kind, body in events:
            check_body(kind, body)
            prepared.append(self._negotiated(kind, body))
        if not prepared:
            message = "there are no events to emit"
            raise InvalidArgument(message)
        self._check_open()
        if any(kind == "metric" and body["name"].startswith("cost.") for kind, body in prepared):
            return self._emit_costs(prepared)
        if len(prepared) == 1:
            seq = self._sink.emit(*prepared[0])
            return seq, seq
        return self._sink.emit_many(prepared)

    def _negotiated(self, kind: str, body: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Turn a report of progress into a status for a session that has not negotiated the former."""
        if kind != "progress" or "progress" in self._features:
            return kind, body
        end = f"/{body['total']}" if "total" in body else ""
        words = (f"{body['current']}{end}", body.get("units"), body.get("message"))
        return "status", {"phase": "progress", "message": " ".join(word for word in words if word)}

    def _emit_costs(self, events: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[int, int]:
        """Emit metrics of costs, and after each what is left of its budget."""
        with self._lease_mutex:
            left: dict[str, Decimal] = {}
            reported: list[tuple[str, Mapping[str, Any]]] = []
            counted: list[int] = []
            for kind, body in events:
                counted.append(len(reported))
                reported.append((kind, body))
                if kind != "metric" or not body["name"].startswith("cost."):
                    continue
                unit = body.get("unit")
                cost = Decimal(str(body["value"]))
                after = left[unit] - cost if unit in left else self._lease.left_after(unit, cost)
                if after is not None and unit is not None:
                    left[unit] = after
                    remaining = {"name": REMAINING, "value": float(after), "unit": unit}
                    reported.append(("metric", remaining))
            if len(reported) == 1:
                first = self._sink.emit(*reported[0])
            else:
                first, _ = self._sink.emit_many(reported)
            for unit, after in left.items():
                self._lease.charge(unit, after)
            return first, first + counted[-1]

    # -- the lease ----------------------------------------------------------------------------------------------

    @property
    def lease(self) -> dict[str, list[str]]:
        """The effective lease: namespace to patterns; empty when the client has asked for none."""
        return {namespace: list(patterns) for namespace, patterns in self._grants.items()}

    @property
    def budget(self) -> dict[str, Decimal] | None:
        """What is left of each budget; None when the lease has none."""
        # Without the lock, which may be waiting for the disk: watchers ask too. A copy of counters is whole anyway.
        return self._lease.budget

    def authorize(self, namespace: str, target: str) -> None:
        """Return if the lease covers an operation now: ``ctx.authorize("fs.read", path)`` before the file is opened.

        In a pattern ``*`` and ``?`` stay between slashes, ``**`` crosses them. Paths count as the places they lead to.
        An agent's own code is not watched: what it does not ask for is not refused.

        Raises:
            LeaseRefused: PERMISSION_DENIED, LEASE_EXPIRED or BUDGET_EXHAUSTED (ARCP draft, sections 9.3, 9.5, 9.6).
            JobEnded: the job has its terminal event.
        """
        self._check_open()
        self._check_lease(namespace, target, named_only=False)

    def _check_lease(self, namespace: str, target: str, *, named_only: bool) -> None:
        now_ns = self._clock.time_ns()
        with self._lease_mutex:
            if named_only and not self._lease.names(namespace):
                self._lease.check_alive(now_ns=now_ns)
            else:
                self._lease.authorize(namespace, target, now_ns=now_ns)

    # -- the result ---------------------------------------------------------------------------------------------

    def result_stream(self, summary: str | None = None) -> ResultStream:
        """Return the stream that the result is written to, for ``with``; the agent then returns None.

        There is one for a job, and no inline result beside it (ARCP draft, section 8.4).

        Args:
            summary: what ``job.result`` will say of the result.

        Raises:
            InvalidEvent: the job has a stream already.
        """
        self._check_open()
        with self._stream_mutex:
            if self._stream is not None:
                message = "a job has one result: its stream was opened already"
                raise InvalidEvent(message)
            chunked = "result_chunk" in self._features
            self._stream = ResultStream(
                self if chunked else None,
                result_id=f"res_{self._new_id()}",
                summary=summary,
                chunk_bytes_max=self._sink.chunk_bytes_max,
                # What is not chunked is kept in memory, and ends as one event.
                bytes_max=self._result_bytes_max if chunked else self._sink.event_bytes_max,
            )
            return self._stream

    # -- for the runner -----------------------------------------------------------------------------------------

    @property
    def stream(self) -> ResultStream | None:
        """The stream that the agent has opened."""
        return self._stream

    def emit_chunks(self, bodies: Sequence[Mapping[str, Any]]) -> None:
        """Append chunks of the result; ``ResultStream`` makes them."""
        self._check_open()
        self._sink.emit_many([("result_chunk", body) for body in bodies])

    def end(self, status: str) -> None:
        """Take nothing more from the agent: the job ends."""
        self._ended = status
        self.cancelled.set()

    def _check_open(self) -> None:
        if self._ended is not None:
            raise JobEnded(job_id=self.job_id, status=self._ended)


def _present(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
