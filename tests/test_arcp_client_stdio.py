"""The published Python client as the parent of ``logmark serve --stdio``: frames and nothing else on its output."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from arcp import ClientInfo, SessionResume, StdioTransport, UnauthenticatedError
from arcp.client import ARCPClient

from logmark.testing import wire_faults

DEADLINE_S = 60
WORKERS = Path(__file__).parent / "workers"


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await scenario()

    asyncio.run(within())


def last_number(frames: list[dict[str, Any]], *, after: int = 0) -> int:
    """Check that the frames of a session are in order, and return the last number."""
    assert wire_faults(frames, after_seq=after) == []
    return max((frame["event_seq"] for frame in frames if "event_seq" in frame), default=after)


class Teeing(StdioTransport):
    """A transport that keeps what comes."""

    frames: list[dict[str, Any]]

    async def recv(self) -> dict[str, Any]:
        frame = await super().recv()
        self.frames.append(frame)
        return frame


class Child:
    """The server, with a client at its pipes."""

    def __init__(self, process: asyncio.subprocess.Process, client: ARCPClient, transport: Teeing) -> None:
        self.process = process
        self.client = client
        self.transport = transport


@contextlib.asynccontextmanager
async def child(
    folder: Path, *options: str, token: str = "any", resume: SessionResume | None = None
) -> AsyncIterator[Child]:
    log = await asyncio.to_thread(open, folder / "serve.log", "ab")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", "-m", "logmark", "serve", "--stdio", "--store", f"file:{folder / 'store'}"),
        *("--agents", "arcp_loud:register", *options),
        cwd=WORKERS,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=log,
    )
    log.close()
    assert process.stdout is not None
    assert process.stdin is not None
    transport = Teeing(process.stdout, process.stdin)
    transport.frames = []
    client = ARCPClient(client=ClientInfo(name="parent", version="1"), token=token, handshake_timeout_sec=30)
    try:
        if resume is None:
            await client.connect(transport)
        else:
            await client.resume(transport, resume=resume)
        yield Child(process, client, transport)
    finally:
        await client.close()
        await transport.close()
        if process.returncode is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 30)
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # or it would be closed when it is collected


def test_all_of_it_works_over_pipes_and_lines_stay_short(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with child(tmp_path) as server:
            client = server.client
            job = await client.submit(
                agent="stream", input={"parts": ["\x00", '"', "x"], "times": 40_000, "bytes": 200}
            )
            data = await job.collect_chunks()
            await job.done
            assert data == b"\x00" * 40_000 + b'"' * 40_000 + b"x" * 40_000 + bytes(range(256)) * 200
            for _ in range(3):
                await (await client.submit(agent="every_kind", input={})).done
            watched = await client.subscribe(job.job_id, history=True)
            assert await watched.handle.collect_chunks() == data
            assert len((await client.list_jobs()).jobs) == 4
            numbers = [frame["event_seq"] for frame in server.transport.frames if "event_seq" in frame]
            assert numbers == list(range(1, len(numbers) + 1))
            assert max(len(orjson.dumps(frame)) for frame in server.transport.frames) < 64 * 1024

    run(scenario)


def test_a_thousand_jobs_are_listed_in_lines_that_the_client_can_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with child(tmp_path) as server:
            jobs = [await server.client.submit(agent="quick@1.0.0", input=number) for number in range(300)]
            for job in jobs:
                await job.done
            seen: list[str] = []
            cursor = None
            while not seen or cursor is not None:
                page = await server.client.list_jobs(limit=1000, cursor=cursor)
                seen += [entry.job_id for entry in page.jobs]
                cursor = page.next_cursor
            assert sorted(seen) == sorted(job.job_id for job in jobs)
            assert len(seen) == len(set(seen))

    run(scenario)


def test_what_agents_print_does_not_reach_the_client(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with child(tmp_path) as server:
            job = await server.client.submit(agent="chatty", input=None)
            await job.done
            await server.client.list_jobs()

    run(scenario)
    log = (tmp_path / "serve.log").read_text(encoding="utf-8")
    assert "hello from the agent" in log
    assert "hello from its child" in log
    assert "loading agents" in log
    assert "registering agents" in log


def test_the_next_child_resumes_what_the_first_one_left(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with child(tmp_path) as first:
            job = await first.client.submit(agent="steps", input={"count": 5, "pause_at": 3})
            events = [await anext(aiter(job.events())) for _ in range(3)]
            assert [event["body"]["current"] for event in events] == [1, 2, 3]
            first.process.kill()
            with pytest.raises(Exception, match="closed"):
                await job.done
        welcome = first.client.welcome
        assert welcome is not None
        position = SessionResume(
            session_id=welcome.session_id,
            resume_token=welcome.resume_token,
            last_event_seq=first.client.latest_event_seq,
        )
        async with child(tmp_path, resume=position) as second:
            assert [entry.status for entry in (await second.client.list_jobs()).jobs] == ["error"]
            async with asyncio.timeout(DEADLINE_S):  # the list is on a lane of its own, ahead of the events
                while last_number([*first.transport.frames, *second.transport.frames]) < 4:
                    await second.client.list_jobs()

    run(scenario)


def test_with_tokens_the_parent_needs_one_too(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch(mode=0o600)
    tokens.write_text("s3cret alice\n", encoding="utf-8")

    async def scenario() -> None:
        with pytest.raises(UnauthenticatedError):
            async with child(tmp_path, "--token-file", str(tokens)):
                pass
        async with child(tmp_path, "--token-file", str(tokens), token="s3cret") as server:
            await server.client.list_jobs()

    run(scenario)


@pytest.mark.parametrize("how", ["end of input", "SIGTERM"])
def test_it_ends_when_its_parent_is_gone_or_asks_it_to(tmp_path: Path, how: str) -> None:
    async def scenario() -> None:
        async with child(tmp_path, "--drain-wait", "0.1") as server:
            job = await server.client.submit(agent="obey", input=None)
            assert (await anext(aiter(job.events())))["kind"] == "log"
            if how == "end of input":
                assert server.process.stdin is not None
                server.process.stdin.close()
            else:
                server.process.send_signal(getattr(signal, how))
            assert await asyncio.wait_for(server.process.wait(), 30) == 0
            with pytest.raises(Exception, match=r"closed|shut down"):
                await job.done
            last = server.transport.frames[-1]
            ends = [frame for frame in server.transport.frames if frame["type"] == "job.error"]
            assert [frame["payload"]["code"] for frame in ends] == ["INTERNAL_ERROR"], last

    run(scenario)
    assert os.path.isdir(tmp_path / "store")
