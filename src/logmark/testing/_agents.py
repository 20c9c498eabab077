"""Agents without a server: a sink that remembers, and a way to run one agent to its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..protocol import JobEnded, encode_json

if TYPE_CHECKING:
    from ..gateway import JobSpec

__all__ = ["RecordingSink", "job_spec", "run_agent"]

_FEATURES = frozenset({"agent_versions", "cost.budget", "lease_expires_at", "progress", "result_chunk"})
_NS = 1_000_000_000


class RecordingSink:
    """Where the events of one job go, in memory; implements ``JobSink`` of the gateway. Safe from any thread.

    Attributes:
        events: the kind and body of each event, in order.
        result_fields: what ``job.result`` says, None unless it was written.
        error_fields: what ``job.error`` says, None unless it was written.
        begun: whether the agent was started.
        commits: how many events each append has written.
        refusals: errors that the next appends raise, one each; the terminal's append too.
    """

    def __init__(self, *, event_bytes_max: int = 900_000, chunk_bytes_max: int = 48 * 1024) -> None:
        self.event_bytes_max = event_bytes_max
        self.chunk_bytes_max = chunk_bytes_max
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.result_fields: dict[str, Any] | None = None
        self.error_fields: dict[str, Any] | None = None
        self.commits: list[int] = []
        self.refusals: list[Exception] = []
        self.begun = False
        self._changed = threading.Condition()
        self._held = threading.Event()
        self._held.set()

    # -- as the agent side uses it ------------------------------------------------------------------------------

    def emit(self, kind: str, body: Mapping[str, Any]) -> int:
        """Record an event."""
        return self.emit_many([(kind, body)])[0]

    def emit_many(self, events: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[int, int]:
        """Record events."""
        for _, body in events:
            self._check_size(body)
        self._held.wait()
        with self._changed:
            if self.ended:
                raise JobEnded(job_id="job", status="ended")
            self._refuse()
            self.events += [(kind, dict(body)) for kind, body in events]
            self.commits.append(len(events))
            self._changed.notify_all()
            return len(self.events) - len(events) + 1, len(self.events)

    def started(self) -> None:
        """Record that the agent has begun."""
        with self._changed:
            self.begun = True
            self._changed.notify_all()

    def result(
        self,
        result: Any = None,
        *,
        result_id: str | None = None,
        result_size: int | None = None,
        summary: str | None = None,
    ) -> bool:
        """Record the end."""
        self._check_size(result)
        fields = {"result": result, "result_id": result_id, "result_size": result_size, "summary": summary}
        with self._changed:
            if self.ended:
                return False
            self._refuse()
            self.result_fields = {name: value for name, value in fields.items() if value is not None}
            self._changed.notify_all()
            return True

    def error(
        self,
        code: str,
        message: str,
        *,
        retryable: bool,
        status: str = "error",
        details: Mapping[str, Any] | None = None,
    ) -> bool:
        """Record the end."""
        with self._changed:
            if self.ended:
                return False
            self._refuse()
            self.error_fields = {"code": code, "message": message, "retryable": retryable, "status": status}
            self._changed.notify_all()
            return True

    def _check_size(self, value: Any) -> None:
        encode_json(value, bytes_max=self.event_bytes_max, depth_max=64)

    def _refuse(self) -> None:
        if self.refusals:
            raise self.refusals.pop(0)

    # -- as a test uses it --------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether the job has its terminal event."""
        return self.result_fields is not None or self.error_fields is not None

    @property
    def kinds(self) -> list[str]:
        """The kind of each event."""
        return [kind for kind, _ in self.events]

    def hold(self) -> Callable[[], None]:
        """Let no append come back, as a stalled disk does, until the returned function is called."""
        self._held.clear()
        return self._held.set

    def wait_until(self, condition: Callable[[RecordingSink], object], timeout: float = 20.0) -> None:
        """Wait for something to be recorded.

        Raises:
            TimeoutError: it was not in time.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while not condition(self):
                left = deadline - time.monotonic()
                if left <= 0:
                    message = f"not in {timeout:g} s; there are {self.kinds}, {self.result_fields}, {self.error_fields}"
                    raise TimeoutError(message)
                self._changed.wait(left)

    def wait_ended(self, timeout: float = 20.0) -> None:
        """Wait for the terminal event."""
        self.wait_until(lambda sink: sink.ended, timeout)


def job_spec(
    agent: str = "agent@1",
    input: Any = None,
    *,
    job_id: str = "job",
    lease: Mapping[str, Sequence[str]] | None = None,
    expires_in_s: float | None = None,
    max_runtime_s: float | None = None,
    features: frozenset[str] = _FEATURES,
) -> JobSpec:
    """Return an accepted job, as a runner gets it.

    Args:
        agent: ``name@version``.
        input: what the agent is called with.
        job_id: the job's id.
        lease: namespace to patterns.
        expires_in_s: seconds from now until the lease ends.
        max_runtime_s: seconds that the agent may run.
        features: what the session has negotiated.
    """
    from ..gateway import JobSpec

    name, _, version = agent.partition("@")
    return JobSpec(
        session_id="session",
        job_id=job_id,
        principal="tester",
        agent=name,
        version=version,
        input=input,
        lease=lease or {},
        expires_at_ns=None if expires_in_s is None else time.time_ns() + round(expires_in_s * _NS),
        max_runtime_s=max_runtime_s,
        trace_id=None,
        parent_job_id=None,
        features=features,
    )


def run_agent(
    function: Callable[..., Any], input: Any = None, *, sink: RecordingSink | None = None, **job: Any
) -> RecordingSink:
    """Run an agent to the end of its job, as a server would, and return what it has emitted.

    >>> from logmark.testing import run_agent
    >>> def double(ctx, input):
    ...     ctx.log("info", "doubling", what=input)
    ...     return 2 * input
    >>> job = run_agent(double, 21)
    >>> job.events, job.result_fields
    ([('log', {'level': 'info', 'message': 'doubling', 'attributes': {'what': 21}})], {'result': 42})

    Args:
        function: the agent.
        input: what it is called with.
        sink: where its events go.
        **job: as ``job_spec`` takes it: ``lease``, ``expires_in_s``, ``max_runtime_s``, ``features``.

    Raises:
        AssertionError: the agent's own, so that a test may assert within it. Its job has failed all the same.
        TimeoutError: the job has not ended within 20 seconds.
    """
    from ..gateway import Agents, Runner
    from ..storage import SystemClock, get_logger

    failures: list[BaseException] = []

    def watched(ctx: Any, given: Any) -> Any:
        try:
            return function(ctx, given)
        except BaseException as error:
            if isinstance(error, AssertionError) or type(error).__module__.startswith("_pytest."):
                failures.append(error)
            raise

    agents = Agents()
    agents.register("agent", version="1")(watched)
    sink = sink or RecordingSink()
    runner = Runner(log=get_logger(), clock=SystemClock(), agents=agents, threads_max=1, cancel_grace_s=1.0)
    try:
        runner.start(job_spec(input=input, **job), sink)
        sink.wait_ended()
    finally:
        runner.close()
    if failures:
        raise failures[0]
    return sink
