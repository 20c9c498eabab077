"""Every job ends once: returns, raises, cancels queued and running, deadlines, hung agents, full pools, shutdowns."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from logmark.errors import (
    AppendUncertain,
    JobEnded,
    JobFailed,
    RequestRefused,
    SessionHalted,
    StorageRejected,
)
from logmark.gateway import AgentContext, Agents, Runner
from logmark.storage import SystemClock, get_logger
from logmark.testing import CapturedLogs, ManualClock, RecordingSink, eventually, job_spec, run_agent

SOON = 20.0
NO_SPACE = StorageRejected(session_id="session", reason="no space", errno=28)
CANCELLED = {
    "code": "CANCELLED",
    "message": "the job was cancelled by its client",
    "retryable": False,
    "status": "cancelled",
}


class Pool:
    """A runner with agents that wait for the test."""

    def __init__(self, *, clock: Any = None, **options: Any) -> None:
        self.agents = Agents()
        self.release = threading.Event()
        self.began: list[str] = []
        self.returned: list[str] = []
        self.contexts: dict[str, AgentContext] = {}
        options = {"threads_max": 2, "queue_max": 3, "cancel_grace_s": 0.05} | options
        self.runner = Runner(log=get_logger(), clock=clock or SystemClock(), agents=self.agents, **options)
        self.agents.register("wait", version="1")(self._wait)
        self.agents.register("obey", version="1")(self._obey)
        self.agents.register("quick", version="1")(lambda _ctx, value: value)

    def _note(self, ctx: AgentContext) -> None:
        self.contexts[ctx.job_id] = ctx
        self.began.append(ctx.job_id)

    def _wait(self, ctx: AgentContext, _input: Any) -> str:
        self._note(ctx)
        self.release.wait(SOON)
        self.returned.append(ctx.job_id)
        return "released"

    def _obey(self, ctx: AgentContext, _input: Any) -> None:
        self._note(ctx)
        ctx.cancelled.wait(SOON)
        ctx.status("cleaning up")
        self.returned.append(ctx.job_id)

    def start(self, agent: str, job_id: str, value: Any = None, **job: Any) -> RecordingSink:
        sink = RecordingSink()
        self.runner.start(job_spec(f"{agent}@1", value, job_id=job_id, **job), sink)
        return sink

    def running(self, agent: str, job_id: str, **job: Any) -> RecordingSink:
        sink = self.start(agent, job_id, **job)
        eventually(lambda: job_id in self.began, SOON)
        return sink


@pytest.fixture
def make_pool() -> Iterator[Callable[..., Pool]]:
    pools: list[Pool] = []

    def make(**options: Any) -> Pool:
        pools.append(Pool(**options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.release.set()
        pool.runner.drain(SOON)
        pool.runner.close()


@pytest.fixture
def pool(make_pool: Callable[..., Pool]) -> Pool:
    return make_pool()


def threads_named(prefix: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(prefix)]


# -- returning and raising -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["text", 0, False, [], {"a": [1]}, 2.5])
def test_what_an_agent_returns_is_the_inline_result(value: Any) -> None:
    job = run_agent(lambda ctx, input: input, value)
    assert (job.begun, job.events, job.result_fields, job.error_fields) == (True, [], {"result": value}, None)


def test_a_test_may_assert_within_its_agent() -> None:
    def agent(ctx: AgentContext, given: Any) -> None:
        assert given == 1

    run_agent(agent, 1)
    with pytest.raises(AssertionError):
        run_agent(agent, 2)


def test_an_agent_knows_its_job() -> None:
    def agent(ctx: AgentContext, input: Any) -> list[Any]:
        return [ctx.session_id, ctx.job_id, ctx.principal, ctx.agent, ctx.version, ctx.cancelled.is_set(), input]

    job = run_agent(agent, {"n": 1})
    assert (job.result_fields or {})["result"] == ["session", "job", "tester", "agent", "1", False, {"n": 1}]


@pytest.mark.parametrize(
    "error", [ValueError("/secret"), SystemExit(3), KeyboardInterrupt("/secret"), RuntimeError(), GeneratorExit()]
)
def test_an_agent_that_raises_ends_its_job_without_a_word_of_what_it_said(
    error: BaseException, logs: CapturedLogs
) -> None:
    def agent(ctx: AgentContext, _input: Any) -> None:
        raise error

    job = run_agent(agent)
    assert job.error_fields == {
        "code": "INTERNAL_ERROR",
        "message": f"agent agent@1 failed with {type(error).__name__}",
        "retryable": True,
        "status": "error",
    }
    (logged,) = logs.named("agent_failed")
    assert logged["exc_info"] is error
    assert (logged["session"], logged["job"], logged["agent"]) == ("session", "job", "agent@1")


@pytest.mark.parametrize(
    ("code", "asked", "retryable", "status"),
    [
        ("INVALID_REQUEST", True, True, "error"),
        ("PERMISSION_DENIED", False, False, "error"),
        ("INTERNAL_ERROR", False, True, "error"),  # ARCP draft, section 12: always retryable
        ("BUDGET_EXHAUSTED", True, False, "error"),  # and these two never
        ("LEASE_EXPIRED", True, False, "error"),
        ("TIMEOUT", False, False, "timed_out"),
    ],
)
def test_an_agent_may_say_how_its_job_fails(code: str, asked: bool, retryable: bool, status: str) -> None:
    def agent(ctx: AgentContext, _input: Any) -> None:
        raise JobFailed("the input has no repository", code=code, retryable=asked)

    assert run_agent(agent).error_fields == {
        "code": code,
        "message": "the input has no repository",
        "retryable": retryable,
        "status": status,
    }


@pytest.mark.parametrize("error", [JobFailed("x", code="NO_SUCH_CODE"), JobFailed("")])
def test_a_code_that_clients_do_not_know_never_reaches_them(error: JobFailed) -> None:
    def agent(ctx: AgentContext, _input: Any) -> None:
        raise error

    assert (run_agent(agent).error_fields or {})["code"] == "INTERNAL_ERROR"


@pytest.mark.parametrize(
    ("result", "word"), [(object(), "NotEncodable"), (float("nan"), "NotEncodable"), ("x" * 1_000_000, "result_stream")]
)
def test_a_result_that_cannot_be_sent_is_an_error_that_says_why(result: Any, word: str, logs: CapturedLogs) -> None:
    job = run_agent(lambda ctx, input: result)
    assert job.result_fields is None
    assert (job.error_fields or {})["code"] == "INTERNAL_ERROR"
    assert word in (job.error_fields or {})["message"]
    assert len(logs.named("result_refused")) == 1


# -- the terminal and the disk ---------------------------------------------------------------------------------------


def test_a_terminal_that_the_disk_refused_is_written_when_it_can_be() -> None:
    sink = RecordingSink()
    sink.refusals += [NO_SPACE, NO_SPACE]
    run_agent(lambda ctx, input: "done", sink=sink)
    assert sink.result_fields == {"result": "done"}


@pytest.mark.parametrize(
    "error",
    [
        SessionHalted(session_id="session", reason="fsync failed"),
        AppendUncertain(session_id="session", reason="fsync failed"),
    ],
)
def test_a_terminal_that_cannot_be_written_is_logged_and_the_pool_goes_on(
    pool: Pool, logs: CapturedLogs, error: Exception
) -> None:
    sink = RecordingSink()
    sink.refusals.append(error)
    pool.runner.start(job_spec("quick@1", 1, job_id="j1"), sink)
    eventually(lambda: logs.named("terminal_unwritten"), SOON)
    again = pool.start("quick", "j2", 2)
    again.wait_ended()

    assert not sink.ended
    assert again.result_fields == {"result": 2}
    assert eventually(lambda: pool.runner.cancel("j1", "") is False, SOON)


# -- cancelling ------------------------------------------------------------------------------------------------------


def test_a_queued_job_is_cancelled_at_once_and_never_begins(pool: Pool) -> None:
    running = [pool.running("wait", f"j{number}") for number in range(2)]
    queued = pool.start("wait", "q1")
    behind = pool.start("quick", "q2", "next")
    assert pool.runner.cancel("q1", "client.cancel")
    queued.wait_ended()

    assert queued.error_fields == CANCELLED
    assert not queued.begun
    assert not any(sink.ended for sink in running)
    pool.release.set()
    behind.wait_ended()
    assert "q1" not in pool.began
    assert behind.result_fields == {"result": "next"}
    assert not pool.runner.cancel("q1", "again")


def test_a_running_job_is_told_and_may_put_its_things_in_order(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(cancel_grace_s=SOON)
    sink = pool.running("obey", "j1")
    assert pool.runner.cancel("j1", "client.cancel")
    assert pool.runner.cancel("j1", "client.cancel")  # once more changes nothing
    sink.wait_ended()

    assert sink.kinds == ["status"]
    assert sink.error_fields == CANCELLED
    assert eventually(lambda: not pool.runner.cancel("j1", "too late"), SOON)


def test_an_agent_that_does_not_listen_is_left_behind(pool: Pool, logs: CapturedLogs) -> None:
    sink = pool.running("wait", "j1")
    assert pool.runner.cancel("j1", "client.cancel")
    sink.wait_ended()
    assert sink.error_fields == CANCELLED
    assert pool.returned == []
    with pytest.raises(JobEnded):
        pool.contexts["j1"].thought("from beyond")
    pool.release.set()
    eventually(lambda: logs.named("agent_returned_late"), SOON)

    assert sink.events == []
    assert sink.result_fields is None
    assert [event["status"] for event in logs.named("job_concluded")] == ["cancelled"]


def test_a_result_that_comes_after_the_cancel_does_not_count(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(cancel_grace_s=SOON)
    sink = pool.running("wait", "j1")
    assert pool.runner.cancel("j1", "client.cancel")
    pool.release.set()
    sink.wait_ended()
    assert sink.error_fields == CANCELLED


def test_what_is_not_here_cannot_be_cancelled(pool: Pool) -> None:
    assert not pool.runner.cancel("nobody", "")
    sink = pool.start("quick", "j1")
    sink.wait_ended()
    assert eventually(lambda: not pool.runner.cancel("j1", ""), SOON)
    assert pool.runner.budget("j1") is None


# -- deadlines -------------------------------------------------------------------------------------------------------


def test_a_job_ends_at_its_deadline_whatever_its_agent_does(pool: Pool, logs: CapturedLogs) -> None:
    began = time.monotonic()
    sink = pool.start("wait", "j1", max_runtime_s=0.1)
    sink.wait_ended()

    assert time.monotonic() - began >= 0.1
    assert sink.error_fields == {
        "code": "TIMEOUT",
        "message": "the job has used up its max_runtime_sec",
        "retryable": False,
        "status": "timed_out",
    }
    assert pool.returned == []
    assert pool.contexts["j1"].cancelled.is_set()
    with pytest.raises(JobEnded):
        pool.contexts["j1"].log("info", "still here")


def test_the_time_in_the_queue_does_not_count_but_the_lease_does(pool: Pool) -> None:
    for number in range(2):
        pool.running("wait", f"j{number}")
    leased = pool.start("quick", "leased", expires_in_s=0.1)
    timed = pool.start("quick", "timed", "in time", max_runtime_s=0.05)
    leased.wait_ended()
    assert (leased.error_fields or {})["code"] == "LEASE_EXPIRED"
    assert not leased.begun
    assert not timed.ended
    pool.release.set()
    timed.wait_ended()
    assert timed.result_fields == {"result": "in time"}


def test_a_lease_follows_the_wall_clock_when_it_is_set(make_pool: Callable[..., Pool]) -> None:
    clock = ManualClock()
    pool = make_pool(clock=clock)
    sink = RecordingSink()
    ends_ns = clock.time_ns() + 3600 * 1_000_000_000
    spec = dataclasses.replace(job_spec("wait@1", job_id="j1"), expires_at_ns=ends_ns)
    pool.runner.start(spec, sink)
    eventually(lambda: "j1" in pool.began, SOON)
    clock.step_wall_clock(3600)
    clock.advance(1.0)  # the look is due
    pool.runner._deadlines.after(0, "nobody", "timeout")  # wakes the thread, which waits in real time
    sink.wait_ended()
    assert (sink.error_fields or {})["code"] == "LEASE_EXPIRED"


def test_deadlines_of_jobs_that_are_over_do_not_pile_up(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(queue_max=1000)
    for number in range(500):
        pool.start("quick", f"j{number}", max_runtime_s=86_400).wait_ended()
    assert len(pool.runner._deadlines._heap) <= 2 * 64
    eventually(lambda: pool.runner._runs == {}, SOON)


# -- the pool --------------------------------------------------------------------------------------------------------


def test_only_so_many_run_and_wait_and_the_next_is_refused(pool: Pool) -> None:
    for number in range(2):
        pool.running("wait", f"j{number}")
    queued = [pool.start("wait", f"q{number}") for number in range(3)]
    with pytest.raises(RequestRefused) as caught:
        pool.start("wait", "too many")
    assert (caught.value.code, caught.value.retryable) == ("INTERNAL_ERROR", True)
    assert len(pool.began) == 2
    pool.release.set()
    for sink in queued:
        sink.wait_ended()
    pool.start("quick", "again", 1).wait_ended()


def test_agents_that_hang_do_not_keep_the_others_from_running(pool: Pool, logs: CapturedLogs) -> None:
    hung = [pool.running("wait", f"j{number}") for number in range(2)]
    waiting = [pool.start("quick", f"q{number}", number) for number in range(3)]
    for number in range(2):
        assert pool.runner.cancel(f"j{number}", "client.cancel")
    for sink in (*hung, *waiting):
        sink.wait_ended()

    assert [sink.result_fields for sink in waiting] == [{"result": 0}, {"result": 1}, {"result": 2}]
    assert pool.returned == []
    pool.release.set()
    eventually(lambda: len(logs.named("agent_returned_late")) == 2, SOON)
    eventually(lambda: len(pool.runner._threads) <= 2, SOON)
    assert pool.runner._abandoned == 0


def test_only_so_many_may_hang(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(threads_max=1, abandoned_max=1)
    for number in range(2):
        pool.running("wait", f"j{number}").wait_until(lambda sink: sink.begun)
        assert pool.runner.cancel(f"j{number}", "client.cancel")
        eventually(lambda number=number: f"j{number}" not in pool.runner._runs, SOON)  # type: ignore[misc]
    waiting = pool.start("quick", "q", "at last")
    assert len(pool.runner._threads) == 2
    assert not waiting.begun
    pool.release.set()
    waiting.wait_ended()
    assert waiting.result_fields == {"result": "at last"}


def test_a_watcher_of_a_budget_does_not_wait_for_the_disk(pool: Pool) -> None:
    pool.agents.register("spend", version="1")(lambda ctx, _input: ctx.metric("cost.x", 1, unit="USD"))
    sink = RecordingSink()
    release = sink.hold()
    pool.runner.start(job_spec("spend@1", job_id="j", lease={"cost.budget": ["USD:3"]}), sink)
    sink.wait_until(lambda sink: sink.begun)
    assert pool.runner.budget("j") == {"USD": Decimal(3)}
    release()
    sink.wait_ended()


def test_idle_threads_are_used_before_new_ones_are_started(pool: Pool) -> None:
    for number in range(10):
        pool.start("quick", f"j{number}", number).wait_ended()
        eventually(lambda: pool.runner._idle == len(pool.runner._threads), SOON)
    assert len(pool.runner._threads) == 1


def test_a_job_without_a_thread_to_be_had_is_refused(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(RequestRefused, match="no thread"):
            pool.start("quick", "j1")
    pool.start("quick", "j2").wait_ended()


def test_an_agent_that_is_gone_ends_the_job(pool: Pool) -> None:
    sink = RecordingSink()
    pool.runner.start(job_spec("gone@1"), sink)
    sink.wait_ended()
    assert (sink.error_fields or {})["code"] == "AGENT_VERSION_NOT_AVAILABLE"


# -- the end of the server -------------------------------------------------------------------------------------------


def test_a_drain_waits_for_what_runs_and_takes_nothing_new(pool: Pool) -> None:
    sinks = [pool.start("wait", f"j{number}") for number in range(4)]
    drained = threading.Thread(target=pool.runner.drain, args=(SOON,))
    drained.start()
    eventually(lambda: pool.runner._draining, SOON)
    with pytest.raises(RequestRefused, match="shutting down"):
        pool.start("quick", "late")
    pool.release.set()
    drained.join(SOON)

    assert not drained.is_alive()
    assert [sink.result_fields for sink in sinks] == [{"result": "released"}] * 4


def test_threads_that_are_only_starting_count(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine they come late: the jobs that they are started for are not those that wait in the queue."""
    come, work = threading.Event(), pool.runner._work

    def work_late() -> None:
        assert come.wait(SOON)
        work()

    monkeypatch.setattr(pool.runner, "_work", work_late)
    sinks = [pool.start("quick", f"j{number}") for number in range(5)]
    with pytest.raises(RequestRefused, match="3 jobs are waiting"):
        pool.start("quick", "one too many")
    come.set()
    for sink in sinks:
        sink.wait_ended()


def test_at_its_deadline_a_drain_ends_what_is_left_queued_or_running(pool: Pool, logs: CapturedLogs) -> None:
    obeying, hung = pool.running("obey", "j0"), pool.running("wait", "j1")
    queued = pool.start("quick", "q0")
    pool.runner.drain(0.05)

    for sink in (obeying, hung, queued):
        assert sink.error_fields == {
            "code": "INTERNAL_ERROR",
            "message": "the server was shut down before the job had ended",
            "retryable": True,
            "status": "error",
        }
    assert not queued.begun
    assert [event["jobs"] for event in logs.named("jobs_cut_short")] == [3]
    began = time.monotonic()
    pool.runner.close()
    assert time.monotonic() - began < SOON


def test_a_closed_runner_leaves_no_thread(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool()
    mine = {thread.ident for thread in threading.enumerate()}
    for number in range(3):
        pool.start("quick", f"j{number}").wait_ended()
    pool.start("wait", "t", max_runtime_s=0.01).wait_ended()
    pool.release.set()
    pool.runner.drain(SOON)
    pool.runner.close()
    eventually(lambda: not {thread.ident for thread in threading.enumerate()} - mine, SOON)
    assert threads_named("logmark-agent") == []


def test_races_between_return_cancel_deadline_and_drain_end_each_job_once(make_pool: Callable[..., Pool]) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        pool = make_pool(threads_max=4, queue_max=1000, cancel_grace_s=0.001)
        sinks: list[RecordingSink] = []
        for number in range(200):
            agent = ("quick", "obey")[number % 2]
            sinks.append(pool.start(agent, f"j{number}", "done", max_runtime_s=0.002 if number % 3 else None))
            pool.runner.cancel(f"j{number - number % 4}", "race")
        pool.runner.drain(0.2)
    finally:
        sys.setswitchinterval(interval)
    for sink in sinks:
        sink.wait_ended()
        assert (sink.result_fields is None) != (sink.error_fields is None)
    assert pool.runner._runs == {}
    eventually(lambda: pool.runner._abandoned == 0, SOON)
