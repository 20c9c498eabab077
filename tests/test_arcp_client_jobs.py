"""The published Python client, as it is, against a gateway: sessions, jobs, lists, watching, cancels, principals."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from arcp import (
    AgentNotAvailableError,
    AgentVersionNotAvailableError,
    ARCPError,
    BudgetExhaustedError,
    CancelledError,
    ClientInfo,
    DuplicateKeyError,
    InternalError,
    InvalidRequestError,
    LeaseConstraints,
    LeaseExpiredError,
    ListJobsFilter,
    UnauthenticatedError,
    WebSocketTransport,
)
from arcp.client import ARCPClient

import logmark
from logmark.gateway import Gateway, GatewayLimits
from logmark.testing import ArcpProbe

DEADLINE_S = 60
TOKENS = {"token-a": "alice", "token-a2": "alice", "token-b": "bob"}


def agents() -> ModuleType:
    """Load the agents, which are a script for servers in processes of their own."""
    path = Path(__file__).parent / "workers" / "arcp_agents.py"
    spec = importlib.util.spec_from_file_location("arcp_agents", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    limits = GatewayLimits(jobs_running_max=4, cancel_grace_s=0.2, close_wait_s=1.0)
    with logmark.open("memory:") as runtime:
        agents().register(runtime)
        with logmark.serve(runtime, tokens=TOKENS, limits=limits) as served:
            yield served


@contextlib.asynccontextmanager
async def connected(gateway: Gateway, token: str = "token-a", **options: Any) -> AsyncIterator[ARCPClient]:
    client = ARCPClient(client=ClientInfo(name="test", version="1"), token=token, handshake_timeout_sec=20, **options)
    transport = await WebSocketTransport.connect(gateway.url)
    try:
        await client.connect(transport)
        yield client
    finally:
        await client.close()
        await transport.close()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario, with a deadline."""

    async def within() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await scenario()

    asyncio.run(within())


async def kinds_of(handle: Any) -> list[str]:
    return [event["kind"] async for event in handle.events()]


async def next_event(handle: Any) -> dict[str, Any]:
    """Return the next event of a job, and leave the others."""
    event: dict[str, Any] = await anext(aiter(handle.events()))
    return event


# -- the session -----------------------------------------------------------------------------------------------------


def test_the_handshake_says_what_there_is(gateway: Gateway) -> None:
    async def scenario() -> None:
        async with connected(gateway) as client:
            welcome = client.welcome
            assert welcome is not None
            inventory = {entry.name: entry for entry in welcome.capabilities.agents if not isinstance(entry, str)}
            assert welcome.runtime.name == "logmark"
            assert welcome.resume_window_sec == 600
            assert inventory["quick"].versions == ("1.0.0", "2.0.0")
            assert inventory["quick"].default == "2.0.0"
            assert set(client.negotiated_features) == {
                "heartbeat",
                "ack",
                "list_jobs",
                "subscribe",
                "lease_expires_at",
                "cost.budget",
                "progress",
                "result_chunk",
                "agent_versions",
            }
        async with connected(gateway, features=("ack", "model.use", "provisioned_credentials")) as client:
            assert client.negotiated_features == ("ack",)

    run(scenario)


@pytest.mark.parametrize("token", ["", "wrong", "token-A", "token-a "])
def test_nobody_gets_in_with_another_token(gateway: Gateway, token: str) -> None:
    async def scenario() -> None:
        with pytest.raises(UnauthenticatedError):
            async with connected(gateway, token):
                pass

    run(scenario)


# -- jobs ------------------------------------------------------------------------------------------------------------


def test_every_kind_of_event_arrives_in_order_and_then_the_result(gateway: Gateway) -> None:
    async def scenario() -> None:
        async with connected(gateway) as client:
            job = await client.submit(agent="every_kind@1.0.0", input={}, lease_request={"cost.budget": ["USD:1.00"]})
            assert job.agent_ref == "every_kind@1.0.0"
            assert job.budget == {"USD": "USD:1.00"}
            kinds = await kinds_of(job)
            result = await job.done
            assert kinds == [
                "log",
                "thought",
                "status",
                "tool_call",
                "tool_result",
                "tool_call",
                "tool_result",
                "metric",
                "metric",
                "metric",
                "artifact_ref",
                "progress",
                "x-vendor.test.note",
            ]
            assert (result.final_status, result.result) == ("success", "done")
            assert client.latest_event_seq == len(kinds) + 1
            await client.ack(client.latest_event_seq)
            await client.list_jobs()  # an ack has no answer; the session is as well as before

    run(scenario)


@pytest.mark.parametrize("value", [None, 0, "text", [1, 2], {"deep": {"er": [None]}}])
def test_input_and_inline_result_are_any_json(gateway: Gateway, value: Any) -> None:
    async def scenario() -> None:
        async with connected(gateway) as client:
            first = await client.submit(agent="quick@1.0.0", input=value)
            assert (await first.done).result == value
            second = await client.submit(agent="quick", input=value)
            assert (await second.done).result == {"version": "2.0.0", "input": value}

    run(scenario)


def test_a_streamed_result_comes_whole(gateway: Gateway) -> None:
    async def scenario() -> None:
        async with connected(gateway) as client:
            job = await client.submit(
                agent="stream", input={"parts": ["one;", "zwei\u00fc\n", '"'], "times": 30_000, "bytes": 600}
            )
            data = await job.collect_chunks()
            result = await job.done
            expected = (
                "".join(part * 30_000 for part in ["one;", "zwei\u00fc\n", '"']).encode() + bytes(range(256)) * 600
            )
            assert data == expected
            assert (result.result, result.result_size, result.summary) == (None, len(expected), "streamed")
            assert result.result_id

    run(scenario)


def test_an_agent_that_fails_in_its_stream_or_before_is_one_error(gateway: Gateway) -> None:
    async def scenario() -> None:
        async with connected(gateway) as client:
            for agent, input_ in (("fail", {}), ("stream", {"parts": ["half"], "fail": True})):
                job = await client.submit(agent=agent, input=input_)
                with pytest.raises(InternalError) as caught:
                    await job.done
                assert "/secret" not in str(caught.value)
                assert caught.value.retryable
            assert (await (await client.submit(agent="quick@1.0.0", input=1)).done).result == 1  # the session goes on

    run(scenario)


def test_agents_that_are_not_there_are_told_apart(gateway: Gateway) -> None:
    async def scenario() -> None:
        for agent, error in (("nobody", AgentNotAvailableError), ("quick@9.9.9", AgentVersionNotAvailableError)):
            async with connected(gateway) as client:
                with pytest.raises(error):
                    await client.submit(agent=agent, input=None)

    run(scenario)


def test_a_deadline_ends_the_job_of_an_agent_that_does_not_listen(gateway: Gateway) -> None:
    async def scenario() -> None:
        async with connected(gateway) as client:
            job = await client.submit(agent="hang", input={"seconds": 5}, max_runtime_sec=1)
            with pytest.raises(ARCPError) as caught:
                await job.done
            assert caught.value.code == "TIMEOUT"
            entry = (await client.list_jobs()).jobs[0]
            assert entry.status == "timed_out"

    run(scenario)


def test_a_lease_ends_its_job_and_a_spent_budget_its_tools(gateway: Gateway) -> None:
    async def scenario() -> None:
        async with connected(gateway) as client:
            ends = datetime.now(UTC) + timedelta(seconds=1)
            leased = await client.submit(
                agent="obey", input=None, lease_constraints=LeaseConstraints(expires_at=ends.isoformat())
            )
            with pytest.raises(LeaseExpiredError) as expired:
                await leased.done
            assert not expired.value.retryable
            spent = await client.submit(
                agent="every_kind", input={}, lease_request={"cost.budget": ["USD:0"], "tool.call": ["*"]}
            )
            with pytest.raises(BudgetExhaustedError) as exhausted:
                await spent.done
            assert not exhausted.value.retryable
        for lease, constraints in (
            ({"fs.everything": ["/"]}, None),
            ({"cost.budget": ["5 dollars"]}, None),
            ({}, LeaseConstraints(expires_at="2020-01-01T00:00:00Z")),
        ):
            async with connected(gateway) as client:
                with pytest.raises(InvalidRequestError):
                    await client.submit(agent="quick", input=None, lease_request=lease, lease_constraints=constraints)

    run(scenario)


# -- cancels ---------------------------------------------------------------------------------------------------------


def test_running_jobs_are_cancelled_whether_they_listen_or_not(gateway: Gateway) -> None:
    async def scenario() -> None:
        async with connected(gateway) as client:
            for agent in ("obey", "hang"):
                job = await client.submit(agent=agent, input={"seconds": 5})
                assert (await next_event(job))["kind"] == "log"
                await client.cancel_job(job.job_id)
                with pytest.raises(CancelledError):
                    await job.done
            assert [entry.status for entry in (await client.list_jobs()).jobs] == ["cancelled", "cancelled"]

    run(scenario)


def test_a_queued_job_is_cancelled_and_never_begins(gateway: Gateway, tmp_path: Path) -> None:
    trace = tmp_path / "runs"

    async def scenario() -> None:
        async with connected(gateway) as client:
            busy = [await client.submit(agent="obey", input=None) for _ in range(4)]
            for job in busy:
                await next_event(job)
            queued = await client.submit(agent="count_runs", input={"file": str(trace)})
            statuses = {entry.job_id: entry.status for entry in (await client.list_jobs()).jobs}
            assert statuses[queued.job_id] == "pending"
            await client.cancel_job(queued.job_id)
            with pytest.raises(CancelledError):
                await queued.done
            for job in busy:
                await client.cancel_job(job.job_id)
                with pytest.raises(CancelledError):
                    await job.done

    run(scenario)
    assert not trace.exists()


# -- lists -----------------------------------------------------------------------------------------------------------


def test_jobs_are_listed_in_pages_with_their_marks(gateway: Gateway) -> None:
    async def scenario() -> None:
        async with connected(gateway) as client:
            submitted: list[str] = []
            for number in range(7):
                job = await client.submit(agent="steps", input={"count": number})
                await job.done
                submitted.append(job.job_id)
            waiting = await client.submit(agent="obey", input=None)
            await next_event(waiting)

            entries: list[Any] = []
            cursor, pages = None, 0
            while pages == 0 or cursor is not None:
                page = await client.list_jobs(limit=3, cursor=cursor)
                entries += page.jobs
                cursor, pages = page.next_cursor, pages + 1
            assert pages == math.ceil(8 / 3)
            assert sorted(entry.job_id for entry in entries) == sorted([*submitted, waiting.job_id])
            marks = {entry.job_id: entry.last_event_seq for entry in entries}
            # The session's numbers run over all its jobs: each has its steps and its result.
            assert [marks[job_id] for job_id in submitted] == [1, 3, 6, 10, 15, 21, 28]
            assert marks[waiting.job_id] == 29
            running = await client.list_jobs(filter=ListJobsFilter(status=("running",)))
            assert [entry.job_id for entry in running.jobs] == [waiting.job_id]
            for agent in ("obey", "obey@1.0.0"):
                only = await client.list_jobs(filter=ListJobsFilter(agent=agent))
                assert [entry.job_id for entry in only.jobs] == [waiting.job_id]
            later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
            assert (await client.list_jobs(filter=ListJobsFilter(created_after=later))).jobs == ()
            await client.cancel_job(waiting.job_id)
            with pytest.raises(CancelledError):
                await waiting.done

    run(scenario)


# -- watching --------------------------------------------------------------------------------------------------------


def test_a_second_session_watches_from_the_beginning_and_then_live(gateway: Gateway, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def scenario() -> None:
        async with connected(gateway) as submitter, connected(gateway, "token-a2") as viewer:
            job = await submitter.submit(agent="gated", input={"gate": str(gate), "then": 200})
            await next_event(job)
            watched = await viewer.subscribe(job.job_id, history=True)
            assert (watched.subscribed_from, bool(watched.replayed)) == (1, True)
            first = await next_event(watched.handle)
            assert first["body"]["message"] == "waiting"
            gate.touch()
            rest = [event["body"]["message"] async for event in watched.handle.events()]
            assert rest == [f"after {number}" for number in range(200)]
            assert (await watched.handle.done).result == (await job.done).result == "through"
            assert viewer.latest_event_seq == 202

    run(scenario)


def test_without_history_only_what_comes_is_seen_and_unsubscribe_ends_it(gateway: Gateway, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def scenario() -> None:
        async with connected(gateway) as submitter, connected(gateway) as viewer, connected(gateway) as leaver:
            job = await submitter.submit(agent="gated", input={"gate": str(gate), "then": 3})
            await next_event(job)
            watched = await viewer.subscribe(job.job_id)
            left = await leaver.subscribe(job.job_id)
            assert not watched.replayed
            assert watched.subscribed_from == 1
            await leaver.unsubscribe(job.job_id)
            await leaver.list_jobs()  # its answer says that the server has come this far
            gate.touch()
            seen = [event["body"]["message"] async for event in watched.handle.events()]
            assert seen == ["after 0", "after 1", "after 2"]
            await job.done
            await leaver.list_jobs()
            assert leaver.latest_event_seq == 0
            assert left.handle._events.empty()

    run(scenario)


def test_history_of_10_000_events_comes_whole(gateway: Gateway) -> None:
    async def scenario() -> None:
        async with connected(gateway) as submitter:
            job = await submitter.submit(agent="bulk", input={"count": 10_000})
            assert (await job.done).result == 10_000
            async with connected(gateway) as viewer:
                watched = await viewer.subscribe(job.job_id, history=True)
                assert watched.subscribed_from == 10_001
                numbers = [int(event["body"]["message"].strip(".")) async for event in watched.handle.events()]
                assert numbers == list(range(10_000))
                assert (await watched.handle.done).result == 10_000
                assert viewer.latest_event_seq == 10_001
            async with connected(gateway) as late:
                watched = await late.subscribe(job.job_id, history=True, from_event_seq=9_990)
                assert len(await kinds_of(watched.handle)) == 10

    run(scenario)


# -- principals ------------------------------------------------------------------------------------------------------


def test_another_principal_sees_nothing_and_can_do_nothing(gateway: Gateway) -> None:
    async def scenario() -> None:
        async with connected(gateway) as alice, connected(gateway, "token-b") as bob:
            job = await alice.submit(agent="obey", input=None)
            await next_event(job)
            assert (await bob.list_jobs()).jobs == ()
            await bob.cancel_job(job.job_id)
            await bob.unsubscribe(job.job_id)
            assert [entry.status for entry in (await alice.list_jobs()).jobs] == ["running"]
            answers: list[str] = []
            with ArcpProbe(gateway.url, "token-b") as wire:
                for job_id in (job.job_id, "job_01M7YYTQDQ3CQ4DDJ2KMZYBQA5"):
                    answer = wire.ask("job.subscribe", {"job_id": job_id, "history": True}, job_id=job_id)
                    payload = {name: value for name, value in answer["payload"].items() if name != "request_id"}
                    answers.append(str(payload).replace(job_id, "…"))
            assert answers[0] == answers[1]  # "not yours" and "not there" cannot be told apart
            await alice.cancel_job(job.job_id)
            with pytest.raises(CancelledError):
                await job.done

    run(scenario)


# -- idempotency -----------------------------------------------------------------------------------------------------


def test_a_key_stands_for_one_job(gateway: Gateway, tmp_path: Path) -> None:
    trace = tmp_path / "runs"

    async def scenario() -> None:
        input_ = {"file": str(trace), "a": 1, "b": [1, 2]}
        async with connected(gateway) as client:
            submits = (client.submit(agent="count_runs", input=input_, idempotency_key="key") for _ in range(8))
            jobs = await asyncio.gather(*submits)
            assert len({job.job_id for job in jobs}) == 1
            again = await client.submit(agent="count_runs", input=dict(reversed(input_.items())), idempotency_key="key")
            assert again.job_id == jobs[0].job_id
        async with connected(gateway, "token-b") as bob:
            other = await bob.submit(agent="count_runs", input=input_, idempotency_key="key")
            assert other.job_id != jobs[0].job_id
            await other.done
        async with connected(gateway, "token-a2") as client:
            with pytest.raises(DuplicateKeyError):
                await client.submit(agent="count_runs", input={"file": "x"}, idempotency_key="key")

    run(scenario)
    assert len(trace.read_text(encoding="utf-8").splitlines()) == 2
