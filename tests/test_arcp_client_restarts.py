"""The published Python client against ``logmark serve``: lost connections, killed servers, nothing missing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from arcp import (
    ClientInfo,
    InternalError,
    PermissionDeniedError,
    ResumeWindowExpiredError,
    SessionResume,
    Transport,
    WebSocketTransport,
)
from arcp.client import ARCPClient

from logmark.testing import wire_faults

DEADLINE_S = 60
Serve = Callable[..., Any]


def last_number(frames: list[dict[str, Any]], *, after: int = 0) -> int:
    """Check that the frames of a session are in order, and return the last number."""
    assert wire_faults(frames, after_seq=after) == []
    return max((frame["event_seq"] for frame in frames if "event_seq" in frame), default=after)


class Recorded:
    """A client's transport that keeps what comes; the client itself says nothing of jobs that it has not submitted."""

    def __init__(self, inner: WebSocketTransport, frames: list[dict[str, Any]]) -> None:
        self._inner = inner
        self.frames = frames
        self.arrived = asyncio.Condition()

    @property
    def is_closed(self) -> bool:
        return self._inner.is_closed

    async def send(self, envelope: dict[str, Any]) -> None:
        await self._inner.send(envelope)

    async def recv(self) -> dict[str, Any]:
        frame = await self._inner.recv()
        async with self.arrived:
            self.frames.append(frame)
            self.arrived.notify_all()
        return frame

    async def close(self) -> None:
        await self._inner.close()

    async def cut(self) -> None:
        """Lose the connection without a word."""
        self._inner._conn.transport.abort()

    async def wait_for(self, wanted: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        async with self.arrived:
            await self.arrived.wait_for(lambda: any(wanted(frame) for frame in self.frames))
            return next(frame for frame in self.frames if wanted(frame))


class Client:
    """A client with its transport."""

    def __init__(self, client: ARCPClient, transport: Recorded) -> None:
        self.arcp = client
        self.transport = transport
        self.frames = transport.frames

    @property
    def position(self) -> SessionResume:
        assert self.arcp.welcome is not None
        return SessionResume(
            session_id=self.arcp.welcome.session_id,
            resume_token=self.arcp.welcome.resume_token,
            last_event_seq=self.arcp.latest_event_seq,
        )

    async def wait_seq(self, seq: int) -> None:
        await self.transport.wait_for(lambda frame: frame.get("event_seq") == seq)

    async def wait_terminal(self, job_id: str) -> dict[str, Any]:
        return await self.transport.wait_for(
            lambda frame: frame["type"] in ("job.result", "job.error") and frame["job_id"] == job_id
        )


@contextlib.asynccontextmanager
async def connected(url: str, token: str = "token-a", resume: SessionResume | None = None) -> AsyncIterator[Client]:
    client = ARCPClient(client=ClientInfo(name="test", version="1"), token=token, handshake_timeout_sec=30)
    recorded = Recorded(await WebSocketTransport.connect(url), [])
    transport: Transport = recorded
    try:
        if resume is None:
            await client.connect(transport)
        else:
            await client.resume(transport, resume=resume)
        yield Client(client, recorded)
    finally:
        await client.close()
        await recorded.close()


async def forget(handle: Any) -> None:
    """Take note that a handle has ended with its connection."""
    with pytest.raises(Exception, match="closed"):
        await handle.done


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await scenario()

    asyncio.run(within())


def last_seq(entry: Any) -> int:
    """Return a field that the client keeps and does not know."""
    return int(entry.last_event_seq)


def test_a_lost_connection_and_a_half_open_one_cost_nothing(serve: Serve) -> None:
    server = serve()

    async def scenario() -> None:
        async with connected(server.url) as first:
            job = await first.arcp.submit(agent="steps", input={"count": 60, "every_s": 0.01})
            await first.wait_seq(10)
            await first.transport.cut()
            await forget(job)
            async with connected(server.url, resume=first.position) as second:
                assert second.arcp.session_id == first.arcp.session_id
                await second.wait_seq(first.arcp.latest_event_seq + 10)
                # The second one stays open, as a connection does whose other end has lost its power.
                position = second.position
                assert position.resume_token != first.position.resume_token
                async with connected(server.url, resume=position) as third:
                    result = await third.wait_terminal(job.job_id)
                    assert result["payload"]["result"] == {"steps": 60}
                    received = [*first.frames, *second.frames, *third.frames]
                    seen = {frame["event_seq"]: frame for frame in received if "event_seq" in frame}
                    assert sorted(seen) == list(range(1, 62))
                    assert last_number(third.frames, after=position.last_event_seq) == 61
                    steps = [seen[seq]["payload"]["body"]["current"] for seq in range(1, 61)]
                    assert steps == list(range(1, 61))

    run(scenario)
    assert server.end() == 0


def test_what_is_replayed_is_what_was_sent_to_the_last_field(serve: Serve) -> None:
    server = serve()

    async def scenario() -> None:
        async with connected(server.url) as first:
            job = await first.arcp.submit(agent="every_kind", input={})
            await job.done
            await first.transport.cut()
        position = first.position.model_copy(update={"last_event_seq": 0})
        async with connected(server.url, resume=position) as second:
            await second.wait_terminal(job.job_id)
            before, after = ([frame for frame in client.frames if "event_seq" in frame] for client in (first, second))
            assert before == after

    run(scenario)


def test_a_killed_server_goes_on_where_it_was(serve: Serve, tmp_path: Path) -> None:
    """Killed between submit and resume: sessions, jobs, marks and keys are there, and the job has one end."""
    server, trace = serve(), tmp_path / "runs"
    before: list[Any] = []

    async def submit_and_lose_the_server() -> None:
        async with connected(server.url) as client, connected(server.url) as viewer:
            done = await client.arcp.submit(agent="count_runs", input={"file": str(trace)}, idempotency_key="once")
            await done.done
            cut_short = await client.arcp.submit(
                agent="steps", input={"count": 50, "pause_at": 20}, idempotency_key="half"
            )
            await client.wait_seq(21)
            await viewer.arcp.subscribe(cut_short.job_id, history=True)
            await viewer.wait_seq(20)
            server.kill()
            await forget(cut_short)
            before.extend([client, viewer, done.job_id, cut_short.job_id])

    run(submit_and_lose_the_server)
    client, viewer, done_id, cut_id = before
    again = serve()

    async def go_on() -> None:
        async with connected(again.url, resume=client.position) as resumed:
            end = await resumed.wait_terminal(cut_id)
            assert end["payload"]["code"] == "INTERNAL_ERROR"
            assert end["payload"]["retryable"] is True
            assert last_number([*client.frames, *resumed.frames]) == end["event_seq"] == 22
            entries = {entry.job_id: entry for entry in (await resumed.arcp.list_jobs()).jobs}
            assert (entries[done_id].status, entries[cut_id].status) == ("success", "error")
            assert [last_seq(entries[done_id]), last_seq(entries[cut_id])] == [1, 22]

            # Its watcher gets the same end, in its own numbers.
            async with connected(again.url, resume=viewer.position) as watching:
                assert (await watching.wait_terminal(cut_id))["payload"]["code"] == "INTERNAL_ERROR"
                assert last_number([*viewer.frames, *watching.frames]) == 21

            # The keys stand for the same jobs, one with a result and one without, and nothing is run twice.
            repeated = await resumed.arcp.submit(agent="count_runs", input={"file": str(trace)}, idempotency_key="once")
            assert repeated.job_id == done_id
            half = await resumed.arcp.submit(agent="steps", input={"count": 50, "pause_at": 20}, idempotency_key="half")
            assert half.job_id == cut_id

            fresh = await resumed.arcp.submit(agent="quick@1.0.0", input="new")
            assert (await fresh.done).result == "new"
            last_number([*client.frames, *resumed.frames])

    run(go_on)
    assert len(trace.read_text(encoding="utf-8").splitlines()) == 1
    assert again.end() == 0


def test_a_server_that_was_asked_to_end_tells_its_sessions_and_the_next_one_resumes_them(serve: Serve) -> None:
    server = serve("--drain-wait", "0.2")
    before: list[Client] = []

    async def see_it_end() -> None:
        async with connected(server.url) as client:
            job = await client.arcp.submit(agent="obey", input=None)
            await client.wait_seq(1)
            ending = asyncio.create_task(asyncio.to_thread(server.end))
            end = await client.wait_terminal(job.job_id)
            assert (end["payload"]["code"], end["payload"]["retryable"]) == ("INTERNAL_ERROR", True)
            with contextlib.suppress(Exception):
                await job.done
            assert await ending == 0
            before.append(client)

    run(see_it_end)
    again = serve()

    async def resume() -> None:
        async with connected(again.url, resume=before[0].position) as client:
            await client.arcp.list_jobs()
            assert last_number(client.frames, after=before[0].arcp.latest_event_seq) == 2

    run(resume)


def test_a_position_that_is_not_covered_is_refused_and_a_wrong_guess_burns_nothing(serve: Serve) -> None:
    server = serve()

    async def scenario() -> None:
        async with connected(server.url) as first:
            await (await first.arcp.submit(agent="steps", input={"count": 3})).done
            await first.transport.cut()
        position = first.position
        wrong: tuple[tuple[str, dict[str, Any]], ...] = (
            ("token-a", {"resume_token": "rtk_wrong"}),
            ("token-a", {"session_id": "sess_01M7YYTQD23ZS7WG39FCG8ERKM"}),
            ("token-b", {}),
            ("token-a", {"last_event_seq": 999_999}),
        )
        for token, change in wrong:
            with pytest.raises((PermissionDeniedError, ResumeWindowExpiredError)):
                async with connected(server.url, token, position.model_copy(update=change)):
                    pass
        async with connected(server.url, resume=position) as second:
            await second.arcp.list_jobs()
        with pytest.raises((PermissionDeniedError, ResumeWindowExpiredError)):  # the token was used up
            async with connected(server.url, resume=position):
                pass

    run(scenario)


def test_an_ended_job_ends_again_for_who_asks_with_its_key(serve: Serve) -> None:
    server = serve()

    async def scenario() -> None:
        async with connected(server.url) as client:
            job = await client.arcp.submit(agent="fail", input=None, idempotency_key="k")
            with pytest.raises(InternalError):
                await job.done
        async with connected(server.url) as other:
            again = await other.arcp.submit(agent="fail", input=None, idempotency_key="k")
            assert again.job_id == job.job_id
            entries = (await other.arcp.list_jobs()).jobs
            assert [(entry.job_id, entry.status) for entry in entries] == [(job.job_id, "error")]
            last_number(other.frames)

    run(scenario)
