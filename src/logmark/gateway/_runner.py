"""Runs agents on a bounded number of threads, and sees to it that every job ends, once, whatever its agent does."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import random
import threading
from decimal import Decimal
from typing import Any

from ..protocol import (
    AppendRejected,
    Clock,
    EventTooLarge,
    InvalidEvent,
    JobEnded,
    JobFailed,
    LeaseRefused,
    LogCorrupt,
    RequestRefused,
    RuntimeClosed,
    SessionHalted,
    UlidSequence,
)
from ..protocol.arcp import ERROR_CODES
from ..storage import Logger
from ._agents import Agents
from ._bodies import error_body
from ._context import AgentContext
from ._contract import JobSink, JobSpec, TerminalStatus
from ._deadlines import Deadlines, Endings

__all__ = ["Runner"]

_ENDINGS_THREADS_MAX = 4
_LEASE_LOOK_S = 1.0  # a lease ends by the wall clock, which may be set while one waits
_WRITE_DELAYS_S = (0.05, 0.2, 1.0, 5.0)
_STATUS_OF_CODE: dict[str, TerminalStatus] = {"CANCELLED": "cancelled", "TIMEOUT": "timed_out"}
_HOPELESS = (SessionHalted, LogCorrupt, RuntimeClosed)  # a second try would be answered in the same way


@dataclasses.dataclass(frozen=True, slots=True)
class _Failure:
    """An end by ``job.error``."""

    code: str
    message: str
    retryable: bool = False

    @property
    def status(self) -> TerminalStatus:
        return _STATUS_OF_CODE.get(self.code, "error")

    def write(self, sink: JobSink) -> bool:
        body = error_body(self.code, self.message, retryable=self.retryable)
        return sink.error(body["code"], body["message"], retryable=body["retryable"], status=self.status)


@dataclasses.dataclass(frozen=True, slots=True)
class _Success:
    """An end by ``job.result``."""

    fields: dict[str, Any]
    code = "-"
    status = "success"

    def write(self, sink: JobSink) -> bool:
        return sink.result(**self.fields)


class _Run:
    """A job that is queued or running here. The runner's mutex guards it."""

    __slots__ = ("abandoned", "cancelling", "context", "job", "queued_at", "sink", "state")

    def __init__(self, job: JobSpec, sink: JobSink, context: AgentContext, queued_at: float) -> None:
        self.job = job
        self.sink = sink
        self.context = context
        self.queued_at = queued_at
        self.state = "queued"  # then running, ending; ended runs are forgotten
        self.cancelling = False
        self.abandoned = False


class Runner:
    """Implements ``JobRunner``.

    A job ends when its agent returns or raises, ``cancel_grace_s`` after a cancel, at ``max_runtime_s`` after it has
    begun, when its lease does, or at the end of ``drain``; whichever is first writes the one terminal event. An agent
    that runs on behind the end of its job is *abandoned*: it can emit nothing any more, and does not count for
    ``threads_max``, so that some agents that hang do not stop all others.

    Args:
        log: takes what happens to jobs; never inputs or results.
        clock: for deadlines; threads wait in real time.
        agents: what the names of jobs stand for.
        threads_max: agents that run at once.
        queue_max: jobs that wait for a thread.
        abandoned_max: agents that run on behind the end of their jobs; beyond it they do count.
        cancel_grace_s: how long an agent may go on, and emit, after a cancel.
        result_bytes_max: bytes of a streamed result.
    """

    def __init__(
        self,
        *,
        log: Logger,
        clock: Clock,
        agents: Agents,
        threads_max: int = 32,
        queue_max: int = 1024,
        abandoned_max: int = 64,
        cancel_grace_s: float = 1.0,
        result_bytes_max: int = 256 * 1024 * 1024,
    ) -> None:
        self._log = log
        self._clock = clock
        self._agents = agents
        self._threads_max = threads_max
        self._queue_max = queue_max
        self._abandoned_max = abandoned_max
        self._cancel_grace_s = cancel_grace_s
        self._result_bytes_max = result_bytes_max
        self._mutex = threading.Lock()
        self._work_there = threading.Condition(self._mutex)
        self._run_gone = threading.Condition(self._mutex)
        self._runs: dict[str, _Run] = {}
        self._queue: collections.deque[_Run] = collections.deque()
        self._threads: set[threading.Thread] = set()
        self._names = itertools.count(1)
        self._idle = 0
        self._starting = 0
        self._abandoned = 0
        self._draining = False
        self._closed = threading.Event()
        self._deadlines = Deadlines(clock, due=self._due, alive=self._runs.__contains__)
        self._endings = Endings(_ENDINGS_THREADS_MAX)
        self._ulids = UlidSequence(random.SystemRandom().getrandbits)
        self._ulid_mutex = threading.Lock()

    # -- what the wire side asks --------------------------------------------------------------------------------

    def start(self, job: JobSpec, sink: JobSink) -> None:
        """See ``JobRunner.start``."""
        context = AgentContext(
            job, sink, clock=self._clock, new_id=self._new_id, result_bytes_max=self._result_bytes_max
        )
        run = _Run(job, sink, context, self._clock.monotonic())
        with self._mutex:
            if self._draining:
                raise RequestRefused(code="INTERNAL_ERROR", reason="the server is shutting down", retryable=True)
            waiting = len(self._queue) - self._idle - self._starting
            if waiting >= self._queue_max:
                reason = f"{self._queue_max} jobs are waiting already"
                raise RequestRefused(code="INTERNAL_ERROR", reason=reason, retryable=True)
            if waiting >= 0 and not self._start_thread():
                raise RequestRefused(code="INTERNAL_ERROR", reason="there is no thread for another job", retryable=True)
            self._runs[job.job_id] = run
            self._queue.append(run)
            self._work_there.notify()
        if job.expires_at_ns is not None:
            self._watch_lease(job)

    def cancel(self, job_id: str, reason: str) -> bool:
        """See ``JobRunner.cancel``."""
        with self._mutex:
            run = self._runs.get(job_id)
            if run is None or run.state == "ending":
                return False
            if run.cancelling:
                return True
            run.cancelling = True
            running = run.state == "running"
            if not running:
                self._claim(run)
        run.context.cancelled.set()
        self._log.info("job_cancel_requested", session=run.job.session_id, job=job_id, running=running)
        if running:
            self._deadlines.after(self._cancel_grace_s, job_id, "cancel")
        else:
            self._endings.submit(lambda: self._conclude(run, _CANCELLED))
        return True

    def budget(self, job_id: str) -> dict[str, Decimal] | None:
        """See ``JobRunner.budget``."""
        with self._mutex:
            run = self._runs.get(job_id)
        return None if run is None else run.context.budget

    def drain(self, timeout_s: float) -> None:
        """See ``JobRunner.drain``."""
        with self._mutex:
            self._draining = True
            if self._run_gone.wait_for(lambda: not self._runs, timeout_s):
                return
            left = [run for run in self._runs.values() if run.state != "ending"]
            for run in left:
                self._claim(run)
        self._log.warning("jobs_cut_short", jobs=len(left), waited_s=timeout_s)
        for run in left:
            self._endings.submit(functools.partial(self._conclude, run, _SHUT_DOWN))
        with self._mutex:
            self._run_gone.wait_for(lambda: not self._runs, sum(_WRITE_DELAYS_S))
            # The agents have been told; one that looks at ctx.cancelled gets the time to put its things in order.
            self._run_gone.wait_for(lambda: not self._abandoned, self._cancel_grace_s)

    def close(self) -> None:
        """See ``JobRunner.close``."""
        self._deadlines.stop()
        with self._mutex:
            self._draining = True
            self._closed.set()
            busy = self._abandoned
            threads = list(self._threads)
            self._work_there.notify_all()
        self._endings.stop(self._cancel_grace_s)
        if not busy:  # else some of them may never return; they are daemons
            for thread in threads:
                thread.join(self._cancel_grace_s)

    # -- threads ------------------------------------------------------------------------------------------------

    def _start_thread(self) -> bool:
        """Start one more unless there are enough; False when there is none at all. The caller holds the mutex."""
        working = len(self._threads) - self._abandoned
        if working >= self._threads_max or len(self._threads) >= self._threads_max + self._abandoned_max:
            return True
        thread = threading.Thread(target=self._work, name=f"logmark-agent-{next(self._names)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return working > 0  # those that run will come to it
        self._threads.add(thread)
        self._starting += 1
        return True

    def _work(self) -> None:
        is_new = True
        while (run := self._next(is_new=is_new)) is not None:
            is_new = False
            self._run(run)
            with self._mutex:
                if run.abandoned:
                    self._abandoned -= 1
                    self._run_gone.notify_all()
            del run

    def _next(self, *, is_new: bool) -> _Run | None:
        with self._mutex:
            self._starting -= is_new
            while not self._closed.is_set() and len(self._threads) - self._abandoned <= self._threads_max:
                if self._queue:
                    run = self._queue.popleft()
                    run.state = "running"
                    return run
                self._idle += 1
                self._work_there.wait()
                self._idle -= 1
            self._threads.discard(threading.current_thread())
            return None

    # -- one job ------------------------------------------------------------------------------------------------

    def _run(self, run: _Run) -> None:
        job = run.job
        began_at = self._clock.monotonic()
        queued_ms = round((began_at - run.queued_at) * 1000, 3)
        self._log.info(
            "agent_started",
            session=job.session_id,
            job=job.job_id,
            agent=f"{job.agent}@{job.version}",
            queued_ms=queued_ms,
        )
        ending: _Success | _Failure
        try:
            ending = self._success(run, self._call(run))
        except BaseException as error:
            ending = self._failure(run, error)
        with self._mutex:
            mine = run.state == "running"
            if mine:
                self._claim(run, returned=True)
        if mine:
            self._conclude(run, _CANCELLED if run.cancelling else ending)
            return
        ran_ms = round((self._clock.monotonic() - began_at) * 1000, 3)
        self._log.info("agent_returned_late", session=job.session_id, job=job.job_id, ran_ms=ran_ms)

    def _call(self, run: _Run) -> Any:
        job = run.job
        run.sink.started()
        if job.max_runtime_s is not None:
            self._deadlines.after(job.max_runtime_s, job.job_id, "timeout")
        function = self._agents.function(job.agent, job.version)
        if function is None:
            message = f"agent {job.agent}@{job.version} is not here any more"
            raise JobFailed(message, code="AGENT_VERSION_NOT_AVAILABLE")
        return function(run.context, job.input)

    def _success(self, run: _Run, result: Any) -> _Success | _Failure:
        stream = run.context.stream
        if stream is None or not (stream.begun or stream.complete):
            return _Success({} if result is None else {"result": result})
        if not stream.complete:
            message = "the agent returned before its streamed result was complete"
            raise JobFailed(message)
        if result is not None:
            message = "the agent returned a result beside the one that it has streamed"
            raise JobFailed(message)
        if not stream.begun:
            return _Success({"result": stream.inline_result(), "summary": stream.summary})
        return _Success(
            {
                "result_id": stream.result_id,
                "result_size": stream.size_bytes,
                "summary": stream.closing_summary(),
            }
        )

    def _failure(self, run: _Run, error: BaseException) -> _Failure:
        job = run.job
        if isinstance(error, LeaseRefused):
            return _Failure(error.code, error.reason)
        if isinstance(error, JobFailed) and error.code in ERROR_CODES and error.reason:
            return _Failure(error.code, error.reason, error.retryable)
        if not isinstance(error, JobEnded):  # that one is how an agent learns that its job has ended
            self._log.error(
                "agent_failed",
                session=job.session_id,
                job=job.job_id,
                agent=f"{job.agent}@{job.version}",
                error=repr(error),
                exc_info=error,
            )
        # The text may hold a path, a token or the input: it is for the log of the server.
        return _Failure("INTERNAL_ERROR", f"agent {job.agent}@{job.version} failed with {type(error).__name__}")

    # -- the end of a job ---------------------------------------------------------------------------------------

    def _watch_lease(self, job: JobSpec) -> None:
        left_s = ((job.expires_at_ns or 0) - self._clock.time_ns()) / 1e9
        self._deadlines.after(max(0.0, min(left_s, _LEASE_LOOK_S)), job.job_id, "lease")

    def _due(self, job_id: str, cause: str) -> None:
        with self._mutex:
            run = self._runs.get(job_id)
            if run is None or run.state == "ending":
                return
            if cause == "lease" and self._clock.time_ns() < (run.job.expires_at_ns or 0):
                self._watch_lease(run.job)
                return
            self._claim(run)
        ending = _CANCELLED if run.cancelling else _DUE[cause]
        self._endings.submit(lambda: self._conclude(run, ending))

    def _claim(self, run: _Run, *, returned: bool = False) -> None:
        """Make the caller the one who ends the job; it holds the mutex, and the job is not ending yet."""
        if run.state == "queued":
            self._queue.remove(run)
        elif not returned:
            run.abandoned = True
            self._abandoned += 1
            if self._queue:
                self._start_thread()
        run.state = "ending"

    def _conclude(self, run: _Run, ending: _Success | _Failure) -> None:
        """Write the terminal event of a job that the caller has claimed, and forget the job."""
        job = run.job
        run.context.end(ending.status)
        try:
            written = self._write(run, ending)
        finally:
            with self._mutex:
                del self._runs[job.job_id]
                self._run_gone.notify_all()
        if written:
            self._log.info(
                "job_concluded", session=job.session_id, job=job.job_id, status=ending.status, code=ending.code
            )

    def _write(self, run: _Run, ending: _Success | _Failure) -> bool:
        """Write a terminal event; tries again where nothing was written and a later try may do."""
        error: Exception
        for delay_s in (*_WRITE_DELAYS_S, None):
            try:
                return ending.write(run.sink)
            except InvalidEvent as invalid:
                error = invalid
                if isinstance(ending, _Failure):
                    break
                self._log.warning("result_refused", session=run.job.session_id, job=run.job.job_id, error=repr(invalid))
                hint = "; use ctx.result_stream()" if isinstance(invalid, EventTooLarge) else ""
                message = f"the result of the agent cannot be sent ({type(invalid).__name__}){hint}"
                return self._write(run, _Failure("INTERNAL_ERROR", message))
            except AppendRejected as rejected:
                error = rejected
                if isinstance(rejected, _HOPELESS) or delay_s is None:
                    break
                self._closed.wait(delay_s)
            except Exception as failed:
                error = failed
                break
        else:
            return False
        self._log.error(
            "terminal_unwritten", session=run.job.session_id, job=run.job.job_id, error=repr(error), exc_info=error
        )
        return False

    def _new_id(self) -> str:
        with self._ulid_mutex:
            return self._ulids.next(self._clock.time_ns() // 1_000_000)


_CANCELLED = _Failure("CANCELLED", "the job was cancelled by its client")
_SHUT_DOWN = _Failure("INTERNAL_ERROR", "the server was shut down before the job had ended", retryable=True)
_DUE = {
    "cancel": _CANCELLED,
    "lease": _Failure("LEASE_EXPIRED", "the job's lease has expired"),
    "timeout": _Failure("TIMEOUT", "the job has used up its max_runtime_sec"),
}
